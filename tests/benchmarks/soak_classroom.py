"""A class at work: many Jupyter kernels run a whole notebook at the same moment, two ranks each.

    python tests/benchmarks/soak_classroom.py --seats 30
    python tests/benchmarks/soak_classroom.py --seats 4 --notebook 02

Each learner has a kernel of their own and solves an exercise at the end. All must come to the
last cell with no error that is not meant, and leave nothing behind. Prints the peak memory.
"""

from __future__ import annotations

import argparse
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import nbformat
import psutil
from soak_hosts import KernelHost, MemoryWatch

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
EXERCISE = (
    "from ddp_helpers.exercises import core, check\n"
    "checked = check('01.2', core.load('01.2').solution, seconds={limit})"
)


@dataclass
class Learner:
    """How far one learner came."""

    number: int
    cells: int = 0
    seconds: float = 0.0
    slowest: float = 0.0
    problems: tuple[str, ...] = ()


def learn(host: KernelHost, number: int, cells: list, limit: float) -> Learner:
    """Run all cells one after the other, as `Run All` does, then an exercise."""
    learner = Learner(number)
    started = time.monotonic()
    for source, may_fail in cells:
        begun = time.monotonic()
        try:
            reply = host.run(source, seconds=limit)
        except TimeoutError:
            learner.problems += (f"cell {learner.cells} did not end within {limit:g} s",)
            break
        learner.slowest = max(learner.slowest, time.monotonic() - begun)
        if reply.died or (reply.ename and not may_fail):
            learner.problems += (f"cell {learner.cells}: {reply.ename} {reply.evalue[:800]}",)
            break
        learner.cells += 1
    else:
        code = EXERCISE.format(limit=limit)
        reply = host.run(code, "[checked.passed, checked.message]", limit)
        if reply.ename or not reply.answer[0]:
            learner.problems += (f"the exercise: {reply}",)
    learner.seconds = time.monotonic() - started
    return learner


def read(number: str) -> list[tuple[str, bool]]:
    """The code cells of a notebook, and whether each is meant to fail."""
    path = next(NOTEBOOKS.glob(f"{number}_*.ipynb"))
    cells = nbformat.read(path, as_version=4).cells
    return [
        (cell.source, "raises-exception" in cell.metadata.get("tags", []))
        for cell in cells
        if cell.cell_type == "code" and "ddp_helpers.exercises" not in cell.source
    ]


def soak(options: argparse.Namespace) -> int:
    """All at once; prints what went wrong, then the counts."""
    cells, started = read(options.notebook), time.monotonic()
    together = threading.Barrier(options.seats)
    hosts: list[KernelHost] = []

    def seat(number: int) -> Learner:
        try:
            host = KernelHost(patience=options.limit)
            hosts.append(host)
            # a learner's own folder and progress file
            file = host.folder / "progress.json"
            host.run(f"os.environ['DDP_HELPERS_PROGRESS'] = {str(file)!r}")
        except BaseException:
            together.abort()  # nobody waits for one who does not come
            raise
        together.wait(options.limit)
        return learn(host, number, cells, options.limit)

    try:
        with MemoryWatch() as memory, ThreadPoolExecutor(options.seats) as pool:
            learners = list(pool.map(seat, range(options.seats)))
            for host in hosts:
                host.end()
        left = [text for host in hosts for text in host.left(False, "")]
    finally:
        for host in hosts:
            host.close()
    tell(learners, left, len(cells))
    print(f"peak memory {memory.peak / 1024:.1f} GB (PSS) in {memory.most_processes} processes")
    print(f"{time.monotonic() - started:.0f} s, {psutil.cpu_count()} cores")
    good = sum(not learner.problems for learner in learners)
    print(f"{options.seats} learners with notebook {options.notebook} at once, {good} completed")
    return 0 if good == options.seats and not left else 1


def tell(learners: list[Learner], left: list[str], cells: int) -> None:
    """What went wrong, and how long it took."""
    for learner in learners:
        for problem in learner.problems:
            print(f"learner {learner.number}: {problem}", flush=True)
    for text in left:
        print(f"left behind: {text}", flush=True)
    times = sorted(learner.seconds for learner in learners)
    slowest = max(learner.slowest for learner in learners)
    print(
        f"{cells} cells took {times[0]:.0f} s for the first learner, {times[-1]:.0f} s for the "
        f"last; the slowest cell {slowest:.0f} s"
    )


def main() -> int:
    """Command line; exit code 1 if not all completed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seats", type=int, default=30)
    parser.add_argument("--notebook", default="01", help="its number")
    parser.add_argument("--limit", type=float, default=900, help="seconds for one cell")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # end the kernels too
    return soak(options)


if __name__ == "__main__":
    sys.exit(main())
