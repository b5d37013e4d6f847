"""Ring all-reduce, step by step and chunk by chunk, beside the way through one rank.

The schedule is the one of Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters
of workstations" (2009): each of n ranks cuts its tensor into n chunks. In n - 1 steps
(reduce-scatter) sums travel round the ring, in n - 1 more (all-gather) the finished chunks do.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddp_helpers.plots.colors import BLUE, FILLS, GREY, VERMILLION
from ddp_helpers.plots.scene import PAGE, Scene
from ddp_helpers.widgets.controls import Slider

if TYPE_CHECKING:
    from ddp_helpers.widgets.base import Explorable, Picture

Held = list[list[frozenset[int]]]
"""For each rank and each chunk: whose numbers are in the sum that it holds."""

WIDE, ROW, LEFT = 287, 44, 54  # pixels of a panel, of a rank, before the first chunk
LONGEST = 480  # pixels of the bar of all that is sent
NARROWEST = 8.5  # pixels of a slot that holds a number
MOST_NAMED = 5  # ranks: with more, `chunk 0` does not fit above its chunk


@dataclass(frozen=True)
class Send:
    """One message of one step."""

    source: int
    target: int
    chunks: tuple[int, ...]
    adds: bool
    """True if the receiver adds it to what it has, False if it replaces it."""


def ring_schedule(ranks: int) -> list[list[Send]]:
    """The messages of each step; in a step all of them travel at the same time."""
    steps = []
    for step in range(ranks - 1):
        steps.append([Send(r, (r + 1) % ranks, ((r - step) % ranks,), True) for r in range(ranks)])
    for step in range(ranks - 1):
        chunk = [(r + 1 - step) % ranks for r in range(ranks)]
        steps.append([Send(r, (r + 1) % ranks, (chunk[r],), False) for r in range(ranks)])
    return steps


def naive_schedule(ranks: int) -> list[list[Send]]:
    """Every rank sends all it has to rank 0, which adds, and then sends the sum to every rank."""
    whole = tuple(range(ranks))
    there = [[Send(rank, 0, whole, True)] for rank in range(1, ranks)]
    back = [[Send(0, rank, whole, False)] for rank in range(1, ranks)]
    return there + back


def held_after(schedule: list[list[Send]], ranks: int, steps: int) -> Held:
    """Whose numbers are in each rank's chunks when `steps` steps are done."""
    held = [[frozenset({rank})] * ranks for rank in range(ranks)]
    for step in schedule[:steps]:
        before = [list(row) for row in held]  # messages of one step do not see one another
        for send in step:
            for chunk in send.chunks:
                sent = before[send.source][chunk]
                held[send.target][chunk] = before[send.target][chunk] | sent if send.adds else sent
    return held


def waited_for(schedule: list[list[Send]], ranks: int, steps: int, mib: float) -> float:
    """MiB that passed one after another: in each step the largest message of one rank."""
    return sum(max(len(send.chunks) for send in step) * mib / ranks for step in schedule[:steps])


def draw(ranks: int, mib: int, step: int) -> Picture:
    """Both ways after the same number of steps."""
    from ddp_helpers.widgets.base import Picture

    step = min(step, 2 * (ranks - 1))
    ways = {"ring": ring_schedule(ranks), "through rank 0": naive_schedule(ranks)}
    scene = Scene(PAGE, 118 + ROW * ranks + 40)
    for at, (name, schedule) in enumerate(ways.items()):
        _panel(scene, at * (LEFT + WIDE + 18), name, schedule, ranks, step)
    _costs(scene, ways, ranks, step, mib, 66 + ROW * ranks)
    return Picture(scene, _in_words(ways, ranks, step, mib))


def _in_words(ways: dict[str, list[list[Send]]], ranks: int, step: int, mib: int) -> str:
    ring, naive = ways.values()
    total = 2 * (ranks - 1)
    done = sum(len(whose) == ranks for whose in held_after(ring, ranks, step)[0])
    cost, other = waited_for(ring, ranks, step, mib), waited_for(naive, ranks, step, mib)
    phase = "reduce-scatter" if step <= ranks - 1 else "all-gather"
    text = [f"Step {step} of {total}{f' ({phase})' if step else ''}."]
    if step:
        send = ring[step - 1][0]
        how = "which adds it to its own" if send.adds else "which keeps it"
        text.append(f"Ring: rank 0 sent chunk {send.chunks[0]} to rank {send.target}, {how}.")
    text.append(f"Rank 0 holds the whole sum of {done} of {ranks} chunks.")
    text.append(
        f"Sent one after another so far: ring {cost:.4g} MiB, through rank 0 {other:.4g} MiB."
    )
    return " ".join(text)


