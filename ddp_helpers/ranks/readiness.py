"""What a launch needs of its process and its machine; looked at before any rank starts."""

from __future__ import annotations

import functools
import os

from ddp_helpers.environment.check import TASKS, TASKS_PER_RANK, files_needed
from ddp_helpers.environment.facts import loopback, open_files, tasks


def open_standard_files() -> None:
    """A shell can close them (`<&- >&-`), and what is opened next would get their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # what is opened next gets the lowest number that is free: this one
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def check_open_files(nprocs: int) -> None:
    """Raise OSError if this process may not open as many files as `nprocs` ranks need."""
    limit, _ = open_files()
    needed = files_needed(nprocs)
    if limit < needed:
        raise OSError(
            f"`ulimit -n` is {limit}, but this process needs {needed} open files to start {nprocs} "
            f"ranks: `ulimit -n {max(4096, needed)}` in the shell that starts Python or JupyterLab"
        )


def check_tasks(nprocs: int) -> None:
    """Raise OSError if this user may not run as many processes and threads as that."""
    limit, running = tasks()
    needed = TASKS + TASKS_PER_RANK * nprocs
    if limit < running + needed:
        raise OSError(
            f"`ulimit -u` is {limit}, and {running} of your processes and threads run already, but "
            f"{nprocs} ranks need {needed}: see `ps -Lu $USER` for what can end, or ask for a "
            "higher limit"
        )


@functools.cache  # once it has connected; an error is no answer that is kept
def check_loopback() -> None:
    """Raise OSError if 127.0.0.1 is down: torch would call for a minute, and name another one."""
    try:
        loopback()
    except OSError as error:
        raise OSError(
            f"loopback (127.0.0.1), where ranks of one machine meet, does not connect ({error}): "
            "`sudo ip link set lo up`, and allow it in the firewall"
        ) from None
