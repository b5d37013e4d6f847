"""What two ranks must agree on, as plain values: no process group, no session, nothing patched."""
