"""When a rank's exchanges began, when it began to wait for them, and when they were done.

Kept where the launcher can read it at any time, as the last call is (last_call.py): a rank that
hangs is killed, and its calls are what its picture is made of.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from types import FrameType
from typing import Any

from ddp_helpers.evidence.collective_methods import (
    INPUTS,
    POINT_TO_POINT,
    is_asynchronous,
    options_in,
)
from ddp_helpers.evidence.frames import is_user_file, make_frame
from ddp_helpers.evidence.last_call import SIZE as BEGIN
from ddp_helpers.evidence.last_call import caller
from ddp_helpers.evidence.patches import Patches
from ddp_helpers.evidence.records import ALL, ALONE, RECV, SEND, TimedCall

SLOT = 1024  # bytes of a call's record
SLOTS = 200  # calls that are kept: the last ones
LATER = ("isend", "irecv", "batch_isend_irecv")  # what is waited for by a call of its own
MEET, CLEAN_UP = "init_process_group", "clean-up of the group"


class TimedCalls:
    """Notes the exchanges of this process in a file, behind the record of the last call.

    A call has a slot of its own, which is written anew when the call goes on: so what is there is
    whole whenever the process ends, and a long run takes no more room than a short one.
    DDP's own exchanges are made in C++ and not seen; the backward that makes them is.
    """

    def __init__(self, file: int) -> None:
        self._file = file
        self._numbers = itertools.count()
        self._flying: dict[int, tuple[object, int, list]] = {}
        """Calls that nobody has waited for yet, by the id of what torch gave for them."""
        self._ranks_of: dict[str, list[int]] = {}
        self._places: defaultdict[object, itertools.count] = defaultdict(itertools.count)

    def install(self, patches: Patches) -> None:
        """Stand in for what begins an exchange, and for what waits for one."""
        import torch
        import torch.distributed as dist

        for name in (*INPUTS, *POINT_TO_POINT):
            patches.put(dist.ProcessGroup, name, self._exchange)
        patches.put(dist.Work, "wait", self._wait)
        patches.put(torch.Tensor, "backward", functools.partial(self._block, "backward", ALONE))
        patches.put(dist, MEET, functools.partial(self._block, MEET, ALL))

    def _exchange(self, original: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> object:
            name, *place = caller(original.__name__)
            name = CLEAN_UP if _is_clean_up() else name
            about = self._about(original.__name__, args)
            later = name in LATER or is_asynchronous(options_in(args))
            number, record = self._begin([name, *place, *about], waits=not later)
            work = original(*args, **kwargs)
            if work is None:  # such as monitored_barrier
                self._done(number, record)
            else:
                self._flying[id(work)] = work, number, record
            return work

        return call

    def _wait(self, original: Callable) -> Callable:
        def wait(work: object, *args: object, **kwargs: object) -> object:
            _, number, record = self._flying.pop(id(work), (None, 0, None))
            if record is not None and record[-2] is None:
                record[-2] = time.monotonic()
                self._write(number, record)
            result = original(work, *args, **kwargs)
            if record is not None:
                self._done(number, record)
            return result

        return wait

    def _block(self, name: str, kind: str, original: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            place = next(self._places[kind])
            number, record = self._begin([*caller(name), kind, 0, None, [], place], waits=True)
            result = original(*args, **kwargs)
            self._done(number, record)
            return result

        return call

    def _begin(self, record: list, waits: bool) -> tuple[int, list]:
        number, now = next(self._numbers), time.monotonic()
        record += [now, now if waits else None, None]
        self._write(number, record)
        return number, record

    def _done(self, number: int, record: list) -> None:
        record[-1] = time.monotonic()
        self._write(number, record)

    def _about(self, method: str, args: tuple) -> list:
        """Its kind, bytes, the one other rank it is about, its group's ranks, and its place."""
        kind = {"recv_anysource": RECV}.get(method, method if method in (SEND, RECV) else ALL)
        size, peer, ranks = 0, None, []
        with contextlib.suppress(Exception):  # torch's own method says what is wrong with it
            group, *given = args
            ranks = self._ranks(group)
            root = (
                given[1] if method in (SEND, RECV) else getattr(options_in(given), "rootRank", -1)
            )
            peer = ranks[root] if 0 <= root < len(ranks) else None
            size = _bytes(given[(INPUTS[method] or 0) if kind == ALL else 0])
        key = (kind, *ranks) if kind == ALL else (kind, peer)
        return [kind, size, peer, ranks, next(self._places[key])]

    def _ranks(self, group: Any) -> list[int]:
        import torch.distributed as dist

        name = group.group_name
        if name not in self._ranks_of:
            self._ranks_of[name] = dist.get_process_group_ranks(group)
        return self._ranks_of[name]

    def _write(self, number: int, record: list) -> None:
        text = json.dumps([number, *record]).encode()
        if len(text) > SLOT:  # of a very large group, or in a very deep folder
            text = json.dumps(
                [number, record[0], "", 0, "", *record[4:7], [], *record[8:]]
            ).encode()
        os.pwrite(self._file, text.ljust(SLOT), BEGIN + number % SLOTS * SLOT)


def read_timed_calls(data: bytes, names: Mapping[str, str]) -> tuple[TimedCall, ...]:
    """What `TimedCalls` has noted, in the order in which the calls began.

    Args:
        data: what the file holds.
        names: how the reader knows files.
    """
    slots = (data[at : at + SLOT].strip(b"\0 ") for at in range(BEGIN, len(data), SLOT))
    found = []
    for slot in filter(None, slots):
        with contextlib.suppress(ValueError):  # the rank died while it wrote
            found.append(json.loads(slot))
    calls = []
    for _, name, filename, line, function, kind, size, peer, group, *rest in sorted(found):
        frame = make_frame(filename, line, function, names)
        calls.append(TimedCall(name, frame, kind, size, peer, tuple(group), *rest))
    return tuple(calls)


def _is_clean_up() -> bool:
    """Whether it is the barrier at the end of `process_group()`, which its reader did not write."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and not is_user_file(frame.f_code.co_filename):
        if frame.f_code.co_name == "cleanup_distributed":
            return True
        frame = frame.f_back
    return False


def _bytes(value: Any) -> int:
    if isinstance(value, list | tuple):
        return sum(map(_bytes, value))
    return value.numel() * value.element_size()
