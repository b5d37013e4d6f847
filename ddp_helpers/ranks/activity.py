"""What the system knows of a rank's work, without asking the rank: does it move, is it blocked?"""

from __future__ import annotations

import contextlib
import glob
import os
import platform
from dataclasses import dataclass
from typing import NamedTuple

FEW_TICKS = 5  # of CPU time, 0.01 s each: what threads that only wait use up in some seconds


class Calls(NamedTuple):
    """The numbers of the system calls in which a rank waits."""

    futex: int
    """For a lock, a condition: of another thread, which in gloo waits for other ranks."""
    others: tuple[int, ...]
    """For what comes through a socket: poll, ppoll, recvfrom, recvmsg; how torch's store waits."""
    idle: tuple[int, ...]
    """How a thread of gloo waits when nothing comes: epoll_wait, epoll_pwait."""


CALLS = {
    "x86_64": Calls(202, (7, 271, 45, 47), (232, 281)),
    "aarch64": Calls(98, (73, 207, 212), (22,)),
}
NO_TIMEOUT = "0x0"


@dataclass(frozen=True)
class Activity:
    """What a process and all that it has started have done so far."""

    ticks: int
    bytes: int
    """Read and written."""
    processes: frozenset[int]
    wakes: int
    """How often the main thread has begun or stopped to run: not once within one long wait."""

    def differs(self, before: Activity) -> bool:
        """True if they have done something since."""
        worked = self.ticks > before.ticks + FEW_TICKS
        ours, theirs = ((a.bytes, a.processes, a.wakes) for a in (self, before))
        return worked or ours != theirs


def look(pid: int) -> Activity:
    """What this process and its descendants have done so far."""
    family = [pid]
    for each in family:  # it grows meanwhile
        for file in glob.glob(f"/proc/{each}/task/*/children"):
            family += map(int, _read(file).split())
    ticks = sum(sum(map(int, _stat(each)[11:13])) for each in family)
    return Activity(ticks, sum(map(_bytes, family)), frozenset(family), _wakes(pid))


def may_be_stuck(pid: int) -> bool:
    """False for a process that runs, sleeps for a time, waits for a disk, or is debugged."""
    state = (_stat(pid) or ["X"])[0]
    call, calls = _system_call(pid, pid), _calls()
    waits = not call or not calls or int(call[0]) in (calls.futex, *calls.others)
    return state == "T" or (state == "S" and waits)


def waits_for_a_lock(pid: int) -> bool:
    """True if its main thread waits for another thread, without a limit, and all of them wait.

    Where the system does not tell, False.
    """
    threads = [int(name) for name in _names(f"/proc/{pid}/task")]
    main, calls = _system_call(pid, pid), _calls()
    if not (main and calls) or len(look(pid).processes) > 1:  # a child may end the wait
        return False
    if int(main[0]) != calls.futex or main[4] != NO_TIMEOUT:
        return False
    told = [_system_call(pid, thread) for thread in threads]
    return all(each and int(each[0]) in (calls.futex, *calls.idle) for each in told)


def uses_gpu(pid: int) -> bool:
    """True if it has a GPU open."""
    folder = f"/proc/{pid}/fd"
    for name in _names(folder):
        with contextlib.suppress(OSError):
            if os.readlink(f"{folder}/{name}").startswith(("/dev/nvidia", "/dev/kfd", "/dev/dri")):
                return True
    return False


def _calls() -> Calls | None:
    return CALLS.get(platform.machine())


def _system_call(pid: int, thread: int) -> list[str] | None:
    """Number and arguments of the call in which a thread is blocked; None if that is not known."""
    words = _read(f"/proc/{pid}/task/{thread}/syscall").split()
    return words if len(words) > 4 and words[0].isdigit() else None


def _stat(pid: int) -> list[str]:
    """State and what follows it, as in `man proc_pid_stat` from the third field on."""
    return _read(f"/proc/{pid}/stat").rpartition(")")[2].split()


def _bytes(pid: int) -> int:
    return sum(int(line.split()[1]) for line in _read(f"/proc/{pid}/io").splitlines())


def _wakes(pid: int) -> int:
    lines = _read(f"/proc/{pid}/status").splitlines()
    return sum(int(line.split()[1]) for line in lines if "ctxt_switches:" in line)


def _names(folder: str) -> list[str]:
    with contextlib.suppress(OSError):
        return os.listdir(folder)
    return []


def _read(file: str) -> str:
    with contextlib.suppress(OSError), open(file) as text:
        return text.read()
    return ""
