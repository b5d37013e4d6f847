"""Gradient accumulation: after which micro-batches do the ranks talk?

DDP decides in its forward whether the next backward will average (torch 2.13,
torch/nn/parallel/distributed.py, `no_sync`), so the forward must be inside `no_sync()`, too.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from ddp_helpers.plots.colors import BLUE, GREY, ORANGE, SKY, VERMILLION
from ddp_helpers.plots.scene import PAGE, Scene
from ddp_helpers.widgets.controls import Choice, Slider

if TYPE_CHECKING:
    from ddp_helpers.widgets.base import Explorable, Picture

WAYS = ("no no_sync", "forward and backward in no_sync", "only backward in no_sync")
LEFT, ROW = 64, 34
NARROWEST = 40  # pixels of a micro-batch with its number in it


def talks(steps: int, accumulate: int, way: str) -> list[bool]:
    """For each micro-batch whether the ranks average their gradients during its backward."""
    quiet = way == WAYS[1]
    return [not quiet or (at + 1) % accumulate == 0 for at in range(steps * accumulate)]


def mib_of_a_rank(exchanges: int, ranks: int, mib: float) -> float:
    """MiB that a rank sends: the ring's 2 (n - 1) / n of the gradients, in each exchange."""
    return exchanges * 2 * (ranks - 1) / ranks * mib


def count_on_a_rank(steps: int, accumulate: int, way: str) -> list[bool]:
    """The same, from a real DDP: a communication hook notes each time that it is asked."""
    import torch
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
    from torch.nn.parallel import DistributedDataParallel

    from ddp_helpers.group.lifetime import process_group

    asked: list[bool] = []

    def note(state, bucket):
        asked.append(True)
        return allreduce_hook(state, bucket)

    with process_group() as pg:
        ddp = DistributedDataParallel(torch.nn.Linear(4, 1).to(pg.device))
        ddp.register_comm_hook(None, note)
        optimizer, seen = torch.optim.SGD(ddp.parameters(), lr=0.1), []
        for at in range(steps * accumulate):
            asked.clear()
            last = (at + 1) % accumulate == 0
            silent = contextlib.nullcontext if last or way == WAYS[0] else ddp.no_sync
            x = torch.randn(8, 4, device=pg.device)
            if way == WAYS[2]:
                loss = ddp(x).mean()  # the trap: DDP has decided here
            with silent():
                if way != WAYS[2]:
                    loss = ddp(x).mean()
                (loss / accumulate).backward()
            seen.append(bool(asked))
            if last:
                optimizer.step()
                optimizer.zero_grad()
    return seen


def run(steps: int, accumulate: int, ranks: int, way: str, mib: int) -> list[list[bool]]:
    """Count on real ranks."""
    from ddp_helpers.ranks.launcher import launch

    given = (steps, accumulate, way)
    return launch(count_on_a_rank, ranks, args=given, echo=False, timeout=60).values


def draw(
    steps: int, accumulate: int, ranks: int, way: str, mib: int, result: list[list[bool]] | None
) -> Picture:
    """A row a rank, a box a micro-batch, a bar through all ranks where they talk."""
    from ddp_helpers.widgets.base import Picture

    spoken = talks(steps, accumulate, way)
    shown = result[0] if result else spoken
    words = in_words(steps, accumulate, ranks, way, mib, result)
    return Picture(_scene(shown, accumulate, ranks), words)


def in_words(
    steps: int, accumulate: int, ranks: int, way: str, mib: int, result: list[list[bool]] | None
) -> str:
    """What the picture shows, as sentences."""
    spoken = talks(steps, accumulate, way)
    moved = mib_of_a_rank(sum(spoken), ranks, mib)
    text = (
        f"{steps} optimizer {_steps(steps)} of {accumulate} micro-batches on {ranks} ranks: "
        f"the ranks talk {sum(spoken)} times, and each sends {moved:.4g} MiB. "
    )
    if sum(spoken) > steps:
        text += f"{sum(spoken) - steps} exchanges are wasted. "
    if result is None:
        return text + "Computed; run it to count."
    counted = [sum(rank) for rank in result]
    return text + f"Counted on real ranks: {', '.join(map(str, counted))}."


def _steps(steps: int) -> str:
    return "step" if steps == 1 else "steps"


def _scene(spoken: list[bool], accumulate: int, ranks: int) -> Scene:
    scene = Scene(PAGE, 64 + ROW * ranks + 40)
    wide = min(70.0, (PAGE - LEFT - 14) / len(spoken))
    for rank in range(ranks):
        top = 44 + ROW * rank
        scene.text(LEFT - 8, top + 13, f"rank {rank}", anchor="end")
        for at in range(len(spoken)):
            scene.box(LEFT + wide * at, top, 0.72 * wide, 26, fill=SKY)
            if wide > NARROWEST:
                scene.text(LEFT + wide * (at + 0.36), top + 13, at + 1, color="#000000")
    for at, aloud in enumerate(spoken):
        x, last = LEFT + wide * (at + 0.85), (at + 1) % accumulate == 0
        if aloud:
            color = BLUE if last else VERMILLION
            left, width = x - 0.09 * wide, 0.18 * wide
            scene.box(left, 40, width, ROW * ranks, fill=color, hatch=not last)
        if last:
            scene.line(x, 40 + ROW * ranks, x, 50 + ROW * ranks, color=ORANGE, width=3.0)
            scene.text(x, 60 + ROW * ranks, "step")
    _legend(scene, 14)
    scene.text(LEFT, 84 + ROW * ranks, "micro-batches, from left to right", anchor="start")
    return scene


def _legend(scene: Scene, top: float) -> None:
    kinds = (
        (SKY, False, "forward and backward"),
        (BLUE, False, "gradients are averaged"),
        (VERMILLION, True, "averaged, but no step follows: wasted"),
    )
    for at, (color, hatch, text) in enumerate(kinds):
        x = LEFT + (0, 180, 360)[at]
        scene.box(x, top - 8, 14, 16, fill=color, hatch=hatch, edge=GREY)
        scene.text(x + 20, top, text, anchor="start")


def explorable(
    steps: int = 2, accumulate: int = 4, ranks: int = 2, way: str = WAYS[1], mib: int = 10
) -> Explorable:
    """Choose how to accumulate, and see when the ranks talk; then count it."""
    from ddp_helpers.widgets.base import Explorable

    controls = {
        "steps": Slider("optimizer steps", steps, 1, 4),
        "accumulate": Slider("micro-batches of a step", accumulate, 1, 8),
        "ranks": Slider("ranks", ranks, 2, 4),
        "mib": Slider("gradients (MiB)", mib, 1, 100),
        "way": Choice("way", way, WAYS),
    }
    return Explorable(
        "Accumulation: when do the ranks talk?", controls, draw, run=run, keeps=["mib"]
    )
