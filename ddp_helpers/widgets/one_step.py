"""One training step of `nn.DataParallel` and of DDP, played from times that were just measured.

DataParallel needs GPUs. Its algorithm (torch 2.13, torch/nn/parallel/data_parallel.py: scatter,
replicate, parallel_apply, gather) runs here on CPU threads, as in notebook 02.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddp_helpers.plots.colors import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION
from ddp_helpers.plots.scene import PAGE, Scene
from ddp_helpers.widgets.controls import Choice, Slider

if TYPE_CHECKING:
    from ddp_helpers.widgets.base import Explorable, Picture

MODELS = ("SmallCNN", "60 thin layers")
KINDS = {
    "hand out": ORANGE,
    "copy weights": VERMILLION,
    "forward": SKY,
    "backward": BLUE,
    "collect": PURPLE,
    "average": GREEN,
}
HATCHED = ("copy weights", "collect")
WARM_UP, REPEATS = 2, 9
LEFT, WIDE, ROW = 146, 536, 30


@dataclass(frozen=True)
class Part:
    """Something that a worker did, in ms from the start of its step."""

    worker: str
    name: str
    start: float
    stop: float


@dataclass(frozen=True)
class Step:
    """The step of median length among several, and what its workers did."""

    parts: tuple[Part, ...]
    ms: float


class _Notes:
    """What one worker did, by one clock for all processes of a machine."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, str, float, float]] = []

    def do(self, worker, name, act, *args):
        start = time.perf_counter()
        answer = act(*args)
        self.parts.append((worker, name, start, time.perf_counter()))
        return answer


def model_named(name: str):
    """One of the models to measure.

    Raises:
        ValueError: there is no such model.
    """
    from torch import nn

    from ddp_helpers.model import SmallCNN

    if name not in MODELS:
        raise ValueError(f"model {name!r}: expected one of {', '.join(MODELS)}")
    if name == "SmallCNN":
        return SmallCNN()
    thin = [layer for _ in range(60) for layer in (nn.Linear(64, 64), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 64), *thin, nn.Linear(64, 10))


def threads_step(model, replicas, images, labels, pool) -> _Notes:
    """One step of DataParallel's algorithm; `model` gets the gradients of the whole batch."""
    import torch

    notes, workers = _Notes(), [f"thread {at}" for at in range(len(replicas))]
    shares = notes.do(workers[0], "hand out", images.chunk, len(replicas))
    notes.do(workers[0], "copy weights", _replicate, model, replicas)
    forward = lambda who, net, x: notes.do(who, "forward", net, x)
    outputs = list(pool.map(forward, workers, replicas, shares))
    loss_of = lambda: torch.nn.functional.cross_entropy(torch.cat(outputs), labels)
    slopes = notes.do(workers[0], "collect", lambda: torch.autograd.grad(loss_of(), outputs))
    backward = lambda who, out, slope: notes.do(who, "backward", out.backward, slope)
    list(pool.map(backward, workers, outputs, slopes))  # a thread each, as autograd has on GPUs
    notes.do(workers[0], "collect", _sum_gradients, model, replicas)
    return notes


def _replicate(model, replicas):
    for replica in replicas:
        for theirs, ours in zip(replica.parameters(), model.parameters(), strict=True):
            theirs.data.copy_(ours.data)
            theirs.grad = None


def _sum_gradients(model, replicas):
    all_of = [net.parameters() for net in (model, *replicas)]
    for ours, *theirs in zip(*all_of, strict=True):
        ours.grad = sum(parameter.grad for parameter in theirs)


def ddp_step(ddp, images, labels, rank: int, averages: list[list[float]]) -> _Notes:
    """One step of DDP; `averages` gets the start and stop of each all-reduce, by its hook."""
    import torch

    notes, who = _Notes(), f"rank {rank}"
    averages.clear()
    output = notes.do(who, "forward", ddp, images)
    loss = torch.nn.functional.cross_entropy(output, labels)
    notes.do(who, "backward", loss.backward)
    notes.parts += [(who, "average", start, stop) for start, stop in averages]
    return notes


def measure_on_a_rank(name: str, batch: int) -> list[list[list]]:
    """For each repeat the parts of [threads, DDP]; rank 0 runs the threads, the others wait."""
    from concurrent.futures import ThreadPoolExecutor
    from copy import deepcopy

    import torch
    import torch.distributed as dist
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    from ddp_helpers.group.lifetime import process_group

    def timed(state, bucket):
        averages.append([time.perf_counter(), 0.0])
        this = averages[-1]

        def end(done):
            this[1] = time.perf_counter()
            return done.value()

        return allreduce_hook(state, bucket).then(end)

    with process_group("gloo") as pg, ThreadPoolExecutor(pg.world_size) as pool:
        torch.manual_seed(0)
        model, steps = model_named(name), []
        averages: list[list[float]] = []
        ddp = torch.nn.parallel.DistributedDataParallel(deepcopy(model), bucket_cap_mb=0.1)
        ddp.register_comm_hook(None, timed)
        replicas = [deepcopy(model) for _ in range(pg.world_size)]
        images, labels = torch.randn(batch, 1, 28, 28), torch.randint(0, 10, (batch,))
        mine, right = (tensor.chunk(pg.world_size)[pg.rank] for tensor in (images, labels))
        for _ in range(WARM_UP + REPEATS):
            dist.barrier()
            alone = threads_step(model, replicas, images, labels, pool) if pg.is_main else _Notes()
            dist.barrier()
            told = ddp_step(ddp, mine, right, pg.rank, averages)
            steps.append([alone.parts, told.parts])
    return steps[WARM_UP:]


