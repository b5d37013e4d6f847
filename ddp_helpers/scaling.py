"""Predict what more ranks, other buckets, batches, links or gradients do to a training step.

    machine = measure_machine()                                     # machine_costs.py, or
    machine = Machine("8 GPUs", Link("NVLink", 5e-6, 2e11))         # from a data sheet
    work = measure_work(make_model, (1, 28, 28))                    # or Work("ResNet50", ...)
    predict(machine, work, Setup(ranks=64)).step                    # seconds, with its range
    predict(machine, work, Setup(ranks=np.arange(1, 10_001))).efficiency.value      # an array

A step is forward, then backward with the all-reduce of finished buckets beside it (Li et al.
2020, "PyTorch Distributed"), then the optimizer. Ranges come from moving all errors of the
inputs to their good or to their bad end at once, so they are wide on purpose.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from ddp_helpers.cost_formulas import (
    ALL_REDUCE,
    Linear,
    buckets,
    communication_end,
    expected_slowest,
    hierarchical,
)
from ddp_helpers.cost_records import (
    GRADIENT_BYTES,
    Link,
    Machine,
    Numbers,
    Prediction,
    Range,
    Setup,
    Work,
    plain,
)

__all__ = [
    "Link",
    "Machine",
    "Prediction",
    "Range",
    "Setup",
    "Work",
    "all_reduce_seconds",
    "predict",
]


def predict(machine: Machine, work: Work, setup: Setup) -> Prediction:
    """Predict one setup, or many at once where the setup holds arrays.

    Returns:
        A Prediction; its numbers have the shape to which the setup's arrays broadcast.

    Raises:
        ValueError: arrays of the setup that do not broadcast.
    """
    alone = dataclasses.replace(setup, ranks=1)
    steps, efficiencies = [], []
    for sign in (0, -1, 1):
        parts = _parts(machine, work, setup, sign)
        one = _parts(machine, work, alone, sign)
        steps.append(parts["step"])
        efficiencies.append(np.minimum(one["step"] / parts["step"], 1.0))
        if sign == 0:
            middle = parts
    ends = np.broadcast_arrays(*efficiencies)
    each = np.asarray(setup.batch_size_per_rank) * setup.accumulation_steps
    samples = np.asarray(setup.ranks) * each
    return Prediction(
        setup=setup,
        step=_range(steps[0], steps[1], steps[2]),
        samples_per_second=_range(samples / steps[0], samples / steps[2], samples / steps[1]),
        efficiency=_range(ends[0], np.minimum.reduce(ends), np.maximum.reduce(ends)),
        price_per_hour=plain(np.asarray(setup.ranks) * machine.price_per_hour),
        **{name: plain(value) for name, value in middle.items() if name != "step"},
    )


def all_reduce_seconds(machine: Machine, setup: Setup, size: Numbers) -> Range:
    """Seconds of one all-reduce of `size` bytes, alone, without DDP.

    Raises:
        ValueError: a size below 0.
    """
    if np.any(np.asarray(size) < 0):
        raise ValueError(f"size={size!r}: expected at least 0 bytes")
    value, low, high = (_all_reduce(machine, setup, sign, size)(size) for sign in (0, -1, 1))
    return _range(value, low, high)


def _parts(machine: Machine, work: Work, setup: Setup, sign: int) -> dict[str, np.ndarray]:
    """The parts of a step in seconds; sign -1 and 1 take each input at its good and bad end."""
    ranks = np.asarray(setup.ranks)
    off = 1 + sign * work.error
    slow, crowd = _slowdown(machine, ranks)
    batch = work.seconds_per_batch + work.seconds_per_sample * np.asarray(setup.batch_size_per_rank)
    once = off * slow * crowd * batch
    optimizer = off * slow * crowd * work.optimizer_seconds
    size = work.parameters * GRADIENT_BYTES["float32"]
    number, first, others = buckets(size, setup.bucket_cap_mb, work.tensors)
    wire = GRADIENT_BYTES[setup.gradient_dtype] / GRADIENT_BYTES["float32"] / setup.compression
    cost = _all_reduce(machine, setup, sign, size * wire / number)
    cost = Linear(cost.fixed, cost.per_byte * wire)
    total = number * cost.fixed + size * cost.per_byte
    backward = once * work.backward_share
    if setup.overlap:
        exposed = communication_end(backward, number, first, others, cost) - backward
    else:
        exposed = total
    if machine.cores is not None:
        # cores that compute can't carry messages: what the node's cores must do is a floor
        busy = np.minimum(ranks, machine.ranks_per_node or ranks) / machine.cores
        work_of_node = busy * (once / crowd + machine.communication_cpu * total / crowd)
        exposed = np.maximum(exposed, work_of_node - once)
    exposed = np.where(ranks > 1, exposed, 0.0)
    several = np.where(ranks > 1, 1.0, 0.0)
    overhead = several * crowd * (machine.step_overhead + machine.byte_overhead * size)
    compute = once * setup.accumulation_steps + optimizer
    straggler = machine.noise * expected_slowest(ranks) * compute
    step = compute + exposed + overhead + straggler
    waited = off * crowd * work.data_seconds_per_sample * setup.batch_size_per_rank
    waited = waited * setup.accumulation_steps
    if work.data_workers:
        waited = np.maximum(waited / work.data_workers - step, 0.0)
    return {
        "step": (step + waited) * (1 + sign * machine.model_error),
        "compute": compute,
        "communication": np.where(ranks > 1, total, 0.0),
        "exposed": exposed,
        "latency": np.where(ranks > 1, number * cost.fixed, 0.0),
        "straggler": straggler,
        "overhead": overhead,
        "data": waited,
    }


def _slowdown(machine: Machine, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How ranks of a node slow each other down: by shared memory, and by sharing cores."""
    if machine.cores is None:
        return np.ones(()), np.ones(())
    local = np.minimum(ranks, machine.ranks_per_node or ranks)
    used = np.minimum(local, machine.cores)
    slow = 1 + (machine.contention - 1) * (used - 1) / max(machine.cores - 1, 1)
    return slow, np.maximum(local / machine.cores, 1.0)