def _panel(
    scene: Scene, left: float, name: str, schedule: list[list[Send]], ranks: int, step: int
) -> None:
    held = held_after(schedule, ranks, step)
    now = schedule[step - 1] if step else []
    scene.text(left + LEFT, 12, name, bold=True, size=13, anchor="start")
    wide = WIDE / ranks
    arrived = {(send.target, chunk) for send in now for chunk in send.chunks}
    for rank in range(ranks):
        top = 46 + ROW * rank
        scene.text(left + LEFT - 8, top + 14, f"rank {rank}", anchor="end")
        for chunk, whose in enumerate(held[rank]):
            place = left + LEFT + wide * chunk, top, wide - 14
            _chunk(scene, *place, whose, ranks, fresh=(rank, chunk) in arrived)
    for chunk in range(ranks):
        middle = left + LEFT + wide * chunk + (wide - 14) / 2
        scene.text(middle, 32, f"chunk {chunk}" if ranks <= MOST_NAMED else chunk)
    for send in now:
        for chunk in send.chunks:
            at = left + LEFT + wide * (chunk + 1) - 8
            _arrow(scene, at, send, ranks, wraps=name == "ring")


def _chunk(
    scene: Scene,
    left: float,
    top: float,
    wide: float,
    whose: frozenset[int],
    ranks: int,
    fresh: bool,
) -> None:
    """A box with a slot for each rank's part of the sum."""
    slot = wide / ranks
    for rank in sorted(whose):
        scene.box(left + slot * rank, top, slot, 28, fill=FILLS[rank], line=0.5)
        if slot >= NARROWEST:
            scene.text(left + slot * (rank + 0.5), top + 14, rank, color="#000000")
    whole = len(whose) == ranks
    edge, line = (VERMILLION, 3.5) if fresh else (GREY, 2.0 if whole else 1.0)
    scene.box(left, top, wide, 28, edge=edge, line=line)


def _arrow(scene: Scene, at: float, send: Send, ranks: int, *, wraps: bool) -> None:
    """From one row to another; on a ring, from the last to the first it leaves and comes in."""
    start, end = (46 + ROW * rank + 14 for rank in (send.source, send.target))
    color, width = VERMILLION, 2.0
    if wraps and send.source == ranks - 1 and send.target == 0 and ranks > 2:
        scene.line(at, start, at, start + 26, color=color, width=width)
        scene.line(at, end - 26, at, end, color=color, width=width, arrow=True)
    else:
        scene.line(at, start, at, end, color=color, width=width, arrow=True)


def _costs(
    scene: Scene, ways: dict[str, list[list[Send]]], ranks: int, step: int, mib: int, top: float
) -> None:
    total = waited_for(ways["through rank 0"], ranks, 2 * (ranks - 1), mib)
    for at, (name, schedule) in enumerate(ways.items()):
        passed = waited_for(schedule, ranks, step, mib)
        y = top + 22 * at
        scene.text(112, y + 8, name, anchor="end")
        scene.box(120, y, LONGEST * passed / total, 16, fill=(BLUE, VERMILLION)[at], line=0.5)
        scene.text(128 + LONGEST * passed / total, y + 8, f"{passed:.4g} MiB", anchor="start")
    scene.axis(
        120, top + 48, LONGEST, total, "MiB sent so far; what travels at the same time counts once"
    )


def explorable(ranks: int = 4, mib: int = 8, step: int = 2) -> Explorable:
    """Play the steps, or walk through them; a slot's number says whose gradients are in a sum."""
    from ddp_helpers.widgets.base import Explorable

    controls = {
        "ranks": Slider("ranks", ranks, 2, 6),
        "mib": Slider("gradients (MiB)", mib, 1, 100),
        "step": _step_slider(ranks, step),
    }
    title = "All-reduce: round the ring, or through one rank"
    return Explorable(title, controls, draw, adjust=_adjust, plays="step")


def _step_slider(ranks: int, step: int) -> Slider:
    last = 2 * (ranks - 1)
    return Slider("step", min(step, last), 0, last)


def _adjust(moved: str, ranks: int, mib: int, step: int) -> dict[str, Slider]:
    """With other ranks the last step is another one."""
    return {"step": _step_slider(ranks, step)} if moved == "ranks" else {}
