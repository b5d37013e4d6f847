"""What a run leaves: records, stack lines, the calls that a rank made. It uses no other wing."""
