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
from typing import Any

import numpy as np

from ddp_helpers.scaling.formulas import (
    ALL_REDUCE,
    CHOICES,
    Linear,
    buckets,
    communication_end,
    expected_slowest,
    hierarchical,
)
from ddp_helpers.scaling.records import (
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

GRADIENT_SIZE = 4  # bytes of a float32 gradient, which buckets are filled with
SLICE = 2**14  # numbers that numpy works on at once: they fit into a core's cache


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


def step_seconds(machine: Machine, work: Work, setup: Setup) -> np.ndarray:
    """The step time alone, without ranges: `predict(...).step.value`, for grids of millions.

    Works on slices that stay in the processor's cache, so 10,000 ranks by 1,000 configurations
    take less than a second.

    Returns:
        Seconds, of the shape to which the setup's arrays broadcast.
    """
    arrays = {
        field.name: np.asarray(getattr(setup, field.name))
        for field in dataclasses.fields(setup)
        if isinstance(getattr(setup, field.name), np.ndarray)
    }
    shape = np.broadcast_shapes(*(array.shape for array in arrays.values()))
    if not shape:
        return np.asarray(_parts(machine, work, setup, 0)["step"])
    found = np.empty(shape)
    rows = max(1, SLICE * shape[0] // max(found.size, 1))
    for start in range(0, shape[0], rows):
        part = slice(start, start + rows)
        cut: dict[str, Any] = {  # of those fields that may hold arrays
            name: array[part] if array.ndim == len(shape) and array.shape[0] > 1 else array
            for name, array in arrays.items()
        }
        found[part] = _parts(machine, work, dataclasses.replace(setup, **cut), 0)["step"]
    return found


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
    several = np.where(ranks > 1, 1.0, 0.0)
    slow, crowd = _slowdown(machine, ranks)
    pace = (1 + sign * work.error) * slow * crowd
    batch = work.seconds_per_batch + work.seconds_per_sample * np.asarray(setup.batch_size_per_rank)
    once = pace * batch
    total, exposed, late = _communication(machine, work, setup, sign, once)
    if machine.cores is not None:
        # a core that computes can't carry messages: without spare cores nothing is hidden
        local = np.minimum(ranks, machine.ranks_per_node or ranks)
        spare = np.clip((machine.cores - machine.background) / local - 1, 0, 1)
        exposed = total - spare * (total - exposed)
    exposed = several * exposed
    overhead = machine.step_overhead + machine.byte_overhead * work.parameters * GRADIENT_SIZE
    overhead = several * crowd * overhead
    compute = once * setup.accumulation_steps + pace * work.optimizer_seconds
    straggler = machine.noise * expected_slowest(ranks) * compute
    step = compute + exposed + overhead + straggler
    loading = pace / slow * work.data_seconds_per_sample * setup.batch_size_per_rank
    loading = loading * setup.accumulation_steps
    data = np.maximum(loading / work.data_workers - step, 0) if work.data_workers else loading
    return {
        "step": (step + data) * (1 + sign * machine.model_error),
        "compute": compute,
        "communication": several * total,
        "exposed": exposed,
        "latency": several * late,
        "straggler": straggler,
        "overhead": overhead,
        "data": data,
    }


def _communication(
    machine: Machine, work: Work, setup: Setup, sign: int, once: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(seconds of all-reduce, of them not hidden, of them latency) of a step."""
    last = work.late_parameters * GRADIENT_SIZE
    size = work.parameters * GRADIENT_SIZE - last
    number, first, others = buckets(size, setup.bucket_cap_mb, work.tensors)
    wire = GRADIENT_BYTES[setup.gradient_dtype] / GRADIENT_SIZE / np.asarray(setup.compression)
    cost = _all_reduce(machine, setup, sign, size * wire / number)
    cost = Linear(cost.fixed, cost.per_byte * wire)
    sent = number + (last > 0)
    late = sent * cost.fixed
    total = late + (size + last) * cost.per_byte
    if not setup.overlap:
        return total, total, late
    backward = once * work.backward_share
    ends = communication_end(backward, number, first, others, cost)
    if last:  # its gradient is ready when the backward ends
        ends = np.maximum(ends, backward) + cost(last)
    exposed = ends - backward
    if sign > 0:  # at the bad end of the range
        exposed = exposed + machine.overlap_error * (total - exposed)
    return total, exposed, late


def _slowdown(machine: Machine, ranks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How ranks of a node slow each other down: by shared memory, and by sharing cores.

    All that want a core get the same part of one, the other programs of a busy machine, too.
    Both are relative to a rank alone on this machine, as the work was measured.
    """
    if machine.cores is None:
        return np.ones(()), np.ones(())
    local = np.minimum(ranks, machine.ranks_per_node or ranks)
    used = np.minimum(local, machine.cores)
    slow = 1 + (machine.contention - 1) * (used - 1) / max(machine.cores - 1, 1)
    alone = max((1 + machine.background) / machine.cores, 1.0)
    crowd = np.maximum((local + machine.background) / machine.cores, 1.0) / alone
    return slow, crowd


def _all_reduce(machine: Machine, setup: Setup, sign: int, size: Numbers) -> Linear:
    """One all-reduce of all ranks as a cost that is linear in the message, chosen for `size`."""
    ranks = np.asarray(setup.ranks)
    inside = _ends(machine.link, sign)
    names = CHOICES.get(setup.algorithm, (setup.algorithm,))
    found = [_one_algorithm(machine, setup, ranks, name, inside, sign) for name in names]
    best = found[0]
    for cost in found[1:]:
        better = cost(size) < best(size)
        best = Linear(
            np.where(better, cost.fixed, best.fixed), np.where(better, cost.per_byte, best.per_byte)
        )
    # a rank that waits for a message leaves its core to another: only the rest is in the way
    stretch = np.maximum(machine.communication_cpu * _slowdown(machine, ranks)[1], 1.0)
    return Linear(best.fixed * stretch, best.per_byte * stretch)


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
