"""The last collective that a rank has called, kept where its launcher can read it at any time.

A stack tells what a rank does now. This tells how far it had come: a rank that sleeps, or is
stuck in C++, can't be asked any more.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import FrameType
from typing import Any

from ddp_helpers.evidence.collective_methods import INPUTS, POINT_TO_POINT, options_in
from ddp_helpers.evidence.frames import is_user_file, make_frame
from ddp_helpers.evidence.records import LastCall

SIZE = 4096  # bytes of the record; of a longer one the older calls are lost
KEPT = 3  # calls: a rank may be past the one in which another is stuck


def keep_last_call(file: int) -> None:
    """From now on write each collective of this process to a file: its number, name and place.

    Args:
        file: a descriptor; always the same `SIZE` bytes are written, at its beginning.
    """
    import torch.distributed as dist

    numbers = itertools.count(1)
    kept: deque[list] = deque(maxlen=KEPT)
    for name in (*INPUTS, *POINT_TO_POINT):
        original = getattr(dist.ProcessGroup, name, None)
        if original is not None:
            setattr(dist.ProcessGroup, name, _kept(original, file, numbers, kept))


def read_last_call(data: bytes, names: Mapping[str, str]) -> LastCall | None:
    """What `keep_last_call` has written, or None if there was no call so far.

    Args:
        data: what the file holds.
        names: how the reader knows files.
    """
    try:
        records = json.loads(data)
    except ValueError:
        return None
    last, *before = [
        LastCall(number, name, make_frame(filename, line, function, names), *told)
        for number, name, filename, line, function, *told in records
    ]
    return replace(last, before=tuple(before))


def _kept(original: Callable, file: int, numbers: itertools.count, kept: deque[list]) -> Callable:
    @functools.wraps(original)
    def call(*args: object, **kwargs: object) -> object:
        told = _what(original.__name__, args)
        kept.appendleft([next(numbers), *caller(original.__name__), *told])
        os.pwrite(file, _fitting(list(kept)), 0)
        return original(*args, **kwargs)

    return call


def _fitting(records: list[list]) -> bytes:
    """As many of the records as there is room for."""
    text = json.dumps(records).encode()
    if len(text) > SIZE and len(records) > 1:
        return _fitting(records[:-1])
    return text.ljust(SIZE)[:SIZE]


def _what(method: str, args: tuple) -> tuple[str, str, int | None]:
    """Of a call: its group, the tensors that must agree, and the one other rank it is about."""
    with contextlib.suppress(Exception):  # torch's own method says what is wrong with it
        group, *given = args
        at = 0 if method in POINT_TO_POINT else INPUTS[method]
        one = group.size(), getattr(group, "group_name", "")
        tensors = "" if at is None else _tensors(given[at])
        root = getattr(options_in(given), "rootRank", None)
        return f"{one[1]} of {one[0]}", tensors, given[1] if method in ("send", "recv") else root
    return "", "", None


def _tensors(value: Any) -> str:
    first = value[0] if isinstance(value, list | tuple) and value else value
    if isinstance(first, list | tuple):
        first = first[0]
    return f"{str(first.dtype).removeprefix('torch.')} {tuple(first.shape)}"


def caller(method: str) -> tuple[str, str, int, str]:
    """Name of torch's function that was called, and the reader's line that called it."""
    frame: FrameType | None = sys._getframe(2)
    called = method
    while frame is not None:
        code = frame.f_code
        if is_user_file(code.co_filename):
            return called, code.co_filename, frame.f_lineno, code.co_name
        if code.co_filename.endswith("torch/distributed/distributed_c10d.py"):
            called = code.co_name
        frame = frame.f_back
    return called, "", 0, ""
