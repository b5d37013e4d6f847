"""A model of a training step: its time, its memory, what was measured for it, its figures.

Predicting needs no torch; measuring loads it.
"""

from typing import TYPE_CHECKING

from ddp_helpers.scaling.memory import (
    Holding,
    ModelMemory,
    RankMemory,
    memory_per_rank,
    transformer,
)
from ddp_helpers.scaling.records import Link, Machine, Prediction, Range, Setup, Work
from ddp_helpers.scaling.step_time import all_reduce_seconds, predict, step_seconds

if TYPE_CHECKING:
    from ddp_helpers.scaling.machine_costs import measure_machine
    from ddp_helpers.scaling.memory_trace import trace_model
    from ddp_helpers.scaling.work_costs import measure_step, measure_work, undisturbed

__all__ = [
    "Holding",
    "Link",
    "Machine",
    "ModelMemory",
    "Prediction",
    "Range",
    "RankMemory",
    "Setup",
    "Work",
    "all_reduce_seconds",
    "measure_machine",
    "measure_step",
    "measure_work",
    "memory_per_rank",
    "predict",
    "step_seconds",
    "trace_model",
    "transformer",
    "undisturbed",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ddp_helpers.scaling import machine_costs, memory_trace, work_costs

    rooms = (machine_costs, work_costs, memory_trace)
    return next(vars(room)[name] for room in rooms if name in vars(room))
