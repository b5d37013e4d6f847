"""The last collective that a rank has called, kept where its launcher can read it at any time.

A stack tells what a rank does now. This tells how far it had come: a rank that sleeps, or is
stuck in C++, can't be asked any more.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import sys
from collections.abc import Callable, Mapping
from types import FrameType

from ddp_helpers.evidence.collective_methods import INPUTS, POINT_TO_POINT
from ddp_helpers.evidence.frames import is_user_file, make_frame
from ddp_helpers.evidence.records import LastCall

SIZE = 1024  # bytes of the record; the rest of a longer one is lost


def keep_last_call(file: int) -> None:
    """From now on write each collective of this process to a file: its number, name and place.

    Args:
        file: a descriptor; always the same `SIZE` bytes are written, at its beginning.
    """
    import torch.distributed as dist

    numbers = itertools.count(1)
    for name in (*INPUTS, *POINT_TO_POINT):
        original = getattr(dist.ProcessGroup, name, None)
        if original is not None:
            setattr(dist.ProcessGroup, name, _kept(original, file, numbers))


def read_last_call(data: bytes, names: Mapping[str, str]) -> LastCall | None:
    """What `keep_last_call` has written, or None if there was no call so far.

    Args:
        data: what the file holds.
        names: how the reader knows files.
    """
    try:
        number, name, filename, line, function = json.loads(data)
    except ValueError:
        return None
    return LastCall(number, name, make_frame(filename, line, function, names))


def _kept(original: Callable, file: int, numbers: itertools.count) -> Callable:
    @functools.wraps(original)
    def call(*args: object, **kwargs: object) -> object:
        record = json.dumps([next(numbers), *_caller(original.__name__)])
        os.pwrite(file, record.encode().ljust(SIZE)[:SIZE], 0)
        return original(*args, **kwargs)

    return call


def _caller(method: str) -> tuple[str, str, int, str]:
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
