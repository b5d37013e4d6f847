"""Does `classroom check` foretell memory? So many kernels really run the lesson at the same moment.

    python tests/benchmarks/bench_seats.py                  # 8 seats, notebook 06
    python tests/benchmarks/bench_seats.py --seats 4 --notebook 03

First one seat alone, as the check measures it; then all. Exit code 1 where the prediction is off by
more than 15 percent.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from ddp_helpers.classroom.lessons import find_lesson
from ddp_helpers.classroom.seats import Kernel, kernel, measure, run
from ddp_helpers.classroom.watch import Watch

CLOSE = 0.15
FULL = 0.85  # of the free memory, and no more
PATIENCE = 900.0  # seconds for all kernels to be there
GIB = 2**30


def all_at_once(lesson: Path, seats: int) -> tuple[Watch, list[str]]:
    """So many kernels, from the first cell together; what they held, and what failed."""
    start = threading.Barrier(seats)

    def learn(one: Kernel) -> str:
        start.wait(PATIENCE)
        return run(lesson, one)

    with contextlib.ExitStack() as stack:
        kernels = []
        for _ in range(seats):
            own = stack.enter_context(tempfile.TemporaryDirectory(prefix="seat-"))
            kernels.append(stack.enter_context(kernel(lesson.parent, own)))
        watch = stack.enter_context(Watch(*[one.pid for one in kernels]))
        pool = stack.enter_context(ThreadPoolExecutor(seats))
        return watch, list(pool.map(learn, kernels))


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seats", type=int, default=8)
    parser.add_argument("--notebook", default="06")
    parser.add_argument("--from", dest="source", help="the folder of notebooks")
    options = parser.parse_args()
    lesson = find_lesson(options.notebook, options.source)
    alone = measure(lesson)
    held = alone.held
    print(
        f"alone: {held.memory / GIB:.2f} GiB at the peak, {held.files_mapped / GIB:.2f} of files; "
        f"{held.ranks} ranks, {held.processes} processes, {alone.seconds:.0f} s {alone.problem}",
        flush=True,
    )
    free = psutil.virtual_memory().available
    fit = int((FULL * free - held.files_mapped) // held.memory)
    if fit < options.seats:
        print(f"{free / GIB:.1f} GiB are free: {fit} seats instead of {options.seats}")
        options.seats = max(1, fit)
    predicted = alone.memory_of(options.seats)
    started = time.monotonic()
    watch, problems = all_at_once(lesson, options.seats)
    most = watch.most
    measured = most.memory + most.files_mapped
    for number, problem in enumerate(filter(None, problems)):
        print(f"seat {number}: {problem}")
    print(
        f"{options.seats} at once, notebook {options.notebook}: predicted {predicted / GIB:.2f}, "
        f"measured {measured / GIB:.2f} GiB in {most.processes} processes, {most.ranks} ranks "
        f"({predicted / measured - 1:+.1%}); {time.monotonic() - started:.0f} s, "
        f"{psutil.cpu_count()} cores, {free / GIB:.1f} GiB were free before"
    )
    return int(abs(predicted / measured - 1) > CLOSE)


if __name__ == "__main__":
    sys.exit(main())
