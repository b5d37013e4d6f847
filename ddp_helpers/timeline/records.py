"""What `record_timeline` returns: small frozen records that travel from a rank to the launcher."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ddp_helpers.timeline.intervals import Interval, difference, intersection, length, union

BACKWARD, FORWARD, OPTIMIZER, DATA = "backward", "forward", "optimizer", "data loading"
EXPOSED, OTHER = "exposed all-reduce", "other"
COMPUTE = (BACKWARD, FORWARD, OPTIMIZER)
KINDS = (FORWARD, BACKWARD, EXPOSED, OPTIMIZER, DATA, OTHER)
"""What a step consists of; each moment of a step belongs to one of them."""
_BY_PRIORITY = (*COMPUTE, EXPOSED, DATA)  # communication that compute hides is not exposed


@dataclass(frozen=True)
class Collective:
    """One call that the ranks make together; for DDP's gradients, the all-reduce of a bucket."""

    name: str
    """`all_reduce`, `broadcast`, ... whatever the backend."""
    start_ns: int
    """When the transfer could start on this rank; it may then wait for a slower rank."""
    stop_ns: int
    size: int | None = None
    """Bytes that this rank sends in, or None if the profiler doesn't tell."""

    @property
    def seconds(self) -> float:
        return (self.stop_ns - self.start_ns) / 1e9


@dataclass(frozen=True)
class StepTimeline:
    """One step of one rank. Times are nanoseconds of the machine's clock."""

    start_ns: int
    stop_ns: int
    work: dict[str, tuple[Interval, ...]]
    """For forward, backward, optimizer and data loading: when this rank did it."""
    collectives: tuple[Collective, ...] = ()

    @property
    def seconds(self) -> float:
        return (self.stop_ns - self.start_ns) / 1e9

    @property
    def all_reduces(self) -> tuple[Collective, ...]:
        """In the order of their start."""
        return tuple(call for call in self.collectives if call.name == "all_reduce")

    def parts(self) -> dict[str, list[Interval]]:
        """The step cut into KINDS: no moment is in two of them, and none is left out."""
        whole = [(self.start_ns, self.stop_ns)]
        sets = {kind: self.work.get(kind, ()) for kind in (*COMPUTE, DATA)}
        sets[EXPOSED] = tuple((call.start_ns, call.stop_ns) for call in self.collectives)
        parts: dict[str, list[Interval]] = {}
        taken: list[Interval] = []
        for kind in _BY_PRIORITY:
            parts[kind] = difference(intersection(whole, sets[kind]), taken)
            taken = union(taken, parts[kind])
        parts[OTHER] = difference(whole, taken)
        return {kind: parts[kind] for kind in KINDS}

    def part_seconds(self) -> dict[str, float]:
        """For each of KINDS its seconds; together they are the step."""
        return {kind: length(intervals) / 1e9 for kind, intervals in self.parts().items()}


@dataclass(frozen=True)
class RankTimeline:
    """A few steps of one rank, as the profiler saw them."""

    rank: int
    world_size: int
    steps: tuple[StepTimeline, ...]
    device: str = "cpu"

    @property
    def step_seconds(self) -> float:
        """The median step, with what the profiler costs."""
        return statistics.median(step.seconds for step in self.steps)

    def seconds(self) -> dict[str, float]:
        """For each of KINDS the mean seconds a step; together they are the mean step."""
        totals = dict.fromkeys(KINDS, 0.0)
        for step in self.steps:
            for kind, seconds in step.part_seconds().items():
                totals[kind] += seconds / len(self.steps)
        return totals

    def shares(self) -> dict[str, float]:
        """For each of KINDS its share of the time; together they are 1."""
        seconds = self.seconds()
        whole = sum(seconds.values())
        return {kind: value / whole for kind, value in seconds.items()}

    @property
    def overlap(self) -> float | None:
        """As `overlap`, of this rank alone."""
        return overlap([self])

    def __repr__(self) -> str:
        return (
            f"RankTimeline(rank {self.rank} of {self.world_size}, {len(self.steps)} steps, "
            f"{1e3 * self.step_seconds:.1f} ms a step)"
        )


def overlap(timelines: Sequence[RankTimeline]) -> float | None:
    """Share of the all-reduce time that is hidden behind backward compute, from 0 to 1.

    The sum over ranks and steps of |A & B| / |A|, where A is the time in which at least one
    all-reduce is under way and B the time in which backward computes. What is not hidden is time
    in which the rank waits, or does what comes after backward.

    Returns:
        None if there was no all-reduce: a single rank, or a step within `no_sync()`.
    """
    return _hidden_share(step for timeline in timelines for step in timeline.steps)


def step_overlaps(timelines: Sequence[RankTimeline]) -> list[float | None]:
    """As `overlap`, for each recorded step of all ranks: how far it scatters.

    Raises:
        ValueError: the ranks recorded different numbers of steps.
    """
    return [_hidden_share(steps) for steps in zip(*(t.steps for t in timelines), strict=True)]


def typical_step(timelines: Sequence[RankTimeline]) -> int:
    """The number of the step whose overlap is nearest to that of all steps: the one to draw.

    Raises:
        ValueError: the ranks recorded different numbers of steps.
    """
    whole = overlap(timelines)
    if whole is None:
        return -1
    each = enumerate(step_overlaps(timelines))
    return min(each, key=lambda at: abs((-1.0 if at[1] is None else at[1]) - whole))[0]


def _hidden_share(steps: Iterable[StepTimeline]) -> float | None:
    hidden = whole = 0
    for step in steps:
        calls = [(call.start_ns, call.stop_ns) for call in step.all_reduces]
        hidden += length(intersection(calls, step.work.get(BACKWARD, ())))
        whole += length(calls)
    return hidden / whole if whole else None


def mean_shares(timelines: Sequence[RankTimeline]) -> dict[str, float]:
    """`RankTimeline.shares` averaged over the ranks.

    Raises:
        ValueError: no timelines.
    """
    if not timelines:
        raise ValueError("no timelines: expected one a rank, as launch(...).values has them")
    shares = [timeline.shares() for timeline in timelines]
    return {kind: statistics.fmean(share[kind] for share in shares) for kind in KINDS}


def waiting_for_the_last(timelines: Sequence[RankTimeline]) -> float:
    """Share of the all-reduce time in which not all ranks had started: the price of stragglers.

    For ranks of one machine only: it compares their clocks. A step in which ranks have different
    numbers of all-reduces is left out: one that is not waited for may end in the next step.

    Raises:
        ValueError: the ranks recorded different numbers of steps.
    """
    waited = whole = 0
    for steps in zip(*(timeline.steps for timeline in timelines), strict=True):
        if len({len(step.all_reduces) for step in steps}) > 1:
            continue
        for calls in zip(*(step.all_reduces for step in steps), strict=True):
            last = max(call.start_ns for call in calls)
            waited += sum(min(last, call.stop_ns) - call.start_ns for call in calls)
            whole += sum(call.stop_ns - call.start_ns for call in calls)
    return waited / whole if whole else 0.0