def _all_reduce(machine: Machine, setup: Setup, sign: int, size: Numbers) -> Linear:
    """One all-reduce of all ranks as a cost that is linear in the message, chosen for `size`."""
    ranks = np.asarray(setup.ranks)
    inside = _ends(machine.link, sign)
    names = ALL_REDUCE if setup.algorithm == "best" else [setup.algorithm]
    found = [_one_algorithm(machine, setup, ranks, name, inside, sign) for name in names]
    best = found[0]
    for cost in found[1:]:
        better = cost(size) < best(size)
        best = Linear(
            np.where(better, cost.fixed, best.fixed), np.where(better, cost.per_byte, best.per_byte)
        )
    _, crowd = _slowdown(machine, ranks)
    return Linear(best.fixed * crowd, best.per_byte * crowd)


def _one_algorithm(
    machine: Machine,
    setup: Setup,
    ranks: np.ndarray,
    name: str,
    inside: tuple[float, float],
    sign: int,
) -> Linear:
    per_node = machine.ranks_per_node
    if machine.network is None or per_node is None:
        return ALL_REDUCE[name](ranks, *inside)
    between = _ends(machine.network, sign)
    if setup.hierarchical:
        return hierarchical(name, ranks, per_node, inside, between)
    slowest = (max(inside[0], between[0]), min(inside[1], between[1]))
    flat, local = ALL_REDUCE[name](ranks, *slowest), ALL_REDUCE[name](ranks, *inside)
    one_node = ranks <= per_node
    return Linear(
        np.where(one_node, local.fixed, flat.fixed),
        np.where(one_node, local.per_byte, flat.per_byte),
    )


def _ends(link: Link, sign: int) -> tuple[float, float]:
    return (
        link.latency * (1 + sign * link.latency_error),
        link.bandwidth / (1 + sign * link.bandwidth_error),
    )


def _range(value: np.ndarray, low: np.ndarray, high: np.ndarray) -> Range:
    return Range(plain(value), plain(low), plain(high))
