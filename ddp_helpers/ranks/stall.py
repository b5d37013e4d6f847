"""Tells, while ranks still run, that none of them can go on: who waits in what, and where.

A rank that waits is not wrong: another may load data, sleep, read, or wait for an answer from
outside. So nothing is said, and no rank is disturbed, until the system shows that no rank has done
anything for seconds, and that each is blocked in a wait which only another rank, or another thread
of its own, can end.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from ddp_helpers.evidence.records import innermost_user_frame, name_ranks
from ddp_helpers.evidence.waits import waiting_in
from ddp_helpers.ranks import activity
from ddp_helpers.ranks.activity import Activity
from ddp_helpers.ranks.launched import Events, LaunchedRank
from ddp_helpers.ranks.messages import Job
from ddp_helpers.ranks.stacks import LONG_STACK_WAIT, take_stacks

BETWEEN = 1.0  # seconds between looks at what the system knows, which costs the ranks nothing
STILL = 5.0  # seconds without a move
MOST_PLACES = 4  # in one line
PLURAL = {"has": "have", "is": "are", "waits": "wait"}


class StallWatch:
    """Looks at the ranks once a second; `tell()` has something to say at most once."""

    def __init__(self) -> None:
        self._looked_at = time.monotonic()
        self._before: dict[int, Activity] = {}
        self._still_since = self._looked_at
        self._is_done = False  # until something moves again

    def tell(self, ranks: Sequence[LaunchedRank], job: Job, events: Events) -> str | None:
        """One line, once no rank can go on; None as long as one may."""
        now = time.monotonic()
        if now < self._looked_at + BETWEEN:
            return None
        self._looked_at = now
        living = [rank for rank in ranks if not rank.ended]
        if not self._are_still(living) or self._is_done or now < self._still_since + STILL:
            return None
        if not all(activity.may_be_stuck(rank.pid) for rank in living):
            return None
        take_stacks(living, job, events, LONG_STACK_WAIT)
        self._is_done = True
        self._before = _look(living)  # what they wrote was for us
        return _line(ranks)

    def _are_still(self, living: Sequence[LaunchedRank]) -> bool:
        """True unless one of them has moved since the time from which on they were still."""
        # one that still starts, or is about to end, is on its way
        on_the_way = any(rank.outcome or not rank.link for rank in living)
        seen = _look(living)
        same = seen.keys() == self._before.keys() and not on_the_way
        if same and not any(seen[rank].differs(self._before[rank]) for rank in seen):
            return True
        self._before, self._still_since, self._is_done = seen, self._looked_at, False
        return False


def _look(living: Sequence[LaunchedRank]) -> dict[int, Activity]:
    return {rank.rank: activity.look(rank.pid) for rank in living}


def _line(ranks: Sequence[LaunchedRank]) -> str | None:
    """Where they stand, or None if one of them may go on by itself."""
    places: dict[str, list[int]] = {}
    for rank in ranks:
        place = _place(rank)
        if place is None:
            return None
        places.setdefault(place, []).append(rank.rank)
    if not any(waiting_in(rank.stack) for rank in ranks if not rank.ended):
        return None  # no rank waits for another
    told = [
        f"{name_ranks(numbers)} {place if len(numbers) == 1 else _plural(place)}"
        for place, numbers in places.items()
    ]
    return f"no rank has moved for {STILL:g} s: {'; '.join(told[:MOST_PLACES])}"


def _place(rank: LaunchedRank) -> str | None:
    """What a rank does that can't end by itself, or None."""
    if rank.ended:
        return "has ended"
    if rank.stopped:
        return "is paused from outside (`kill -CONT` wakes it)"
    frame, call = innermost_user_frame(rank.stack), waiting_in(rank.stack)
    if frame is None or activity.uses_gpu(rank.pid):  # a GPU works without the CPU
        return None
    if call:
        return f"waits in {call} at {frame}"
    source = f": {frame.source}" if frame.source else ""
    return f"waits at {frame}{source}" if activity.waits_for_a_lock(rank.pid) else None


def _plural(place: str) -> str:
    verb, _, rest = place.partition(" ")
    return f"{PLURAL[verb]} {rest}"
