"""Measure this machine for the cost model, with real ranks on small jobs; seconds, not minutes.

    machine = measure_machine()                        # on 1 and 2 ranks
    work = measure_work(SmallCNN, make_batch)          # on 1 rank
    predict(machine, work, Setup(ranks=4)).step        # scaling/step_time.py

Each rank has one thread, as launch() gives it when there are as many ranks as cores. Of repeated
times the lower quartile counts: other programs make a step slower, never faster.
"""

from __future__ import annotations

import dataclasses
import platform
import statistics
from collections.abc import Sequence

import numpy as np
from torch import nn

from ddp_helpers.arguments import check_least
from ddp_helpers.environment.check import usable_cpu_count
from ddp_helpers.scaling.fits import fit_link, robust_fit, spread
from ddp_helpers.scaling.rank_probes import backend, time_all_reduce, time_steps
from ddp_helpers.scaling.records import Machine, Setup, Work
from ddp_helpers.scaling.step_time import predict
from ddp_helpers.scaling.work_costs import (
    SMALL_BATCHES,
    make_probe,
    make_probe_batch,
    run_on_ranks,
    undisturbed,
    undisturbed_step,
    work_of,
)

MESSAGES = (2**12, 2**14, 2**16, 2**18, 2**20, 2**21, 2**22)  # bytes
# by tests/benchmarks/bench_scaling.py, two rounds on two busy cores: 5 and 13 % in the median
MODEL_ERROR = 0.1
MORE_ROUNDS = 3  # where a busy spell hid what a message costs
PROBE_WIDTHS = (128, 384)
# of one round, so that it takes a few seconds; rounds make up for the rest
STEPS, STEP_ROUNDS, MESSAGE_ROUNDS = 10, 2, 8
WHOLE_CORE = 0.95  # a rank that gets this share of a core has no other program beside it


def measure_machine(
    name: str | None = None, *, rounds: int = 3, price_per_hour: float = 0.0
) -> Machine:
    """Measure all-reduce, contention, noise and DDP's own time on 1 and 2 ranks of this machine.

    Rounds go through all measurements in turn, so that a busy spell slows all of them alike. Where
    they do not show what a message costs, a few more are made.

    Raises:
        ValueError: rounds below 1, or a machine too busy to see messages take time.
        LaunchError: a rank failed.
    """
    check_least("rounds", rounds, 1)
    found = [measure_round() for _ in range(rounds)]
    for _ in range(MORE_ROUNDS):
        try:
            return machine_from(found, name, price_per_hour=price_per_hour)
        except ValueError:
            found.append(measure_round())
    return machine_from(found, name, price_per_hour=price_per_hour)


@dataclasses.dataclass(frozen=True)
class Round:
    """What one round of measurements found; `machine_from` puts rounds together."""

    messages: dict[int, float]
    """Seconds of an all-reduce on two ranks, by its bytes."""
    busy: float
    """Seconds of a core for a second of all-reduce."""
    contention: float
    """Computing on two ranks against one, in seconds of a core: sharing memory, not cores."""
    share: float
    """Part of a core that each of two ranks got."""
    noise: float
    works: tuple[Work, ...]
    """The probe models on one rank."""
    steps: tuple[tuple[int, int, float], ...]
    """(number of the work, batch size, seconds) of DDP steps on two ranks."""


