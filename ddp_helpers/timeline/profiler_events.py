"""From the events of torch's profiler to steps: what was compute, what was communication.

The names are those that torch 2.13 records. On CPU: `gloo:all_reduce` on a thread of the backend,
from the moment that thread takes the work to its end; `autograd::engine::evaluate_function: ...`
for each node of backward; `Optimizer.step#...`; `enumerate(DataLoader)#...`. On GPU, kernels that
name the CPU operation which launched them, and among them `ncclDevKernel_AllReduce_...`.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ddp_helpers.timeline.intervals import Interval, difference, union
from ddp_helpers.timeline.records import (
    BACKWARD,
    DATA,
    FORWARD,
    OPTIMIZER,
    Collective,
    StepTimeline,
)

_NODE_OF_BACKWARD = "autograd::engine::evaluate_function"
_PREFIXES = {
    _NODE_OF_BACKWARD: BACKWARD,
    "torch.distributed.ddp.reducer::": BACKWARD,  # averaged buckets are copied back to .grad
    "Optimizer.": OPTIMIZER,
    "enumerate(DataLoader)": DATA,
}
_BACKENDS = re.compile(r"(gloo|nccl|mpi|ucc|xccl):(\w+)$")
_NCCL_KERNEL = re.compile(r"nccl(?:Dev)?Kernel_([A-Za-z]+)")
_BOOKKEEPING = ("ProfilerStep", "c10d::", "record_param_comms")
_ITEM_SIZES = {"float": 4, "double": 8, "c10::Half": 2, "c10::BFloat16": 2, "long int": 8, "int": 4}
_ITEM_SIZES |= {"long": 8, "bool": 1, "unsigned char": 1, "signed char": 1, "short": 2}


@dataclass(frozen=True)
class Event:
    """What is read of one event of the profiler."""

    name: str
    start: int
    stop: int
    thread: int = 1
    on_gpu: bool = False
    annotation: bool = False
    """A range that someone named, not an operation."""
    number: int = 0
    launched_by: int = 0
    """For a kernel: the number of the CPU operation that launched it."""
    size: int | None = None


def read_events(kineto_events: Iterable) -> list[Event]:
    """Copy what we need out of `profile.profiler.kineto_results.events()`.

    `profile.events()` has the same, but takes some thirty times longer to build.
    """
    return [
        Event(
            name=event.name(),
            start=event.start_ns(),
            stop=event.start_ns() + event.duration_ns(),
            thread=event.start_thread_id(),
            on_gpu=event.device_type().name not in ("CPU",),
            annotation=event.is_user_annotation(),
            number=event.correlation_id(),
            launched_by=event.linked_correlation_id(),
            size=_bytes(event.shapes(), event.dtypes()),
        )
        for event in kineto_events
    ]


def steps_of(events: Sequence[Event]) -> tuple[StepTimeline, ...]:
    """The recorded steps, one for each `ProfilerStep#N`.

    Raises:
        ValueError: no step was recorded.
    """
    marks = sorted(
        (event.start, event.stop, event.thread)
        for event in events
        if event.name.startswith("ProfilerStep") and not event.on_gpu
    )
    if not marks:
        raise ValueError("the profiler recorded no step: call timeline.step() after each step")
    work = _work_on_cpu(events, main_thread=marks[0][2])
    calls = [call for event in events if (call := _collective(event))]
    if any(event.on_gpu for event in events):
        calls, work = _nccl_calls(events), _work_on_gpu(events, work)
    return tuple(
        StepTimeline(
            start,
            stop,
            {kind: _within(intervals, start, stop) for kind, intervals in work.items()},
            tuple(sorted((c for c in calls if start <= c.start_ns < stop), key=_by_start)),
        )
        for start, stop, _ in marks
    )


def _work_on_cpu(events: Sequence[Event], main_thread: int) -> dict[str, list[Interval]]:
    """Forward is what the main thread computes in no other phase: bare models have no mark."""
    found: dict[str, list[Interval]] = {BACKWARD: [], OPTIMIZER: [], DATA: [], FORWARD: []}
    for event in events:
        kind = None if event.on_gpu else _kind(event, main_thread)
        if kind:
            found[kind].append((event.start, event.stop))
    others = union(found[BACKWARD], found[OPTIMIZER], found[DATA])
    work = {kind: union(intervals) for kind, intervals in found.items()}
    return work | {FORWARD: difference(found[FORWARD], others)}


def _kind(event: Event, main_thread: int) -> str | None:
    for prefix, kind in _PREFIXES.items():
        if event.name.startswith(prefix):
            return kind
    if event.annotation or event.thread != main_thread or _BACKENDS.match(event.name):
        return None
    return None if event.name.startswith(_BOOKKEEPING) else FORWARD


def _work_on_gpu(
    events: Sequence[Event], on_cpu: dict[str, list[Interval]]
) -> dict[str, list[Interval]]:
    """A kernel is backward if the CPU operation that launched it is; the GPU runs it later."""
    launched_at = {event.number: event.start for event in events if not event.on_gpu}
    found: dict[str, list[Interval]] = {kind: [] for kind in on_cpu}
    for event in events:
        if event.on_gpu and not event.annotation and not event.name.startswith("nccl"):
            at = launched_at.get(event.launched_by)
            kind = next((k for k, part in on_cpu.items() if at and _holds(part, at)), FORWARD)
            kind = DATA if event.name.startswith("Memcpy HtoD") else kind
            found[kind].append((event.start, event.stop))
    found[DATA] += on_cpu[DATA]  # the loader works on the CPU
    return {kind: union(intervals) for kind, intervals in found.items()}


def _holds(intervals: Sequence[Interval], moment: int) -> bool:
    at = bisect_right(intervals, (moment, math.inf)) - 1
    return at >= 0 and intervals[at][0] <= moment < intervals[at][1]


def _collective(event: Event) -> Collective | None:
    match = _BACKENDS.match(event.name)
    return Collective(match[2], event.start, event.stop, event.size) if match else None


def _nccl_calls(events: Sequence[Event]) -> list[Collective]:
    """On a GPU the kernel is the transfer; `nccl:all_reduce` on the CPU only queues it."""
    sizes = {event.number: event.size for event in events if not event.on_gpu}
    calls = []
    for event in events:
        match = _NCCL_KERNEL.match(event.name) if event.on_gpu else None
        if match:
            name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", match[1]).lower()
            calls.append(Collective(name, event.start, event.stop, sizes.get(event.launched_by)))
    return calls or [call for event in events if not event.on_gpu and (call := _collective(event))]


def _within(intervals: Iterable[Interval], start: int, stop: int) -> tuple[Interval, ...]:
    return tuple((max(a, start), min(b, stop)) for a, b in intervals if a < stop and b > start)


def _by_start(call: Collective) -> int:
    return call.start_ns


def _bytes(shapes: Sequence[Sequence[int]], dtypes: Sequence[str]) -> int | None:
    """Of the first tensor of an operation."""
    for shape, dtype in zip(shapes, dtypes, strict=False):
        if dtype in _ITEM_SIZES and shape:
            return math.prod(shape) * _ITEM_SIZES[dtype]
    return None
