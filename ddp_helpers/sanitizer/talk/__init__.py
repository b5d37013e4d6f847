"""How ranks compare notes: a channel of their own, beside the collectives that are watched."""
