"""Ranks that stand by in a notebook: after a launch the fork server forks the next one's at once.

They know nothing of the reader's: a launch tells them all that it would tell a rank that it starts
itself, and they end with it. After a rehearsal each waits for its launcher's word, or for its end,
and needs no time. None is taken twice, none of a fork server that has ended, and none that has
rehearsed under other variables of torch's than the launch has.

The life of one. `fill_up()` has the fork server asked for it, and nobody waits. The child that the
server forks makes a session of its own, asks to be killed when the server is, says that it is
there, rehearses, and then polls two files: its socket, and its launcher as a file, which tells of
that one's end even if another process holds the socket, too. `take()` gives it to a launch, whose
supervisor sends it a number and six files (wire.py); from there on it is a rank like any other. Or
nobody takes it, and it ends: with the launcher, with the server, or after half an hour.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Mapping

from ddp_helpers.ranks import fork_server
from ddp_helpers.ranks.forked import ForkedProcess, end_unused, fork
from ddp_helpers.ranks.notebook import is_kernel
from ddp_helpers.ranks.processes import has_exited, is_stopped
from ddp_helpers.ranks.readiness import check_open_files, check_tasks
from ddp_helpers.ranks.rehearsal import read_once

MOST = 8  # that stand by; a launch of more ranks starts the others as ever
LEAST_FREE = 0.05  # of this machine's memory, without which nobody stands by


class Standby:
    """The ranks that this process has standing by."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ready: list[ForkedProcess] = []
        self._most_asked = 0
        self._filling: threading.Thread | None = None

    def take(self, number: int, env: Mapping[str, str]) -> list[ForkedProcess]:
        """As many processes as asked for; those that stand by come first.

        Args:
            env: the environment of the launch.

        Raises:
            RuntimeError: the fork server ended meanwhile.
        """
        self._wait_until_filled()
        with self._lock:
            fit = self._without_unfit(env)
            taken, self._ready = fit[:number], fit[number:]
            self._most_asked = max(self._most_asked, number)
        return fork(number, taken)

    def fill_up(self, env: Mapping[str, str]) -> None:
        """In a notebook, have as many stand by as the largest launch so far took, up to MOST.

        Returns at once: to ask for them takes a tenth of a short launch, for which a reader need
        not wait. Where this machine or this user has no room for more, there are fewer. A script
        that has launched is mostly at its end: there, none.

        Args:
            env: the environment of the last launch, which the next one is likely to have, too.
        """
        if is_kernel():
            self._wait_until_filled()
            filling = threading.Thread(
                target=self._fill, args=(env,), name="ddp_helpers: ranks stand by", daemon=True
            )
            with contextlib.suppress(RuntimeError):  # this user may run no more threads
                filling.start()
                self._filling = filling

    def _wait_until_filled(self) -> None:
        filling, self._filling = self._filling, None
        if filling is not None:
            filling.join()

    def _fill(self, env: Mapping[str, str]) -> None:
        with self._lock, contextlib.suppress(OSError):
            wanted = min(self._most_asked, MOST)
            self._ready = self._without_unfit(env)
            missing = wanted - len(self._ready)
            if missing <= 0 or fork_server.server_pid() is None or _memory_is_short():
                return
            fork_server.ask_to_tidy()
            check_open_files(missing)
            check_tasks(missing)
            variables = read_once(env)
            for _ in range(missing):
                self._ready.append(ForkedProcess(variables))

    def let_go(self) -> None:
        """End those that stand by."""
        self._wait_until_filled()
        with self._lock:
            unused, self._ready = self._ready, []
            end_unused(unused)

    def numbers(self) -> list[int]:
        """The process numbers of those that stand by."""
        self._wait_until_filled()
        with self._lock:
            return [each.pid for each in self._ready if not each.has_ended() and each.pid]

    def _without_unfit(self, env: Mapping[str, str]) -> list[ForkedProcess]:
        now = fork_server.server_pid(), read_once(env)
        fit = [
            each
            for each in self._ready
            if (each.server, each.rehearses_with) == now and _is_fit(each)
        ]
        end_unused(each for each in self._ready if each not in fit)
        return fit

    def hold(self) -> None:
        """Before a fork of this process: it must not come while one is asked for."""
        self._lock.acquire()

    def go_on(self) -> None:
        """After a fork of this process, in this one."""
        self._lock.release()

    def forget(self) -> None:
        """After a fork, in the child: they are the parent's, and must see its end."""
        self._lock = threading.Lock()
        self._filling = None  # a fork takes no thread along
        for each in self._ready:
            each.close()
        self._ready = []


def _is_fit(process: ForkedProcess) -> bool:
    """False for one that somebody has killed or paused."""
    if process.has_ended():
        return False
    return process.pid is None or not (has_exited(process.pid) or is_stopped(process.pid))


def _memory_is_short() -> bool:
    with contextlib.suppress(OSError, KeyError, ValueError), open("/proc/meminfo") as file:
        kib = {name: int(rest.split()[0]) for name, rest in (line.split(":") for line in file)}
        return kib["MemAvailable"] < LEAST_FREE * kib["MemTotal"]
    return False


standby = Standby()
os.register_at_fork(
    before=lambda: standby.hold(),
    after_in_parent=lambda: standby.go_on(),
    after_in_child=lambda: standby.forget(),
)
