"""How a training of your own scales here, and what bounds it: behind the command `bench`."""
