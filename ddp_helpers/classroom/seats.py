"""What one seat of a class costs on this machine, measured with real ranks: one seat, then two.

A seat is a process like a notebook's kernel, its fork server, and two ranks that have met. What
the second seat adds is the cost of each further one; libraries are in memory only once.
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

RANKS = 2
PATIENCE = 120.0  # seconds for a seat to start: it loads torch


@dataclass(frozen=True)
class SeatCost:
    """What seats need; bytes, or counts."""

    first_memory: int
    """Memory of the first seat, with the libraries that all seats share."""
    memory: int
    """Memory that each further seat adds."""
    processes: int
    threads: int
    sockets: int
    """TCP ports that a seat holds while its ranks talk."""
    files: int
    """Open files of a seat, all its processes."""
    most_files: int
    """Open files of the process that has most."""
    shm: int


def measure() -> SeatCost:
    """Start one seat, then a second one beside it, and look at what they hold.

    Raises:
        TimeoutError: a seat did not start.
    """
    with tempfile.TemporaryDirectory(prefix="seats-") as folder:
        before = shutil.disk_usage("/dev/shm").used
        with _seat(folder, 1) as first:
            alone = _memory(_family(first.pid))
            with _seat(folder, 2) as second:
                both = _memory(_family(first.pid) + _family(second.pid))
                family = _family(second.pid)
                files = [_of(pid, psutil.Process.num_fds) for pid in family]
                return SeatCost(
                    first_memory=alone,
                    memory=max(0, both - alone),
                    processes=len(family),
                    threads=sum(_of(pid, psutil.Process.num_threads) for pid in family),
                    sockets=sum(map(_sockets, family)),
                    files=sum(files),
                    most_files=max(files),
                    shm=max(0, (shutil.disk_usage("/dev/shm").used - before) // 2),
                )


@contextlib.contextmanager
def _seat(folder: str, number: int) -> Iterator[subprocess.Popen[bytes]]:
    """A seat whose ranks have met and wait; it ends with the block."""
    own = Path(folder, str(number))
    own.mkdir()
    code = "import sys; from ddp_helpers.classroom.seats import sit; sit(sys.argv[1])"
    seat = subprocess.Popen(
        [sys.executable, "-c", code, str(own)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=(own / "stderr").open("w"),
    )
    assert seat.stdin  # it is a pipe
    try:
        limit = time.monotonic() + PATIENCE
        while len(list(own.glob("rank*"))) < RANKS:
            if seat.poll() is not None or time.monotonic() > limit:
                said = (own / "stderr").read_text().strip()[-500:]
                raise TimeoutError(f"a seat did not start within {PATIENCE:g} s: {said}")
            time.sleep(0.05)
        yield seat
    finally:
        (own / "end").touch()
        seat.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            seat.wait(20)
        seat.kill()
        seat.wait()


def sit(folder: str) -> None:
    """What a seat runs: a kernel's libraries, then two ranks that wait to be looked at."""
    import ipykernel.kernelapp  # noqa: F401
    import matplotlib.figure  # noqa: F401

    from ddp_helpers.ranks.launcher import launch

    launch(_hold, RANKS, args=(folder,), echo=False, timeout=2 * PATIENCE)


def _hold(folder: str) -> None:
    import torch
    import torch.distributed as dist

    from ddp_helpers.group.lifetime import process_group

    with process_group("gloo") as pg:
        dist.all_reduce(torch.ones(1000))
        Path(folder, f"rank{pg.rank}").touch()
        limit = time.monotonic() + PATIENCE
        while not Path(folder, "end").exists() and time.monotonic() < limit:
            time.sleep(0.05)


def _family(pid: int) -> list[int]:
    with contextlib.suppress(psutil.NoSuchProcess):
        seat = psutil.Process(pid)
        return [pid, *(child.pid for child in seat.children(recursive=True))]
    return []


def _memory(pids: list[int]) -> int:
    """Bytes; of pages that several processes share, each has its share (PSS)."""
    return sum(_of(pid, lambda process: process.memory_full_info().pss) for pid in pids)


def _sockets(pid: int) -> int:
    ports = lambda process: {c.laddr.port for c in process.net_connections("tcp") if c.laddr}
    return _of(pid, lambda process: len(ports(process)))


def _of(pid: int, count: Callable[[psutil.Process], int]) -> int:
    """0 for a process that has gone meanwhile."""
    with contextlib.suppress(psutil.Error):
        return count(psutil.Process(pid))
    return 0
