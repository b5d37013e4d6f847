"""Can this machine seat a class?

python -m ddp_helpers classroom check --seats 30
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ddp_helpers.arguments import check_whole
from ddp_helpers.classroom import rights
from ddp_helpers.classroom.lessons import find_lesson
from ddp_helpers.classroom.seats import LESSONS, SeatCost, measure
from ddp_helpers.environment import facts as machine
from ddp_helpers.environment.check import usable_cpu_count
from ddp_helpers.environment.report import Check, EnvironmentReport

GIB = 2**30
SHM_OF_A_SEAT = 32 * 2**20  # a few batches of loader workers; an estimate
RESERVE = 0.1  # of the memory, for everything else
CROWD = 2  # ranks a core: a cell takes twice as long, and nobody waits for it
FILES_FACTOR = 2  # of what was measured: other lessons open more


@dataclass(frozen=True)
class Room:
    """What this machine has; inf where there is no limit."""

    cores: int
    memory: int
    """Bytes that are free; of the tightest control group above, if that is less."""
    shm: int
    ports: int
    """Those that the system hands out."""
    threads: float
    """Threads that may still be started."""
    files: float
    """Files that all processes together may open."""
    files_of_a_process: float


def check(
    seats: int,
    lessons: Sequence[str] = LESSONS,
    source: str | Path | None = None,
    tell: Callable[[str], None] = lambda line: None,
) -> EnvironmentReport:
    """Run lessons, and say whether this machine has room for so many who run one at once.

    Args:
        seats: learners.
        lessons: the numbers of notebooks; by default those that need most.
        source: the folder of notebooks; by default the one beside the package.
        tell: is called with a line before each notebook, and with the verdict.

    Raises:
        ValueError: seats is no number of at least 1.
        FileNotFoundError: there is no such notebook.
        TimeoutError: a kernel did not start.
    """
    check_whole("seats", seats, least=1)
    notebooks = [find_lesson(each, source) for each in lessons]
    room = look()  # before the seat that is measured takes some of it
    costs = []
    for each in notebooks:
        tell(f"running {each.name} in a kernel: 1 to 2 minutes, more if others use the cores")
        costs.append(measure(each))
    judged = judge(seats, costs, room)
    tell(verdict(seats, judged))
    return EnvironmentReport((*judged.checks, rights.namespaces(), rights.py_spy()))


def verdict(seats: int, judged: EnvironmentReport) -> str:
    """The answer in one line, for whoever has not learned to read the table."""
    short = [row.name for row in judged.checks if row.status == "fail"]
    if short:
        return f"{seats} seats do not fit here as things are: see {', '.join(short)}"
    slow = judged["CPU cores"].status == "warn"
    return f"{seats} seats fit here" + (", and share few cores: see CPU cores" if slow else "")


def look() -> Room:
    """The facts about this machine."""
    low, high = map(int, (machine.PROC / "sys/net/ipv4/ip_local_port_range").read_text().split())
    in_use, _, most = map(int, (machine.PROC / "sys/fs/file-nr").read_text().split())
    return Room(
        cores=usable_cpu_count(),
        memory=machine.memory()[0],
        shm=machine.shm()[0],
        ports=high - low + 1,
        threads=rights.tasks_left(),
        files=most - in_use,
        files_of_a_process=machine.open_files()[0],
    )


def judge(seats: int, costs: Sequence[SeatCost], room: Room) -> EnvironmentReport:
    """Compare what `seats` need with what is there; of several lessons what needs most."""
    cost = functools.reduce(SeatCost.or_more, costs)
    held = cost.held
    most, have = FILES_FACTOR * held.most_files, room.files_of_a_process
    return EnvironmentReport(
        (
            *(_lesson(seats, each) for each in costs),
            _cores(seats, cost, room),
            _memory(seats, cost, room),
            _row("/dev/shm", seats * (cost.shm + SHM_OF_A_SEAT), room.shm, _bytes, SHM_ADVICE),
            _row("Ports", seats * held.sockets, room.ports, _plain, PORT_ADVICE),
            _row("Processes", seats * held.threads, room.threads, _threads, THREAD_ADVICE),
            _row("Open files", seats * held.files, room.files, _plain, FILE_ADVICE),
            _row("Open files of one", most, have, _plain, ULIMIT),
        )
    )


SHM_ADVICE = (
    "In Docker: --shm-size. Else: `sudo mount -o remount,size=2g /dev/shm`, or num_workers=0."
)
PORT_ADVICE = "`sysctl net.ipv4.ip_local_port_range`: give the system a wider range."
THREAD_ADVICE = "Raise `ulimit -u`, and pids.max or `docker run --pids-limit` in a container."
FILE_ADVICE = "Raise `sysctl fs.file-max`."
ULIMIT = "Raise `ulimit -n` in the shell or service that starts JupyterLab, to 4096 or so."


def _lesson(seats: int, cost: SeatCost) -> Check:
    held = cost.held
    name = f"Notebook {cost.lesson}"
    value = f"run here alone: {cost.seconds:.0f} s, at most {held.ranks} ranks and "
    value += f"{held.processes} processes at once; {seats} at once need "
    value += f"{_bytes(cost.memory_of(seats))} of memory"
    if not cost.problem:
        return Check(name, "pass", value)
    advice = "Run this notebook yourself first: what fails alone fails in a class."
    return Check(name, "fail", f"{value}; {cost.problem}", advice)


def _cores(seats: int, cost: SeatCost, room: Room) -> Check:
    """Ranks share cores, so few cores never fail: they make everybody wait."""
    ranks = seats * cost.held.ranks
    minutes = max(cost.seconds, seats * cost.held.cpu_seconds / room.cores) / 60
    value = f"{room.cores} for {ranks} ranks, if all {seats} run a cell at once; the whole "
    value += f"notebook takes them about {max(1, minutes):.0f} min then"
    crowd = ranks / room.cores
    if crowd <= CROWD:
        return Check("CPU cores", "pass", value)
    advice = f"A cell can take up to {crowd:.0f} times as long while all run it at once. "
    return Check(
        "CPU cores", "warn", value, advice + "Let half of the room read, or work in pairs."
    )


def _memory(seats: int, cost: SeatCost, room: Room) -> Check:
    own, shared = cost.held.memory, cost.held.files_mapped
    value = f"; {_bytes(own)} a seat at its peak, and {_bytes(shared)} that all share"
    fits = max(0, int((room.memory * (1 - RESERVE) - shared) // max(1, own)))
    advice = f"About {fits} seats fit. Shut down idle kernels, let half of the room read, or take "
    advice += "a second machine."
    row = _row("Memory", cost.memory_of(seats), room.memory, _bytes, advice)
    return Check(row.name, row.status, row.value + value, row.advice)


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
