"""The cost model against real steps on configurations that it was not fitted to; and its speed.

    python tests/benchmarks/bench_scaling.py [--rounds 3] [--json FILE]

Fitted: this machine on 1 and 2 ranks with two small probe models, and each model's computing on
one rank with batches of 8 and 32. Not fitted, only predicted: all steps in the table, which are
real DDP steps of other models, other batch sizes, other buckets, accumulation, and 4 ranks.

Rounds go through the measurements for the fits and the configurations in turn, so that a machine
that slows down slows both. Of a configuration's steps in a round the lower quartile of the means
of five counts, as in the fits; of the rounds, the median.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from ddp_helpers.cli import plan as plan_command
from ddp_helpers.model import SmallCNN
from ddp_helpers.scaling import Link, Machine, Setup, Work, machine_costs, predict, step_seconds
from ddp_helpers.scaling.work_costs import make_probe_batch, measure_step, measure_work

LIMIT = 0.20
BUSY = 1.0  # other programs that want a core
GRID = (10_000, 1_000)


class Layers:
    """Makes a stack of linear layers; an object, as it must travel to the ranks."""

    def __init__(self, width: int, layers: int) -> None:
        self.width, self.layers = width, layers
        self.__name__ = f"{layers} linear layers of {width}"

    def __call__(self) -> nn.Module:
        parts: list[nn.Module] = [nn.Flatten(), nn.Linear(784, self.width), nn.ReLU()]
        for _ in range(self.layers):
            parts += [nn.Linear(self.width, self.width), nn.ReLU()]
        return nn.Sequential(*parts, nn.Linear(self.width, 10))


MODELS = {"cnn": SmallCNN, "wide": Layers(640, 1), "deep": Layers(256, 8)}
CONFIGURATIONS = (
    ("cnn", Setup(ranks=2, batch_size_per_rank=64)),
    ("cnn", Setup(ranks=4, batch_size_per_rank=32)),
    ("cnn", Setup(ranks=4, batch_size_per_rank=64)),
    ("cnn", Setup(ranks=4, batch_size_per_rank=32, accumulation_steps=2)),
    ("wide", Setup(ranks=2, batch_size_per_rank=64)),
    ("wide", Setup(ranks=2, batch_size_per_rank=64, bucket_cap_mb=1)),
    ("wide", Setup(ranks=4, batch_size_per_rank=64)),
    ("wide", Setup(ranks=4, batch_size_per_rank=16)),
    ("deep", Setup(ranks=2, batch_size_per_rank=64)),
    ("deep", Setup(ranks=4, batch_size_per_rank=64)),
    ("deep", Setup(ranks=4, batch_size_per_rank=64, bucket_cap_mb=0.5)),
    ("deep", Setup(ranks=4, batch_size_per_rank=128)),
)


@dataclass(frozen=True)
class Round:
    """What was measured in a round: for the fits, and steps that no fit sees."""

    machine: machine_costs.Round
    works: dict[str, Work]
    steps: list[float]
    """Seconds of each configuration."""


def one_round() -> Round:
    machine = machine_costs.measure_round()
    works = {name: measure_work(make, make_probe_batch, rounds=2) for name, make in MODELS.items()}
    steps = []
    for name, setup in CONFIGURATIONS:
        times = measure_step(MODELS[name], make_probe_batch, setup, steps=20).step
        steps.append(machine_costs.undisturbed_step(times))
    return Round(machine, works, steps)


def accuracy(rounds: int) -> list[dict[str, object]]:
    """Print the table of predicted and measured steps; returns its rows."""
    found = []
    for at in range(rounds):
        started = time.perf_counter()
        found.append(one_round())
        print(f"round {at + 1}: {time.perf_counter() - started:.0f} s, load {load():.1f}")
    machine = machine_costs.machine_from([each.machine for each in found])
    print(plan_command.describe(machine))
    if machine.background >= BUSY:
        print(
            "  BUSY: other programs had much of the cores, so times say little; run it again later"
        )
    print(f"\n{'model':6}{'ranks':>6}{'batch':>6}{'bucket':>8}{'accum.':>8}", end="")
    print(f"{'measured':>10}{'predicted':>11}{'range':>18}{'off':>7}   (ms)")
    table = []
    for at, (name, setup) in enumerate(CONFIGURATIONS):
        measured = statistics.median(each.steps[at] for each in found)
        steps = [predict(machine, each.works[name], setup).step for each in found]
        value, low, high = (
            statistics.median(getattr(step, part) for step in steps)
            for part in ("value", "low", "high")
        )
        off = value / measured - 1
        table.append({"model": name, "ranks": setup.ranks, "measured": measured, "off": off})
        table[-1] |= {"predicted": value, "low": low, "high": high}
        cap = setup.bucket_cap_mb or "torch's"
        span = f"{1e3 * low:.1f} to {1e3 * high:.1f}"
        print(
            f"{name:6}{setup.ranks:>6}{setup.batch_size_per_rank:>6}{cap:>8}"
            f"{setup.accumulation_steps:>8}{1e3 * measured:>10.2f}{1e3 * value:>11.2f}"
            f"{span:>18}{off:>+7.0%}"
        )
    return table


def load() -> float:
    """Of the last minute: programs that want a core."""
    return os.getloadavg()[0]


def summarize(table: list[dict[str, object]]) -> float:
    """Print the median errors; returns that of all configurations."""
    for words, rows in (
        ("4 ranks", [row for row in table if row["ranks"] == 4]),
        ("all", table),
    ):
        median = statistics.median(abs(row["off"]) for row in rows)
        print(f"median error, {words}: {median:.1%} of {len(rows)} configurations")
    inside = sum(row["low"] <= row["measured"] <= row["high"] for row in table)
    print(f"in the predicted range: {inside} of {len(table)}")
    print(f"{'within' if median <= LIMIT else 'OVER'} the limit of {LIMIT:.0%}")
    return median


def speed() -> float:
    """Seconds to plan every number of ranks up to 10,000 in 1,000 configurations."""
    inside, between = Link("NVLink", 1e-5, 2e11, 0.2, 0.2), Link("network", 2e-5, 2e10, 0.2, 0.2)
    machine = Machine("GPUs", inside, between, ranks_per_node=8, noise=0.02, model_error=0.1)
    work = Work("ResNet50", 25_600_000, 1.6e-3, error=0.05)
    random = np.random.default_rng(0)
    options = {
        "batch_size_per_rank": random.integers(1, 512, GRID[1]),
        "bucket_cap_mb": random.uniform(1, 200, GRID[1]),
        "accumulation_steps": random.integers(1, 5, GRID[1]),
        "compression": random.uniform(1, 4, GRID[1]),
    }
    step_seconds(machine, work, Setup())  # imports are not planning
    started, had = time.perf_counter(), time.process_time()
    grid = step_seconds(machine, work, Setup(ranks=np.arange(1, GRID[0] + 1)[:, None], **options))
    whole, had = time.perf_counter() - started, time.process_time() - had
    started = time.perf_counter()
    predict(machine, work, Setup(ranks=GRID[0], **options))
    ranged = time.perf_counter() - started
    print(f"\nplanning 1 to {GRID[0]:,} ranks x {GRID[1]:,} configurations: {whole:.2f} s ", end="")
    print(f"({had:.2f} s of a core)")
    print(f"  {grid.size:,} step times; {GRID[1]:,} at {GRID[0]:,} ranks with ranges: ", end="")
    print(f"{1e3 * ranged:.1f} ms")
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the table here, too")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(f"{cores} cores, load {load():.1f} (a load above 0 is other programs)\n")
    table = accuracy(args.rounds)
    median, seconds = summarize(table), speed()
    if args.json:
        found = {"median": median, "planning_seconds": seconds, "table": table}
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