def run(model: str, workers: int, batch: int, moment: int) -> dict[str, Step]:
    """Measure both on the CPU, in turn, a thread for each worker."""
    from ddp_helpers.ranks.launcher import launch

    given = (model, batch)
    ranks = launch(
        measure_on_a_rank, workers, args=given, threads_per_rank=1, echo=False, timeout=120
    ).values
    return {
        "DataParallel": _median([rank[0] for rank in map(_turned, ranks)]),
        "DDP": _median([rank[1] for rank in map(_turned, ranks)]),
    }


def _turned(steps: list[list[list]]) -> tuple:
    """For each way its repeats."""
    return tuple(zip(*steps, strict=True))


def _median(ranks: list[tuple[list, ...]]) -> Step:
    """The repeat of median length, its clock started with its first part."""
    repeats = []
    for of_ranks in zip(*ranks, strict=True):
        parts = [part for parts in of_ranks for part in parts]
        origin = min(start for *_, start, _ in parts)
        told = tuple(
            Part(who, name, 1e3 * (start - origin), 1e3 * (stop - origin))
            for who, name, start, stop in parts
        )
        repeats.append(Step(told, max(part.stop for part in told)))
    return sorted(repeats, key=lambda step: step.ms)[len(repeats) // 2]


def at_the_moment(step: Step, ms: float) -> dict[str, str]:
    """What each worker does `ms` after the start; `waits` if nothing, `is done` after the end."""
    doing = {}
    for who in dict.fromkeys(part.worker for part in step.parts):
        names = [p.name for p in step.parts if p.worker == who and p.start <= ms < p.stop]
        doing[who] = " and ".join(dict.fromkeys(names)) or ("is done" if ms > step.ms else "waits")
    return doing


def draw(
    model: str, workers: int, batch: int, moment: int, result: dict[str, Step] | None
) -> Picture:
    """Both steps on one time axis; a line marks the moment."""
    from ddp_helpers.widgets.base import Picture

    scene = Scene(PAGE, 114 + (2 * ROW + 8) * workers)
    _legend(scene)
    if result is None:
        scene.text(LEFT, 80, "not measured yet", anchor="start", size=14, color=GREY)
        words = (
            f"{model}, a batch of {batch} digits, {workers} workers. Which way has the shorter "
            "step, and who waits when? Predict, then measure."
        )
        return Picture(scene, words)
    top = max(step.ms for step in result.values())
    y = 44.0
    for way, step in result.items():
        y = _rows(scene, y, way, step, top)
    now = top * moment / 100
    x = LEFT + WIDE * moment / 100
    scene.line(x, 40, x, y, color=VERMILLION, width=2.0, dashed=True)
    scene.axis(LEFT, y + 4, WIDE, top, "time from the start of the step (ms)")
    return Picture(scene, _in_words(model, batch, workers, now, result))


def _in_words(model: str, batch: int, workers: int, now: float, result: dict[str, Step]) -> str:
    text = f"{model}, a batch of {batch} digits, {workers} workers, on the CPU. "
    for way, step in result.items():
        doing = ", ".join(f"{who}: {what}" for who, what in at_the_moment(step, now).items())
        text += f"{way}: {step.ms:.1f} ms; after {now:.1f} ms {doing}. "
    return text.strip()


def _rows(scene: Scene, y: float, way: str, step: Step, top: float) -> float:
    scene.text(8, y + ROW / 2, way, anchor="start", bold=True)
    for who in dict.fromkeys(part.worker for part in step.parts):
        scene.text(LEFT - 8, y + ROW / 2 - 3, who, anchor="end")
        talks = any(part.name == "average" for part in step.parts)
        for part in step.parts:
            if part.worker == who:
                left, wide = WIDE * part.start / top, WIDE * (part.stop - part.start) / top
                lower = part.name == "average"
                height = 8 if lower else ROW - 8
                at = y + ROW - 7 if lower else y
                color, hatch = KINDS[part.name], part.name in HATCHED
                scene.box(
                    *(LEFT + left, at, max(1.0, wide), height), fill=color, hatch=hatch, line=0.5
                )
        y += ROW + (8 if talks else 0)
    return y + 10


def _legend(scene: Scene) -> None:
    for at, (name, color) in enumerate(KINDS.items()):
        x = 14 + 115 * at
        scene.box(x, 6, 14, 14, fill=color, hatch=name in HATCHED)
        scene.text(x + 20, 13, name, anchor="start")


def explorable(
    model: str = MODELS[1], workers: int = 2, batch: int = 256, moment: int = 50
) -> Explorable:
    """Measure one step of each way, then move through it."""
    from ddp_helpers.widgets.base import Explorable

    controls = {
        "model": Choice("model", model, MODELS),
        "workers": Slider("workers", workers, 2, 4),
        "batch": Choice("digits in a batch", batch, [64, 256, 1024]),
        "moment": Slider("moment (% of the longer step)", moment, 0, 100),
    }
    title = "One step: DataParallel (threads) and DDP (processes)"
    return Explorable(title, controls, draw, run=run, run_label="Measure", keeps=["moment"])
