"""What is known of a step that parts, and what a cause is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ddp_helpers.verifier.compare import Parting, size_of
from ddp_helpers.verifier.records import Backward, RankRecord, Step

NEAR = 2e-3  # of ratios of losses
SHOWN = 4  # names in a text


@dataclass(frozen=True)
class Cause:
    """A cause: its short name, the sentence, what to do."""

    name: str
    why: str
    way_out: str
    compared: bool = True
    """False where the two can't be compared at all."""


class Evidence:
    """The step that parts, on the ranks and in one process."""

    def __init__(self, ranks: Sequence[RankRecord], one: RankRecord, parting: Parting) -> None:
        self.ranks, self.one, self.parting = ranks, one, parting
        self.n = len(ranks)
        self.theirs: list[Step] = [r.steps[parting.step] for r in ranks]
        self.ours: Step = one.steps[parting.step]

    @property
    def all_part(self) -> bool:
        """Every gradient of the step parts."""
        return len(self.parting.names) == len(self.ours.gradients)

    def pairs(self) -> Iterator[tuple[list[Backward], Backward]]:
        """For each backward of the step: those of the ranks, and the one of one process."""
        for number, ours in enumerate(self.ours.backwards):
            theirs = [s.backwards[number] for s in self.theirs if number < len(s.backwards)]
            if len(theirs) == self.n:
                yield theirs, ours

    def loss_factor(self) -> float | None:
        """The ranks' mean loss over one process's."""
        sums = [0.0, 0.0]
        for theirs, ours in self.pairs():
            values = [b.loss for b in theirs]
            if ours.loss is None or None in values:
                return None
            sums[0] += sum(v for v in values if v is not None) / self.n
            sums[1] += ours.loss
        return sums[0] / sums[1] if sums[1] else None

    def raw_factor(self) -> float | None:
        """The gradients' factor right after the last backward, where there is a single one."""
        parts = []
        for name in self.parting.names:
            g, h = (s.after_backward.get(name) for s in (self.theirs[0], self.ours))
            if g is None or h is None or not size_of(h):
                continue
            a, b = g.values.double(), h.values.double()
            parts.append(float(a @ b) / float(b @ b))
        if not parts or max(parts) - min(parts) > 0.02 * abs(max(parts)):
            return None
        return sum(parts) / len(parts)

    def scales(self, step: Step) -> list[float]:
        """What was given to backward() over what torch's loss functions had returned."""
        found = []
        for b in step.backwards:
            values = [c.value for c in b.losses if c.value is not None]
            if b.loss is not None and values and sum(values):
                found.append(b.loss / sum(values))
        return found

    @property
    def sums(self) -> bool:
        """A loss with reduction="sum" went into this step."""
        return any(c.reduction == "sum" for b in self.ours.backwards for c in b.losses)


def near(value: float | None, other: float, share: float = NEAR) -> bool:
    """Equal as far as losses can tell."""
    return value is not None and abs(value - other) <= share * abs(other)


def times(factor: float) -> str:
    """As `2.00 times too large`."""
    if abs(factor) >= 1:
        return f"{factor:.2f} times too large"
    return f"{1 / factor:.2f} times too small" if factor else "zero"


def some(names: Sequence[str]) -> str:
    """A few names of many."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
