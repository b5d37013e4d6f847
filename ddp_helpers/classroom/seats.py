"""What one seat of a class takes on this machine: a lesson is really run, and watched.

It runs in a kernel as JupyterLab starts it, cell by cell, with all ranks, agents and machines that
its cells start. Of N seats each needs as much at its peak: where all run it at once, they come to
its longest cell together. Files are in memory once for all.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddp_helpers.classroom.watch import Held, Watch
from ddp_helpers.exercises import progress_file

LESSONS = ("04", "06")  # the highest peak of all; and two machines in one
PATIENCE = 120.0  # seconds for a kernel to start
CELL = 300.0  # seconds for a cell; on idle cores none takes a minute


@dataclass(frozen=True)
class SeatCost:
    """What a seat needs at most while it runs a lesson."""

    lesson: str
    seconds: float
    held: Held
    shm: int = 0
    """Bytes in /dev/shm."""
    problem: str = ""
    """The first cell that failed, if one did that isn't meant to."""

    def or_more(self, other: SeatCost) -> SeatCost:
        """Of two lessons what needs more, in each regard."""
        return SeatCost(
            f"{self.lesson}, {other.lesson}",
            max(self.seconds, other.seconds),
            self.held.or_more(other.held),
            max(self.shm, other.shm),
            self.problem or other.problem,
        )

    def memory_of(self, seats: int) -> int:
        """Bytes that so many seats need at once."""
        return self.held.files_mapped + seats * self.held.memory


def measure(lesson: Path) -> SeatCost:
    """Run all cells of a lesson in a kernel, and look at what its processes hold meanwhile.

    Raises:
        TimeoutError: the kernel did not start.
    """
    before = shutil.disk_usage("/dev/shm").used
    with (
        tempfile.TemporaryDirectory(prefix="seat-") as folder,
        kernel(lesson.parent, folder) as one,
    ):
        started = time.monotonic()
        with Watch(one.pid) as watch:
            problem = run(lesson, one)
            shm = max(0, shutil.disk_usage("/dev/shm").used - before)
        return SeatCost(lesson.stem[:2], time.monotonic() - started, watch.most, shm, problem)


@dataclass(frozen=True)
class Kernel:
    """A running kernel: its process, and a client of it."""

    pid: int
    client: Any


@contextlib.contextmanager
def kernel(folder: Path, own: str) -> Iterator[Kernel]:
    """A kernel as JupyterLab starts it, in that folder; it ends with the block.

    Args:
        folder: where the notebook lies.
        own: a folder for what it must not mix with the caller's: progress, what it complains of.

    Raises:
        TimeoutError: it did not start.
    """
    from jupyter_client.manager import KernelManager

    environment = os.environ | {progress_file.VARIABLE: str(Path(own, "progress.json"))}
    manager = KernelManager(kernel_name="python3")
    with Path(own, "stderr").open("w") as complaints:
        manager.start_kernel(cwd=str(folder), env=environment, stderr=complaints)
    client = manager.client()
    try:
        client.start_channels()
        try:
            client.wait_for_ready(timeout=PATIENCE)
        except RuntimeError as error:
            said = Path(own, "stderr").read_text().strip()[-500:]
            raise TimeoutError(f"a kernel did not start: {error}; {said}") from None
        yield Kernel(int(getattr(manager.provisioner, "pid", 0)), client)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def run(lesson: Path, one: Kernel) -> str:
    """All cells, one after the other; the first one that fails and isn't meant to, in words."""
    problem = ""
    cells = json.loads(lesson.read_text(encoding="utf-8"))["cells"]
    for number, cell in enumerate(cells):
        if cell["cell_type"] != "code":
            continue
        try:
            reply = one.client.execute_interactive(
                "".join(cell["source"]),
                allow_stdin=False,
                timeout=CELL,
                output_hook=lambda message: None,
            )["content"]
        except TimeoutError:
            return problem or f"cell {number} of {lesson.stem[:2]} did not end within {CELL:g} s"
        meant = "raises-exception" in cell["metadata"].get("tags", ())
        if reply["status"] != "ok" and not meant and not problem:
            said = f"{reply.get('ename')}: {reply.get('evalue', '')}"
            problem = f"cell {number} of {lesson.stem[:2]}: {said}"[:300]
    return problem
