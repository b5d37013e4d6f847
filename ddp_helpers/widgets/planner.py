"""What more ranks would bring: the cost model of `scaling/`, and this machine beside it.

Links are rated values with wide errors. What is measured is measured here, when asked for.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ddp_helpers.plots.colors import BLUE, GREY, VERMILLION
from ddp_helpers.plots.scene import PAGE, Scene, ticks
from ddp_helpers.scaling.rated import LINKS, described, with_cards
from ddp_helpers.scaling.records import GRADIENT_BYTES, Machine, Numbers, Setup, Work
from ddp_helpers.scaling.step_time import predict
from ddp_helpers.widgets.controls import Choice, Slider, Steps
from ddp_helpers.words import shown

if TYPE_CHECKING:
    from ddp_helpers.scaling.records import Prediction
    from ddp_helpers.widgets.base import Explorable, Picture

_CARDS = with_cards(LINKS["infiniband"], 8)  # as many as GPUs
MACHINES = {
    name: described(name, LINKS[link], network, 8 if network else None)
    for name, link, network in (
        ("one server, NVLink", "nvlink4", None),
        ("servers of 8, InfiniBand", "nvlink4", _CARDS),
        ("servers of 8, 10 Gbit/s", "nvlink4", LINKS["ethernet10"]),
        ("PCs, 1 Gbit/s", "ethernet1", None),
    )
}
DTYPES = tuple(name for name in GRADIENT_BYTES if name != "float64")
LEFT, WIDE, HIGH, TOP = 84, 396, 220, 30
MEASURED_RANKS = (1, 2, 4)
MOST_POINTS = 33  # of the curve: more are not to be seen, and each is a shape to draw


@dataclass(frozen=True)
class Measured:
    """This machine's profile, the small CNN's work, and real steps to compare with."""

    machine: Machine
    work: Work
    steps: dict[int, float]
    """Seconds of a real DDP step, by its number of ranks."""
    batch: int


def run(batch: int, **_: object) -> Measured:
    """Measure links, compute and real steps here, on 1, 2 and 4 ranks."""
    from ddp_helpers.model import SmallCNN
    from ddp_helpers.scaling.machine_costs import measure_machine
    from ddp_helpers.scaling.work_costs import (
        make_probe_batch,
        measure_step,
        measure_work,
        undisturbed,
    )

    machine = measure_machine("this machine", rounds=1)
    work = measure_work(SmallCNN, make_probe_batch, rounds=1, steps=6)
    steps = {}
    for ranks in MEASURED_RANKS:
        setup = Setup(ranks=ranks, batch_size_per_rank=batch)
        times = measure_step(SmallCNN, make_probe_batch, setup, steps=6)
        steps[ranks] = undisturbed(times.step)
    return Measured(machine, work, steps, batch)


def plan(
    machine: str, millions: float, ms: float, batch: int, accumulate: int, dtype: str, most: int
) -> tuple[np.ndarray, Prediction]:
    """Some ranks from 1 to `most`, no more than are drawn, and what the model says of them."""
    ranks = np.unique(np.linspace(1, most, min(most, MOST_POINTS)).astype(int))
    work = Work("your model", int(millions * 1e6), seconds_per_sample=ms / 1e3)
    setup = Setup(
        ranks,
        batch,
        accumulation_steps=accumulate,
        gradient_dtype=dtype,
        algorithm="nccl",
        hierarchical=False,
    )
    return ranks, predict(MACHINES[machine], work, setup)


def draw(
    machine: str,
    millions: float,
    ms: float,
    batch: int,
    accumulate: int,
    dtype: str,
    most: int,
    result: Measured | None,
) -> Picture:
    """Samples a second against ranks, with their range; below, this machine if it was measured."""
    from ddp_helpers.widgets.base import Picture

    ranks, told = plan(machine, millions, ms, batch, accumulate, dtype, most)
    scene = Scene(PAGE, TOP + HIGH + 46)
    scene.text(LEFT, 12, "samples per second, all ranks", anchor="start", bold=True, size=13)
    _curve(scene, ranks, told)
    _parts(scene, told)
    words = _in_words(machine, millions, ms, batch, accumulate, most, told)
    return Picture(scene, words, _measured_table(result) if result else "")


def _in_words(
    machine: str,
    millions: float,
    ms: float,
    batch: int,
    accumulate: int,
    most: int,
    told: Prediction,
) -> str:
    speed, good = told.samples_per_second, told.efficiency
    wait = _last(told.exposed) / _last(told.step.value)
    return (
        f"Predicted for {machine}, {millions:g} million parameters, {ms:g} ms a sample, batches "
        f"of {batch} x {accumulate}: {most} ranks train {_last(speed.value):,.0f} samples/s "
        f"({_last(speed.low):,.0f} to {_last(speed.high):,.0f}), an efficiency of "
        f"{_last(good.value):.0%} ({_last(good.low):.0%} to {_last(good.high):.0%}). "
        f"{wait:.0%} of a step waits for messages."
    )


def _curve(scene: Scene, ranks: np.ndarray, told: Prediction) -> None:
    most = int(ranks[-1])
    speed, low, high = map(np.asarray, vars(told.samples_per_second).values())
    top = float(speed[0]) * most
    x = lambda n: LEFT + WIDE * n / most
    y = lambda value: TOP + HIGH * (1 - min(1.05, float(value) / top))
    for tick in ticks(top):
        scene.line(LEFT, y(tick), LEFT + WIDE, y(tick), color=GREY, width=0.4)
        scene.text(LEFT - 6, y(tick), f"{tick:,.10g}", anchor="end")
    scene.axis(LEFT, TOP + HIGH, WIDE, most, "ranks")
    scene.line(x(0), y(0), x(most), y(top), color=GREY, width=1.5, dashed=True)
    for at in range(len(ranks)):
        scene.line(x(ranks[at]), y(low[at]), x(ranks[at]), y(high[at]), width=1.0)
    for at, to in itertools.pairwise(range(len(ranks))):
        ends = x(ranks[at]), y(speed[at]), x(ranks[to]), y(speed[to])
        scene.line(*ends, color=BLUE, width=2.5)


def _parts(scene: Scene, told: Prediction) -> None:
    """Where the time of a step goes at the largest number of ranks."""
    left, wide = LEFT + WIDE + 36, 180
    scene.text(left, TOP + HIGH - 20, "dashed: n times one rank", anchor="start")
    scene.text(left, TOP + HIGH - 2, "upright: the range", anchor="start")
    scene.text(left, TOP + 12, "a step at the right end", anchor="start", bold=True, size=13)
    step = _last(told.step.value)
    parts = {"compute": _last(told.compute), "waits for messages": _last(told.exposed)}
    parts["other"] = max(0.0, step - sum(parts.values()))
    for at, (name, seconds) in enumerate(parts.items()):
        y = TOP + 40 + 46 * at
        ms = f"{1e3 * seconds:,.0f}" if seconds >= 1 else f"{1e3 * seconds:.3g}"  # not 1.74e+03
        scene.text(left, y, f"{name}: {ms} ms", anchor="start")
        color, width = (BLUE, VERMILLION, GREY)[at], max(1.0, wide * seconds / step)
        scene.box(left, y + 10, width, 14, fill=color, hatch=at == 1, line=0.5)


def _last(numbers: Numbers) -> float:
    """At the largest number of ranks; one number holds for all of them."""
    return float(np.atleast_1d(numbers)[-1])


def _measured_table(found: Measured) -> str:
    """Predicted and measured steps of this machine."""
    rows = ""
    for ranks, seconds in found.steps.items():
        setup = Setup(ranks=ranks, batch_size_per_rank=found.batch)
        told = predict(found.machine, found.work, setup).step
        cells = [
            f"{ranks}",
            f"{1e3 * told.value:.1f} ({1e3 * told.low:.1f} to {1e3 * told.high:.1f})",
            f"{1e3 * seconds:.1f}",
        ]
        rows += (
            "<tr>"
            + "".join(f'<td style="text-align:right">{shown(c)}</td>' for c in cells)
            + "</tr>"
        )
    link = found.machine.link
    device = "CPU" if found.machine.cores else "GPUs"
    about = (
        f"Measured on this machine's {device}, SmallCNN, batches of {found.batch}: latency "
        f"{1e6 * link.latency:.0f} µs, bandwidth {link.bandwidth / 1e9:.2f} GB/s."
    )
    heads = (shown(head) for head in ("ranks", "predicted step (ms)", "measured (ms)"))
    row = "".join(f"<th>{head}</th>" for head in heads)
    table = f"<table><tr>{row}</tr>{rows}</table>"
    return f"<p style='margin:6px 0'>{shown(about)}</p>{table}"


def explorable(
    machine: str = "servers of 8, 10 Gbit/s",
    millions: float = 25.6,
    ms: float = 1.5,
    batch: int = 64,
    accumulate: int = 1,
    dtype: str = "float32",
    most: int = 64,
) -> Explorable:
    """Plan a run on a machine that you don't have; then compare the model with yours."""
    from ddp_helpers.widgets.base import Explorable

    sizes = sorted({0.1, 1.0, 10.0, 25.6, 124.0, 350.0, 1000.0, millions})
    times = sorted({0.05, 0.2, 0.5, 1.5, 5.0, 20.0, ms})
    controls = {
        "machine": Choice("machine", machine, list(MACHINES)),
        "millions": Steps("parameters (M)", millions, sizes),
        "ms": Steps("compute of a sample (ms)", ms, times),
        "batch": Choice("batch per rank", batch, [8, 16, 32, 64, 128]),
        "accumulate": Slider("accumulation steps", accumulate, 1, 8),
        "dtype": Choice("gradients travel as", dtype, DTYPES),
        "most": Steps("ranks up to", most, [2, 4, 8, 16, 32, 64, 128, 256, 512]),
    }
    title = "Scaling planner: what do more ranks bring?"
    keeps = [name for name in controls if name != "batch"]
    label = "Measure this machine"
    return Explorable(title, controls, draw, run=run, run_label=label, keeps=keeps, complete=True)
