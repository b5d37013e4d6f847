"""What a process inherits from the one that starts it, besides its environment and its folder.

A rank is forked from the fork server, which may be an hour old, and so may a rank that stands by.
Each takes over what holds for its launcher at the moment of the launch, as if that had started it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from dataclasses import dataclass

LIMITS = sorted({getattr(resource, name) for name in dir(resource) if name.startswith("RLIMIT_")})
# Python ignores the first two itself, and nobody can ignore the others
_LEFT_ALONE = {signal.SIGPIPE, signal.SIGXFSZ, signal.SIGKILL, signal.SIGSTOP}
# from here on they belong to programs, and the launcher has one of them
_ORDINARY = range(1, signal.SIGRTMIN)


@dataclass(frozen=True)
class Surroundings:
    """What holds for a process."""

    path: tuple[str, ...]
    """`sys.path`, where an empty entry has become the folder that it means."""
    umask: int | None
    limits: dict[int, tuple[int, int]]
    """By the number of a limit (`ulimit`): the soft one and the hard one."""
    cpus: frozenset[int]
    nice: int
    ignored: frozenset[int]
    """Signals that are ignored, as under `nohup`."""


def look() -> Surroundings:
    """What holds for this process."""
    folder = os.getcwd()
    told = _told_by_the_system()
    ignored = int(told.get("SigIgn", "0"), 16)
    return Surroundings(
        path=tuple(entry or folder for entry in sys.path),
        umask=int(told["Umask"], 8) if "Umask" in told else None,
        limits={number: resource.getrlimit(number) for number in LIMITS},
        cpus=frozenset(os.sched_getaffinity(0)),
        nice=os.getpriority(os.PRIO_PROCESS, 0),
        ignored=frozenset(number for number in _ORDINARY if ignored >> (number - 1) & 1),
    )


def take_over(wanted: Surroundings) -> None:
    """Let the same hold for this process, as far as it may; it is in the wanted folder already."""
    sys.path[:] = wanted.path
    if wanted.umask is not None:
        os.umask(wanted.umask)
    for number, limits in wanted.limits.items():
        # a hard limit can be lowered only, and then the launcher's own does not count
        with contextlib.suppress(ValueError, OSError):
            if resource.getrlimit(number) != limits:
                resource.setrlimit(number, limits)
    with contextlib.suppress(OSError):
        if wanted.cpus != os.sched_getaffinity(0):
            os.sched_setaffinity(0, wanted.cpus)
    with contextlib.suppress(OSError):
        if wanted.nice != os.getpriority(os.PRIO_PROCESS, 0):
            os.setpriority(os.PRIO_PROCESS, 0, wanted.nice)
    _ignore(wanted.ignored)


def _ignore(wanted: frozenset[int]) -> None:
    for number in signal.valid_signals().intersection(_ORDINARY) - _LEFT_ALONE:
        ignored = signal.getsignal(number) is signal.SIG_IGN
        if ignored != (number in wanted):
            usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            signal.signal(number, signal.SIG_IGN if number in wanted else usual)


def _told_by_the_system() -> dict[str, str]:
    with contextlib.suppress(OSError), open("/proc/self/status") as file:
        return dict(line.split(":\t", 1) for line in file if ":\t" in line)
    return {}
