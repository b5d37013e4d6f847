"""The jobs that code starts and never waits for.

Not beside the exercises, which use it: a line there counts as the reader's, and then the reader's
own line, and torch's name for what it calls, are not found (last_call.py).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch.distributed as dist

from ddp_helpers.evidence.collective_methods import (
    INPUTS,
    POINT_TO_POINT,
    is_asynchronous,
    options_in,
)
from ddp_helpers.evidence.patches import Patches
from ddp_helpers.evidence.sent_calls import FUNCTIONS

ASYNC_NAMES = {"send": "isend", "recv": "irecv", "recv_anysource": "irecv"}


class Jobs:
    """The jobs that an answer starts, as with async_op=True, and for which nobody has waited.

    They are kept until the end: gloo gives up what is dropped half-way, and the other ranks would
    hang in it.
    """

    WAITS = ("wait", "get_future", "synchronize", "is_completed")

    def __init__(self) -> None:
        self.flying: list[tuple[str, object]] = []
        self.patches = Patches()

    def __enter__(self) -> Jobs:
        for name in (*INPUTS, *POINT_TO_POINT):
            self.patches.put(dist.ProcessGroup, name, functools.partial(self._starting, name))
        for name in self.WAITS:
            self.patches.put(dist.Work, name, self._waiting)
        return self

    def __exit__(self, *error: object) -> None:
        self.patches.undo()

    def left(self) -> str:
        """The names of those that nobody has waited for."""
        return " and ".join(sorted({name for name, _ in self.flying}))

    def _starting(self, name: str, original: Callable) -> Callable:
        called = ASYNC_NAMES.get(name) or f"{FUNCTIONS.get(name, name)}(async_op=True)"

        def call(group: object, *args: object, **kwargs: object) -> object:
            work = original(group, *args, **kwargs)
            options = options_in((*args, *kwargs.values()))
            if work is not None and (name in POINT_TO_POINT or is_asynchronous(options)):
                self.flying.append((called, work))
            return work

        return call

    def _waiting(self, original: Callable) -> Callable:
        def wait(work: object, *args: object, **kwargs: object) -> object:
            result = original(work, *args, **kwargs)
            if result is not False:  # is_completed() says so, and then nobody has waited
                self.flying = [each for each in self.flying if each[1] is not work]
            return result

        return wait
