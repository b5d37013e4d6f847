"""Ctrl-C, held back until a moment when it does no harm."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any]
ENOUGH = 3  # whoever presses it this often means it, even if the terminal no longer reads


class HeldInterrupts:
    """Within the block a Ctrl-C is only noted; `deliver()` lets it happen, and so does the end.

    An interrupt may strike between any two instructions, also between the birth of a process and
    the line that notes its number. In a thread other than the main one there is nothing to hold:
    Python delivers signals to the main thread only. Nor is there where no Python code would run:
    ignored (`nohup`, a shell's `&`) it stays ignored, and what would kill this process still does.
    """

    def __init__(self) -> None:
        self._came: list[tuple[int, FrameType | None]] = []
        self._before: Handler | None = None

    def __enter__(self) -> HeldInterrupts:
        before = signal.getsignal(signal.SIGINT)
        # SIG_IGN and SIG_DFL can't be called; None is a handler of C, which we could not bring back
        if callable(before) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, self._note)
            self._before = before
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        if kind is None:  # else an error is on its way already, perhaps a Ctrl-C
            self.deliver()

    @property
    def waiting(self) -> int:
        """How many have come and were not let in yet."""
        return len(self._came)

    def forget(self) -> None:
        """Those that have come since asked for what has happened already."""
        self._came.clear()

    def deliver(self) -> None:
        """Let a Ctrl-C that has come happen now: by default that raises KeyboardInterrupt."""
        if self._came and self._before is not None:
            number, frame = self._came[0]
            self._came.clear()  # before the call, which may raise: the same one must not come twice
            self._before(number, frame)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._came.append((number, frame))
        if len(self._came) >= ENOUGH:
            self.deliver()


@contextlib.contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Keep Ctrl-C from the processes that are started in the block; each lets it in when ready.

    A terminal sends it to the whole process group, and a child that still imports would die of
    it with a traceback of its own.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
