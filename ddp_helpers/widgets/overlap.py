"""How much of the all-reduce hides behind backward, for a bucket size of your choice: measured."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddp_helpers.plots.colors import BLUE, GREEN, GREY, PURPLE, SKY, VERMILLION
from ddp_helpers.plots.scene import PAGE, Scene
from ddp_helpers.timeline.intervals import difference, intersection
from ddp_helpers.timeline.records import BACKWARD, FORWARD, OPTIMIZER, RankTimeline, overlap
from ddp_helpers.widgets.controls import Choice, Slider, Steps

if TYPE_CHECKING:
    from ddp_helpers.timeline.records import StepTimeline
    from ddp_helpers.widgets.base import Explorable, Picture

BUCKETS = (0.05, 0.25, 1.0, 25.0)  # MiB
COLORS = {FORWARD: SKY, BACKWARD: BLUE, OPTIMIZER: PURPLE}
LEFT, WIDE, ROW = 130, 548, 26
THINNEST = 0.8  # pixels: what took no time to speak of is still to be seen


def record_on_a_rank(layers: int, width: int, batch: int, bucket_mib: float) -> RankTimeline:
    """A few steps of real DDP on this rank, as torch's profiler sees them."""
    import torch
    from torch import nn

    from ddp_helpers.group.lifetime import process_group
    from ddp_helpers.timeline.record import record_timeline

    with process_group() as pg:
        torch.manual_seed(0)
        parts = [part for _ in range(layers) for part in (nn.Linear(width, width), nn.ReLU())]
        ddp = nn.parallel.DistributedDataParallel(
            nn.Sequential(*parts).to(pg.device), bucket_cap_mb=bucket_mib
        )
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.01)
        x = torch.randn(batch, width, device=pg.device)
        with record_timeline(steps=3) as timeline:
            more = True
            while more:
                optimizer.zero_grad()
                ddp(x).square().mean().backward()
                optimizer.step()
                more = timeline.step()
        return timeline.result()


def run(layers: int, width: int, batch: int, bucket_mib: float, ranks: int) -> list[RankTimeline]:
    """Record on real ranks."""
    from ddp_helpers.ranks.launcher import launch

    given = (layers, width, batch, bucket_mib)
    return launch(record_on_a_rank, ranks, args=given, echo=False, timeout=120).values


def gradients_mib(layers: int, width: int) -> float:
    """Of float32 gradients of that many square layers with their biases."""
    return layers * (width * width + width) * 4 / 2**20


def draw(
    layers: int,
    width: int,
    batch: int,
    bucket_mib: float,
    ranks: int,
    result: list[RankTimeline] | None,
) -> Picture:
    """The last recorded step: for each rank a lane of compute and one of all-reduce."""
    from ddp_helpers.widgets.base import Picture

    scene = Scene(PAGE, 36 + 2 * ROW * ranks + 14 * ranks + 40)
    _legend(scene)
    size = gradients_mib(layers, width)
    given = (
        f"{layers} layers of {width}, {size:.3g} MiB of gradients, batches of {batch}, "
        f"buckets of {bucket_mib:g} MiB"
    )
    if result is None:
        scene.text(LEFT, 66, "not measured yet", anchor="start", size=14, color=GREY)
        question = "How many all-reduces, and how much of them is hidden? Predict, then run."
        words = f"{given}, ranks: {ranks}. {question}"
        return Picture(scene, words)
    steps = [timeline.steps[-1] for timeline in result]
    origin = min(step.start_ns for step in steps)
    top = (max(step.stop_ns for step in steps) - origin) / 1e6
    y = 36.0
    for rank, step in enumerate(steps):
        y = _lanes(scene, y, rank, step, origin, top)
    scene.axis(LEFT, y, WIDE, top, "time from the start of the step (ms)")
    return Picture(scene, f"{given}. {_in_words(result, steps)}")


def _in_words(result: list[RankTimeline], steps: list[StepTimeline]) -> str:
    share = overlap(result)
    hidden = "no all-reduce" if share is None else f"{share:.0%} of their time hidden"
    medians = ", ".join(f"rank {t.rank} {1e3 * t.step_seconds:.1f} ms" for t in result)
    return (
        f"Measured on {len(result)} ranks ({result[0].device}): {len(steps[0].all_reduces)} "
        f"all-reduces in a step, {hidden} behind backward. The median step, with the profiler: "
        f"{medians}."
    )


def _lanes(scene: Scene, y: float, rank: int, step: StepTimeline, origin: int, top: float) -> float:
    scene.text(LEFT - 8, y + 10, f"rank {rank}  compute", anchor="end")
    scene.text(LEFT - 8, y + ROW + 10, "all-reduce", anchor="end")
    place = lambda ns: LEFT + WIDE * (ns - origin) / 1e6 / top
    for kind, color in COLORS.items():
        for start, stop in step.work.get(kind, ()):
            _bar(scene, place(start), y, place(stop), fill=color)
    calls = [(call.start_ns, call.stop_ns) for call in step.all_reduces]
    for start, stop in calls:
        _bar(scene, place(start), y + ROW, place(stop), fill=None)
    backward = list(step.work.get(BACKWARD, ()))
    for color, parts in (
        (GREEN, intersection(calls, backward)),
        (VERMILLION, difference(calls, backward)),
    ):
        for start, stop in parts:
            striped = color == VERMILLION
            _bar(scene, place(start), y + ROW, place(stop), fill=color, hatch=striped)
    return y + 2 * ROW + 14


def _bar(
    scene: Scene, x: float, y: float, to_x: float, *, fill: str | None, hatch: bool = False
) -> None:
    scene.box(x, y, max(THINNEST, to_x - x), ROW - 6, line=0.5, fill=fill, hatch=hatch)


def _legend(scene: Scene) -> None:
    kinds = [*COLORS.items(), ("hidden behind backward", GREEN), ("not hidden", VERMILLION)]
    for at, (name, color) in enumerate(kinds):
        x = LEFT + (0, 90, 190, 290, 470)[at]
        scene.box(x, 4, 14, 14, fill=color, hatch=color == VERMILLION)
        scene.text(x + 20, 11, name, anchor="start")


def explorable(
    layers: int = 6, width: int = 512, batch: int = 64, bucket_mib: float = 1.0, ranks: int = 2
) -> Explorable:
    """Choose a model and a bucket size, and record where the time goes."""
    from ddp_helpers.widgets.base import Explorable

    controls = {
        "layers": Slider("layers", layers, 1, 12),
        "width": Choice("width", width, [128, 256, 512, 1024]),
        "batch": Choice("batch per rank", batch, [16, 64, 256]),
        "bucket_mib": Steps("bucket_cap_mb", bucket_mib, BUCKETS),
        "ranks": Slider("ranks", ranks, 2, 4),
    }
    title = "Overlap: does the all-reduce hide behind backward?"
    return Explorable(title, controls, draw, run=run, run_label="Measure on real ranks")
