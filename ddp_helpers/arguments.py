"""Checks of arguments that more than one module makes; each error names the value."""

from __future__ import annotations


def check_whole(name: str, value: object, least: int) -> None:
    """Raise ValueError unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name}={value!r}: expected a whole number, at least {least}")


def check_ranks(rank: int, world_size: int) -> None:
    """Raise ValueError unless `rank` is one of `world_size` ranks."""
    check_whole("world_size", world_size, least=1)
    if isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank < world_size:
        raise ValueError(
            f"rank={rank!r} with world_size={world_size}: expected 0 to {world_size - 1}"
        )
