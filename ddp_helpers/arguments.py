"""Checks of arguments that more than one module makes; each error names the value."""

from __future__ import annotations

from collections.abc import Iterable

FOLDER = "{folder}"  # in an argument of a reader's script: an empty folder, one for each run


def check_whole(name: str, value: object, least: int | None = None) -> None:
    """Raise ValueError unless `value` is a whole number, of at least `least` if that is given."""
    below = isinstance(value, int) and least is not None and value < least
    if below or isinstance(value, bool) or not isinstance(value, int):
        bound = "" if least is None else f", at least {least}"
        raise ValueError(f"{name}={value!r}: expected a whole number{bound}")


def check_least(name: str, value: float, least: float) -> None:
    """Raise ValueError unless `value` is a number, whole or not, of at least `least`."""
    if isinstance(value, bool) or not value >= least:
        raise ValueError(f"{name}={value!r}: expected at least {least}")


def check_positive(name: str, value: float, unit: str = "") -> None:
    """Raise ValueError unless `value` is above 0; a NaN is not. `unit` as in "seconds"."""
    if not value > 0:
        raise ValueError(f"{name}={value!r}: expected more than 0{unit and ' '}{unit}")


def check_ranks(rank: int, world_size: int) -> None:
    """Raise ValueError unless `rank` is one of `world_size` ranks."""
    check_whole("world_size", world_size, least=1)
    if isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank < world_size:
        raise ValueError(
            f"rank={rank!r} with world_size={world_size}: expected 0 to {world_size - 1}"
        )


def fill_in_folder(words: Iterable[str], folder: str) -> list[str]:
    """The arguments with a run's own folder in place of `{folder}`."""
    return [word.replace(FOLDER, folder) for word in words]
