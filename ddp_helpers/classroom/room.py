"""Can this machine seat a class?

python -m ddp_helpers classroom check --seats 30
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ddp_helpers.arguments import check_whole
from ddp_helpers.classroom.seats import RANKS, SeatCost, measure
from ddp_helpers.environment import facts as machine
from ddp_helpers.environment.check import usable_cpu_count
from ddp_helpers.environment.report import Check, EnvironmentReport

GIB = 2**30
SHM_OF_A_SEAT = 32 * 2**20  # a few batches of loader workers; an estimate
RESERVE = 0.1  # of the memory, for everything else
CROWD = 2  # ranks a core: a cell takes twice as long, and nobody waits for it
FILES_FACTOR = 2  # of what was measured: data, loader workers and figures open files, too


@dataclass(frozen=True)
class Room:
    """What this machine has; inf where there is no limit."""

    cores: int
    memory: int
    """Bytes that are free."""
    shm: int
    ports: int
    """Those that the system hands out."""
    threads: float
    """Threads that one user may start, or all together, whichever is fewer."""
    files: float
    """Files that all processes together may open."""
    files_of_a_process: float


def check(seats: int) -> EnvironmentReport:
    """Measure a seat with real ranks, and say whether this machine has room for so many.

    Raises:
        ValueError: seats is no number of at least 1.
        TimeoutError: a seat did not start.
    """
    check_whole("seats", seats, least=1)
    room = look()  # before the seats that are measured take some of it
    return judge(seats, measure(), room)


def look() -> Room:
    """The facts about this machine."""
    low, high = map(int, (machine.PROC / "sys/net/ipv4/ip_local_port_range").read_text().split())
    in_use, _, most = map(int, (machine.PROC / "sys/fs/file-nr").read_text().split())
    return Room(
        cores=usable_cpu_count(),
        memory=machine.memory()[0],
        shm=machine.shm()[0],
        ports=high - low + 1,
        threads=_thread_limit(),
        files=most - in_use,
        files_of_a_process=machine.open_files()[0],
    )


def _thread_limit() -> float:
    import resource

    own = resource.getrlimit(resource.RLIMIT_NPROC)[0]
    limits = [math.inf if own == resource.RLIM_INFINITY else own]
    for path in (
        *(machine.PROC / "sys/kernel" / name for name in ("threads-max", "pid_max")),
        *(machine.CGROUP / name for name in ("pids.max", "pids/pids.max")),
    ):
        if path.exists() and path.read_text().strip().isdigit():
            limits.append(int(path.read_text()))
    return min(limits)


def judge(seats: int, cost: SeatCost, room: Room) -> EnvironmentReport:
    """Compare what `seats` need with what is there."""
    return EnvironmentReport(
        (
            _cores(seats, room),
            _memory(seats, cost, room),
            _row("/dev/shm", seats * (cost.shm + SHM_OF_A_SEAT), room.shm, _bytes, SHM_ADVICE),
            _row("Ports", seats * cost.sockets, room.ports, _plain, PORT_ADVICE),
            _row("Processes", seats * cost.threads, room.threads, _threads, THREAD_ADVICE),
            _row("Open files", seats * cost.files, room.files, _plain, FILE_ADVICE),
            _files_of_one(cost, room),
        )
    )


SHM_ADVICE = (
    "In Docker: --shm-size. Else: `sudo mount -o remount,size=2g /dev/shm`, or num_workers=0."
)
PORT_ADVICE = "`sysctl net.ipv4.ip_local_port_range`: give the system a wider range."
THREAD_ADVICE = "Raise `ulimit -u`, and pids.max or `docker run --pids-limit` in a container."
FILE_ADVICE = "Raise `sysctl fs.file-max`."
ULIMIT = "Raise `ulimit -n` in the shell or service that starts JupyterLab, to 4096 or so."


def _cores(seats: int, room: Room) -> Check:
    """Ranks share cores, so few cores never fail: they make everybody wait."""
    crowd = seats * RANKS / room.cores
    value = f"{room.cores} for {seats * RANKS} ranks, if all {seats} run a cell at once"
    if crowd <= CROWD:
        return Check("CPU cores", "pass", value)
    advice = f"A cell can take up to {crowd:.0f} times as long while all run it at once. "
    return Check(
        "CPU cores", "warn", value, advice + "Let half of the room read, or work in pairs."
    )


def _files_of_one(cost: SeatCost, room: Room) -> Check:
    need, have = FILES_FACTOR * cost.most_files, room.files_of_a_process
    return _row("Open files of one", need, have, _plain, ULIMIT)


def _memory(seats: int, cost: SeatCost, room: Room) -> Check:
    need = cost.first_memory + (seats - 1) * cost.memory
    each = f"; a further seat adds {_bytes(cost.memory)}, measured"
    fits = 1 + int((room.memory * (1 - RESERVE) - cost.first_memory) // max(1, cost.memory))
    advice = f"About {max(0, fits)} seats fit. Shut down idle kernels, or take a second machine."
    row = _row("Memory", need, room.memory, _bytes, advice)
    return Check(row.name, row.status, row.value + each, row.advice)


def _row(name: str, need: float, have: float, text: Callable[[float], str], advice: str) -> Check:
    value = f"{text(need)} needed, {'no limit' if have == math.inf else text(have)} there"
    if need > have:
        return Check(name, "fail", value, advice)
    if need > have * (1 - RESERVE):
        return Check(name, "warn", value, f"It is tight. {advice}")
    return Check(name, "pass", value)


def _bytes(number: float) -> str:
    return f"{number / GIB:.1f} GiB" if number >= GIB else f"{number / 2**20:.0f} MiB"


def _plain(number: float) -> str:
    return f"{number:.0f}"


def _threads(number: float) -> str:
    return f"{number:.0f} threads"
