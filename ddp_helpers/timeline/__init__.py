"""Where the time of a training step goes: recorded by torch's profiler, read, and drawn.

The records can be read without torch; recording loads it.
"""

from typing import TYPE_CHECKING

from ddp_helpers.timeline.records import (
    KINDS,
    Collective,
    RankTimeline,
    StepTimeline,
    mean_shares,
    overlap,
    step_overlaps,
    typical_step,
    waiting_for_the_last,
)

if TYPE_CHECKING:
    from ddp_helpers.timeline.record import record_timeline

__all__ = [
    "KINDS",
    "Collective",
    "RankTimeline",
    "StepTimeline",
    "mean_shares",
    "overlap",
    "record_timeline",
    "step_overlaps",
    "typical_step",
    "waiting_for_the_last",
]


def __getattr__(name: str) -> object:
    if name != "record_timeline":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ddp_helpers.timeline.record import record_timeline

    return record_timeline
