"""A cost model of a training step: what it predicts, what it was measured with, how it is drawn.

Predicting needs no torch; measuring loads it.
"""

from typing import TYPE_CHECKING

from ddp_helpers.scaling.records import Link, Machine, Prediction, Range, Setup, Work
from ddp_helpers.scaling.step_time import all_reduce_seconds, predict, step_seconds

if TYPE_CHECKING:
    from ddp_helpers.scaling.machine_costs import measure_machine
    from ddp_helpers.scaling.work_costs import measure_step, measure_work, undisturbed

__all__ = [
    "Link",
    "Machine",
    "Prediction",
    "Range",
    "Setup",
    "Work",
    "all_reduce_seconds",
    "measure_machine",
    "measure_step",
    "measure_work",
    "predict",
    "step_seconds",
    "undisturbed",
]


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ddp_helpers.scaling import machine_costs, work_costs

    return next(vars(room)[name] for room in (machine_costs, work_costs) if name in vars(room))
