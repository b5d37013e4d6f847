"""One kind of mistake each: what it looks like, and what to do."""
