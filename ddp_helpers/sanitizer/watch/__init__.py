"""What the training does, seen from outside: steps, passes over the data, wrapped models."""
