"""Small processes in the place of ranks: they start within a millisecond."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable

from ddp_helpers.ranks import wire
from ddp_helpers.ranks.messages import Outcome


class Child:
    """A forked process, as its launcher knows one of multiprocessing's."""

    def __init__(self, main: Callable[[], int | None]) -> None:
        self.pid = os.fork()
        if self.pid == 0:
            code = 99
            try:
                code = main() or 0
            finally:
                os._exit(code)
        self.sentinel = os.pidfd_open(self.pid)
        self.exitcode: int | None = None
        self.closed = False

    def join(self) -> None:
        if self.exitcode is None:
            self.exitcode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def close(self) -> None:
        assert self.exitcode is not None
        os.close(self.sentinel)
        self.closed = True

    def end(self) -> None:
        """For the end of a test, whatever has become of it."""
        if self.exitcode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.join()
        if not self.closed:
            self.close()


class Speaker:
    """The rank's side of the protocol, for a child that runs no worker."""

    def __init__(self, number: int, address: str) -> None:
        os.setsid()
        signal.signal(wire.STACK_SIGNAL, signal.SIG_IGN)
        self.link = wire.call(address, number)
        _, self.files = wire.receive_files(self.link)

    def prints(self, text: str) -> None:
        os.write(self.files.output, text.encode())

    def leaves(self, **outcome: object) -> int:
        """Tell an outcome; returns the exit code that belongs to it."""
        whole = {"value": None, "error": None, "exit_code": 0, "seconds": 1.5} | outcome
        wire.leave_outcome(Outcome(**whole), self.files.outcome, self.link)
        return whole["exit_code"]


def memory_file(data: bytes = b"") -> int:
    file = os.memfd_create("test")
    os.write(file, data)
    return file
