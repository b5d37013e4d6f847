"""This machine's answers as a dashboard, and whether what you plan fits into it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddp_helpers.environment.report import EnvironmentReport
from ddp_helpers.plots.colors import BLUE, GREEN, GREY, VERMILLION
from ddp_helpers.plots.scene import PAGE, Scene
from ddp_helpers.widgets.controls import Choice, Slider
from ddp_helpers.words import shown as told

if TYPE_CHECKING:
    from ddp_helpers.widgets.base import Explorable, Picture

GIB = 1024**3
# Measured with torch 2.13 (environment/check.py): after one DDP step; in the starting process
GIB_OF_A_RANK, GIB_OF_THE_LAUNCHER = 0.3, 0.2
BATCHES_AHEAD = 2  # DataLoader's default prefetch_factor, per worker
LONGEST = 1.5  # of what there is: a longer bar is cut, its text says how much is asked for
LEFT, WIDE, ROW = 100, 260, 40  # pixels; WIDE is all that there is
ROWS = ("all rows", "not pass")


@dataclass(frozen=True)
class Room:
    """What the machine has to give."""

    cores: int
    memory: float
    """Free, in GiB."""
    shm: float
    """The size of /dev/shm, in GiB."""


@dataclass(frozen=True)
class Need:
    """What a plan asks for, and what there is, in one unit."""

    name: str
    wanted: float
    there: float
    unit: str

    @property
    def fits(self) -> bool:
        return self.wanted <= self.there

    @property
    def verdict(self) -> str:
        """Whether it fits, and what is missing."""
        return "fits" if self.fits else f"over by {self.wanted - self.there:.3g} {self.unit}"

    def __str__(self) -> str:
        return f"{self.name}: {self.wanted:.3g} of {self.there:.3g} {self.unit}"


def look() -> tuple[EnvironmentReport, Room]:
    """Ask the machine."""
    from ddp_helpers.environment import facts as machine
    from ddp_helpers.environment.check import check_environment, usable_cpu_count

    free, _ = machine.memory()
    _, shm = machine.shm()
    return check_environment(), Room(usable_cpu_count(), free / GIB, shm / GIB)


def threads_of_a_rank(room: Room, ranks: int, threads: int) -> int:
    """What it computes with: `threads`, or with 0 its share of the cores."""
    return threads or max(1, room.cores // ranks)


def needs(room: Room, ranks: int, threads: int, workers: int, batch_mib: int) -> list[Need]:
    """What `ranks` ranks ask for; with `threads` 0 each rank takes its share of the cores.

    Loader workers hand each batch over in /dev/shm, and work two batches ahead.
    """
    each = threads_of_a_rank(room, ranks, threads)
    waiting = ranks * workers * BATCHES_AHEAD * batch_mib / 1024
    return [
        Need("CPU threads", ranks * (each + workers), room.cores, "cores"),
        Need("memory", GIB_OF_THE_LAUNCHER + GIB_OF_A_RANK * ranks, room.memory, "GiB"),
        Need("/dev/shm", waiting, room.shm, "GiB"),
    ]


def draw(
    ranks: int,
    threads: int,
    workers: int,
    batch_mib: int,
    rows: str,
    result: tuple[EnvironmentReport, Room],
) -> Picture:
    """A bar for each thing that can run out, and the report below."""
    from ddp_helpers.widgets.base import Picture

    report, room = result
    found = needs(room, ranks, threads, workers, batch_mib)
    shown = [check for check in report.checks if rows != "not pass" or check.status != "pass"]
    crowded = [need.name for need in found if not need.fits]
    wanted = "; ".join(map(str, found))
    words = (
        f"This machine: {report.summary}. "
        + (f"{ranks} ranks want {wanted}. " if ranks > 1 else f"{ranks} rank wants {wanted}. ")
        + (f"Too much: {', '.join(crowded)}." if crowded else "All of it fits.")
        + f" CPU threads of each rank: {threads_of_a_rank(room, ranks, threads)} to "
        f"compute, {workers} for loader workers."
    )
    table = (
        EnvironmentReport(tuple(shown))._repr_html_()
        if shown
        else f"<p>{told('All rows pass.')}</p>"
    )
    return Picture(_scene(found), words, table)


def _scene(found: list[Need]) -> Scene:
    scene = Scene(PAGE, 42 + ROW * len(found) + 44)
    scene.text(LEFT, 12, "What the plan takes of this machine", anchor="start", bold=True, size=13)
    for at, need in enumerate(found):
        _bar(scene, 36 + ROW * at, need)
    bottom = 42 + ROW * len(found)
    limit = LEFT + WIDE
    scene.line(limit, 30, limit, bottom, color=GREY, width=2.0, dashed=True)
    label = "share of what there is (%); the dashed line is all"
    scene.axis(LEFT, bottom, LONGEST * WIDE, 100 * LONGEST, label)
    return scene


def _bar(scene: Scene, top: float, need: Need) -> None:
    """What fits is plain; what does not is marked where it begins, and by a cross in words."""
    share = min(LONGEST, need.wanted / need.there) if need.there else LONGEST
    scene.text(LEFT - 8, top + 13, need.name, anchor="end")
    scene.box(LEFT, top, WIDE * min(1.0, share), 26, fill=BLUE)
    if share > 1:
        scene.box(LEFT + WIDE, top, WIDE * (share - 1), 26, fill=VERMILLION, hatch=True, line=2.0)
    x, color = LEFT + LONGEST * WIDE + 14, GREEN if need.fits else VERMILLION
    scene.text(x, top + 13, "✓" if need.fits else "✗", size=18, bold=True, color=color)
    scene.text(x + 12, top + 5, need.verdict, anchor="start", bold=not need.fits)
    told = f"{need.wanted:.3g} of {need.there:.3g} {need.unit}"
    scene.text(x + 12, top + 21, told, anchor="start")


def explorable(
    ranks: int = 2, threads: int = 0, workers: int = 0, batch_mib: int = 16, rows: str = ROWS[0]
) -> Explorable:
    """Plan ranks, threads and loader workers, and see what runs out first."""
    from ddp_helpers.widgets.base import Explorable

    controls = {
        "ranks": Slider("ranks", ranks, 1, 16),
        "threads": Slider("threads per rank (0: cores / ranks)", threads, 0, 16),
        "workers": Slider("loader workers per rank", workers, 0, 8),
        "batch_mib": Slider("one batch (MiB)", batch_mib, 1, 512),
        "rows": Choice("rows", rows, ROWS),
    }
    return Explorable(
        "This machine, and what you plan",
        controls,
        draw,
        run=lambda **_: look(),
        run_label="Check again",
        known=look,
        keeps=tuple(controls),
    )
