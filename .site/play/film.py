"""A training that was watched live, told once more: as far as it had come at a moment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ddp_helpers.widgets.base import Explorable, Picture
from ddp_helpers.widgets.controls import Control, Frames
from ddp_helpers.widgets.monitor import OfRank, Watch

PER_SECOND = 8  # as often as it is drawn while it runs


@dataclass(frozen=True)
class Film:
    """What the ranks told, in the order in which it came."""

    ranks: int
    told: tuple[tuple, ...]
    """Each: milliseconds since the first rank began, then the name of a `View`'s method and what
    it was given."""

    def until(self, seconds: float) -> Watch:
        """What was known at a moment."""
        watch = Watch([OfRank() for _ in range(self.ranks)])
        for at, method, *given in self.told:
            if at > 1000 * seconds:
                break
            watch.clock = lambda now=at / 1000: now
            getattr(watch, method)(*given)
        return watch

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.told[-1][0] / 1000


def moments(film: Film) -> Frames:
    """Moments of it, the last one when all is told."""
    number = int(PER_SECOND * film.seconds) + 2
    pairs = [(f"{at / PER_SECOND:.1f} s", at / PER_SECOND) for at in range(number)]
    return Frames("moment of the run", 0.0, pairs, 1 / PER_SECOND)


class Replay:
    """An explorable whose result is a `Film`, with a control more: the moment that is shown."""

    def __init__(self, explorable: Explorable, film_of) -> None:
        self._explorable, self._film_of = explorable, film_of

    def explorable(self) -> Explorable:
        """The explorable that a page has."""
        first = {name: each.value for name, each in self._explorable.controls.items()}
        controls = {**self._explorable.controls, "moment": moments(self._film_of(first))}
        keeps = [*self._explorable.keeps, "moment"]
        return replace(
            self._explorable, controls=controls, draw=self._draw, adjust=self._adjust, keeps=keeps
        )

    def _draw(self, moment: float, result: Film | None, **values: Any) -> Picture:
        return self._explorable.draw(**values, result=result and result.until(moment))

    def _adjust(self, moved: str, moment: float, **values: Any) -> Mapping[str, Control]:
        return {} if moved == "moment" else {"moment": moments(self._film_of(values))}