def measure_round() -> Round:
    """One round of measurements on one and two ranks; a few seconds."""
    messages, had = _messages(one_core=False)
    crowded, _ = _messages(one_core=True)
    works, steps, ratios, shares, noises = [], [], [], [], []
    for at, width in enumerate(PROBE_WIDTHS):
        probe = _Probe(width)
        one, two, ddp = (
            run_on_ranks(
                time_steps,
                n,
                probe,
                make_probe_batch,
                SMALL_BATCHES,
                steps=STEPS,
                rounds=STEP_ROUNDS,
                ddp=ddp,
            )
            for n, ddp in ((1, None), (2, None), (2, {}))
        )
        for b in SMALL_BATCHES:
            ratios.append(undisturbed(two[0][b].cpu) / undisturbed(one[0][b].cpu))
            # of the whole, as a short step may well fit between two turns of other programs
            shares.append(sum(two[0][b].cpu) / sum(two[0][b].step))
            noises.append(spread(one[0][b].step))
            steps.append((at, b, undisturbed_step(ddp[0][b].step)))
        works.append(work_of(probe, one[0]))
    middle = statistics.median
    # On half of the cores it takes twice as long, if it is all work and no waiting. That hides
    # part of the work, as data stays in one core's cache; the time that the process had a core
    # counts some waiting as work. The truth is between.
    shared = middle(crowded[size] / messages[size] / 2 for size in MESSAGES)
    busy = (min(shared, 1.0) + min(had, 1.0)) / 2
    return Round(
        *(messages, busy, middle(ratios), middle(shares), middle(noises)),
        *(tuple(works), tuple(steps)),
    )


def _messages(one_core: bool) -> tuple[dict[int, float], float]:
    (times, busy), *_ = run_on_ranks(
        time_all_reduce, 2, MESSAGES, MESSAGE_ROUNDS, one_core=one_core
    )
    return {size: undisturbed(each) for size, each in times.items()}, busy


def machine_from(
    found: Sequence[Round], name: str | None = None, *, price_per_hour: float = 0.0
) -> Machine:
    """Fit a machine to rounds of measurements.

    Raises:
        ValueError: no rounds, or a machine too busy to see messages take time.
    """
    if not found:
        raise ValueError("no rounds: expected those of measure_round(), at least one")
    on_gpu = backend() == "nccl"
    points = [(2, size, seconds) for each in found for size, seconds in each.messages.items()]
    where = f"measured on 2 ranks of {platform.node()}, {len(found)} rounds"
    machine = Machine(
        name or platform.node(),
        fit_link("this machine", points, source=where),
        cores=None if on_gpu else usable_cpu_count(),
        contention=max(1.0, statistics.median(each.contention for each in found)),
        background=0.0 if on_gpu else _background(found),
        communication_cpu=0.0 if on_gpu else statistics.median(each.busy for each in found),
        noise=statistics.median(each.noise for each in found),
        price_per_hour=price_per_hour,
        model_error=MODEL_ERROR,
        notes=(where, "one thread a rank; of repeated times the lower quartile"),
    )
    return _with_overheads(machine, found)


def _background(found: Sequence[Round]) -> float:
    """How many other programs want a core: two ranks get less than a core each if any do."""
    share = statistics.median(each.share for each in found)
    return max(usable_cpu_count() / share - 2, 0.0) if share < WHOLE_CORE else 0.0


class _Probe:
    """Makes the probe model of a width; an object, as it must travel to the ranks."""

    def __init__(self, width: int) -> None:
        self.width, self.__name__ = width, f"probe of width {width}"

    def __call__(self) -> nn.Module:
        return make_probe(self.width)


def _with_overheads(machine: Machine, rounds: Sequence[Round]) -> Machine:
    """Fit what DDP adds to each step on two ranks, beyond computing and all-reduce."""
    rows, left, scale = [], [], []
    for each in rounds:
        for at, batch, seconds in each.steps:
            work = each.works[at]
            setup = Setup(ranks=2, batch_size_per_rank=batch)
            left.append(seconds - float(predict(machine, work, setup).step.value))
            rows.append((1.0, 4.0 * work.parameters))
            scale.append(seconds)
    # an error counts against the whole step: what is left may be close to nothing
    found = robust_fit(np.array(rows), np.array(left), np.array(scale))
    # of a rank alone on its core: predict() stretches it where ranks share cores
    cores, others = machine.cores or np.inf, machine.background
    fixed, per_byte = found / max((2 + others) / cores, 1) * max((1 + others) / cores, 1)
    return dataclasses.replace(machine, step_overhead=float(fixed), byte_overhead=float(per_byte))
