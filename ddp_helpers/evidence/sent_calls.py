"""What a rank sends and receives, call by call, also inside DDP."""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from ddp_helpers.evidence.collective_methods import POINT_TO_POINT


@dataclass(frozen=True)
class Call:
    """A call of one rank that exchanged data."""

    name: str
    """As in torch.distributed: all_reduce, broadcast, send, ..."""
    elements: int
    dtype: str
    """Such as float32; of several tensors the first one's."""
    at: int
    """time.time_ns() when it was made."""


@contextlib.contextmanager
def watched() -> Iterator[list[Call]]:
    """What this rank sends and receives inside the block; the list is full after it.

    torch's flight recorder keeps each collective, also DDP's own, which are made in C++. It does
    not keep send and recv, so these are looked at where Python makes them.
    """
    calls: list[Call] = []
    start = _last_record()
    originals = {name: getattr(dist.ProcessGroup, name) for name in POINT_TO_POINT}
    for name, original in originals.items():
        setattr(dist.ProcessGroup, name, _noted(original, name, calls))
    try:
        yield calls
    finally:
        for name, original in originals.items():
            setattr(dist.ProcessGroup, name, original)
        calls += [_call(entry) for entry in _records() if entry["record_id"] > start]
        calls.sort(key=lambda call: call.at)


def _noted(original: Callable, name: str, calls: list[Call]) -> Callable:
    @functools.wraps(original)
    def call(group: object, tensors: list, *args: object, **kwargs: object) -> object:
        elements, dtype = sum(t.numel() for t in tensors), str(tensors[0].dtype)
        short = name.partition("_")[0]
        calls.append(Call(short, elements, dtype.removeprefix("torch."), time.time_ns()))
        return original(group, tensors, *args, **kwargs)

    return call


def _records() -> list[dict]:
    from torch._C._distributed_c10d import _dump_fr_trace_json

    return json.loads(_dump_fr_trace_json()).get("entries", [])


def _last_record() -> int:
    return max((entry["record_id"] for entry in _records()), default=-1)


def _call(entry: dict) -> Call:
    sizes = entry["input_sizes"] or entry["output_sizes"]
    elements = sum(torch.Size(size).numel() for size in sizes)
    name = entry["profiling_name"].rpartition(":")[2]
    dtype = next(iter(entry["input_dtypes"] or entry["output_dtypes"]), "")
    return Call(name, elements, dtype, entry["time_created_ns"])
