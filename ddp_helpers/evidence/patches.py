"""Put functions of ours in the place of torch's, and take every one of them back."""

from __future__ import annotations

import functools
from collections.abc import Callable

_ABSENT = object()


class Patches:
    """What was put in place of what; `undo()` brings all of it back, the last one first."""

    def __init__(self) -> None:
        self._before: list[tuple[object, str, object]] = []
        self._others: list[Callable[[], object]] = []

    def put(self, owner: object, name: str, make: Callable[[Callable], Callable]) -> None:
        """Replace `owner.name` by `make(original)`; an owner that has no such name is left alone.

        Args:
            owner: a class or a module.
            make: takes the original function, returns the one that stands in for it.
        """
        original = getattr(owner, name, None)
        if original is None:
            return
        own = vars(owner).get(name, _ABSENT)  # a class may have inherited it
        self._before.append((owner, name, own))
        setattr(owner, name, _alike(original, make(original)))

    def on_undo(self, call: Callable[[], object]) -> None:
        """Have something else taken back, too."""
        self._others.append(call)

    def undo(self) -> None:
        """Bring the originals back."""
        while self._others:
            self._others.pop()()
        while self._before:
            owner, name, original = self._before.pop()
            if original is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, original)


def _alike(original: Callable, ours: Callable) -> Callable:
    try:
        return functools.wraps(original)(ours)
    except (AttributeError, TypeError):  # a function of C++ may lack what wraps() copies
        return ours
