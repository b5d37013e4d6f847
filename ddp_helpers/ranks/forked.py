"""A rank as a process that the fork server forks; nobody waits until it is there.

multiprocessing asks for one process after the other, and reads the number of each before it asks
for the next. Here all are asked for at once, and each brings the socket along over which it will
hear what it is to do.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import socket
from collections.abc import Iterable, Mapping
from multiprocessing import forkserver, get_context, popen_forkserver, reduction, spawn
from multiprocessing.context import set_spawning_popen

from ddp_helpers.ranks import wire, worker
from ddp_helpers.ranks.fork_server import ENDED, LONGEST_START, server_pid

UNKNOWN = 255  # the exit code of one whose server has ended, as in multiprocessing
# what a rank takes over when it is given its work, and not before
_LATER = ("dir", "sys_path", "sys_argv", "init_main_from_name", "init_main_from_path")


class ForkedProcess:
    """One process, asked for by the constructor; its number is known once it `is_born()`.

    Args:
        rehearses_with: it is to stand by, and to rehearse under these variables; None where a
            launch waits for it.

    Raises:
        OSError: the fork server is gone, or no file can be opened any more.
    """

    def __init__(self, rehearses_with: Mapping[str, str] | None = None) -> None:
        self.server = server_pid()
        self.rehearses_with = rehearses_with
        self.pid: int | None = None
        self.exitcode: int | None = None
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._popen = _Popen(
                    get_context("forkserver").Process(
                        target=worker.stand_by, args=(theirs, rehearses_with)
                    )
                )
        except BaseException:
            self.link.close()
            raise
        self.sentinel: int = self._popen.sentinel

    def is_born(self) -> bool:
        """True once the server has forked it.

        Raises:
            EOFError: the server ended before.
        """
        if self.pid is None and self._can_read():
            self.pid = forkserver.read_signed(self.sentinel)
        return self.pid is not None

    def wait_until_born(self) -> None:
        """Wait for its number.

        Raises:
            EOFError: the server ended before, or did not answer.
        """
        if not self.is_born() and not (self._can_read(LONGEST_START) and self.is_born()):
            raise EOFError

    def has_ended(self) -> bool:
        """True if it has, or if its server has."""
        try:
            return self.is_born() and self._can_read()
        except EOFError:
            return True

    def join(self) -> None:
        """Fetch its exit code; waits if it still runs."""
        if self.exitcode is None:
            try:
                self.exitcode = forkserver.read_signed(self.sentinel)
            except EOFError:
                self.exitcode = UNKNOWN

    def files(self) -> tuple[int, ...]:
        """The files through which this process holds it."""
        return self.link.fileno(), self.sentinel, self._popen.writer

    def close(self) -> None:
        """Give its files back. One that nobody has given anything to do then ends."""
        self.link.close()
        self._popen.close()

    def _can_read(self, seconds: float = 0.0) -> bool:
        poll = select.poll()  # a sentinel's number may be above what select() takes
        poll.register(self.sentinel, select.POLLIN)
        return bool(poll.poll(seconds * 1000))


class _Popen(popen_forkserver.Popen):
    """multiprocessing's, but it does not wait for the process, nor flush what the reader prints."""

    def __init__(self, process: object) -> None:
        self._fds: list[int] = []
        self.returncode = None
        self._launch(process)

    def _launch(self, process: object) -> None:
        prepared = spawn.get_preparation_data(process._name)  # type: ignore[attr-defined]  # no public name
        buffer = io.BytesIO()
        set_spawning_popen(self)
        try:
            told = {name: value for name, value in prepared.items() if name not in _LATER}
            reduction.dump(told, buffer)
            reduction.dump(process, buffer)
        finally:
            set_spawning_popen(None)
        # the writer stays open: its end tells the child that its parent has ended
        self.sentinel, self.writer = forkserver.connect_to_new_process(self._fds)
        try:
            wire.write_whole(self.writer, buffer.getvalue())
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        for file in (self.sentinel, self.writer):
            with contextlib.suppress(OSError):
                os.close(file)


def end_unused(processes: Iterable[ForkedProcess]) -> None:
    """End processes that were given nothing to do, also those that are paused."""
    for process in processes:
        if process.pid is not None and not process.has_ended():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, signal.SIGKILL)
        process.close()


def fork(number: int, ready: list[ForkedProcess]) -> list[ForkedProcess]:
    """As many processes, those that are ready first; each is born, and knows its number.

    Raises:
        RuntimeError: the fork server ended meanwhile.
    """
    processes = list(ready)
    try:
        while len(processes) < number:
            processes.append(ForkedProcess())
        for process in processes:
            process.wait_until_born()
    except (EOFError, ConnectionError, FileNotFoundError):
        end_unused(processes)
    except BaseException:
        end_unused(processes)
        raise
    else:
        return processes
    # raised out here, the error does not hold on to their pipes
    raise RuntimeError(ENDED)
