"""Templates to copy: torch and the standard library only."""
