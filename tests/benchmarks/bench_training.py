"""Samples a second of `training.fit` and starter.py beside a plain loop, accelerate and Fabric.

    python tests/benchmarks/bench_training.py                   all three parts, 15 rounds
    python tests/benchmarks/bench_training.py --quick           two rounds, to see that it works
    python tests/benchmarks/bench_training.py --parts loops --json training.json

Part "loops": two ranks of one thread train the same model on the same digits; the loops take
turns epoch by epoch within the same processes, so a machine that slows down slows all of them.
Part "starter": starter.py beside loops that draw, clip and schedule as it does, on its data; with
its own small model, then with one whose step takes some ten times as long.
Part "speedup": samples a second of two ranks over one, one thread each, on a larger model; and of
two that never talk, which is what the machine has to give.
Ratios are taken within a round; a table shows their median. The alternatives come from
requirements.txt beside this file, in a virtual environment of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench_launch import REPOSITORY, describe_machine, enter_environment, print_table, spread

Speeds = dict[str, list[float]]  # samples a second of each round, by name
PARTS = ("loops", "starter", "speedup")
STARTER = REPOSITORY / "ddp_helpers" / "templates" / "starter.py"
BATCH = 32  # samples a rank
LARGE_BATCH, LARGE_STEPS = 128, 10  # of the compute-bound model: samples a rank; steps in a turn
LIMIT = 3968  # samples an epoch, all ranks together: whole batches, so that nobody pads
LR = 2e-3


# ---- what the ranks do: each loop is a function that trains epoch n and returns its seconds


def small_model():
    """That of the templates: 20,000 weights, so the loop's own cost shows."""
    from torch import nn

    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * 7 * 7, 10)),
    )


def large_model():
    """Compute-bound: some 100 times the arithmetic of an all_reduce."""
    from torch import nn

    return nn.Sequential(
        *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * 7 * 7, 10)),
    )


def parts(build=small_model):
    """The model and its optimizer, the same for all loops."""
    import torch

    torch.manual_seed(0)
    model = build()
    return model, torch.optim.Adam(model.parameters(), lr=LR)


def digits():
    from torch.utils.data import TensorDataset

    from ddp_helpers.data import load_mnist_5k

    return TensorDataset(*[part[:LIMIT] for part in load_mnist_5k().tensors])


def plain_loop():
    """The plainest correct loop, by hand."""
    import torch
    import torch.distributed as dist
    from torch.nn import functional as F
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DataLoader, DistributedSampler

    model, optimizer = parts()
    ddp = DistributedDataParallel(model)
    data = digits()
    sampler = DistributedSampler(data)
    loader = DataLoader(data, BATCH, sampler=sampler)

    def epoch(number: int) -> float:
        started = time.perf_counter()
        sampler.set_epoch(number)
        model.train()
        sums = torch.zeros(2, dtype=torch.float64)
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(ddp(images), labels)
            loss.backward()
            optimizer.step()
            sums[0] += loss.detach() * len(labels)
            sums[1] += len(labels)
        dist.all_reduce(sums)
        return time.perf_counter() - started

    return epoch


def fit_loop():
    """training.fit; the seconds that its record gives for training."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import Subset

    from ddp_helpers.data import make_eval_loader, make_resumable_loader
    from ddp_helpers.training import fit

    model, optimizer = parts()
    data, ddp = digits(), DistributedDataParallel(model)
    place = {"rank": dist.get_rank(), "world_size": dist.get_world_size()}
    loader = make_resumable_loader(data, BATCH * dist.get_world_size(), **place)
    test_loader = make_eval_loader(Subset(data, range(8)), 8, **place)

    def epoch(number: int) -> float:
        (record,) = fit(
            ddp,
            loader,
            test_loader,
            optimizer,
            epochs=number + 1,
            start_epoch=number,
            device="cpu",
        )
        return len(data) / record.samples_per_second

    return epoch


def accelerate_loop():
    """As in accelerate's examples: prepare() everything, accelerator.backward()."""
    import torch
    import torch.distributed as dist
    from accelerate import Accelerator
    from torch.nn import functional as F
    from torch.utils.data import DataLoader

    accelerator = Accelerator(cpu=True)
    model, optimizer = parts()
    loader = DataLoader(digits(), BATCH, shuffle=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    assert accelerator.num_processes == dist.get_world_size()
    return _library_loop(model, optimizer, loader, accelerator.backward, F, torch, dist)


def fabric_loop():
    """As in Fabric's documentation: setup() the parts, fabric.backward()."""
    import torch
    import torch.distributed as dist
    from lightning_fabric import Fabric
    from torch.nn import functional as F
    from torch.utils.data import DataLoader

    fabric = Fabric(accelerator="cpu", devices=dist.get_world_size(), strategy="ddp")
    fabric.launch()
    model, optimizer = fabric.setup(*parts())
    loader = fabric.setup_dataloaders(DataLoader(digits(), BATCH, shuffle=True))
    assert fabric.world_size == dist.get_world_size()
    return _library_loop(model, optimizer, loader, fabric.backward, F, torch, dist)


def _library_loop(model, optimizer, loader, backward, F, torch, dist):
    def epoch(number: int) -> float:
        started = time.perf_counter()
        if hasattr(loader, "set_epoch"):
            loader.set_epoch(number)
        model.train()
        sums = torch.zeros(2, dtype=torch.float64)
        for images, labels in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            backward(loss)
            optimizer.step()
            sums[0] += loss.detach() * len(labels)
            sums[1] += len(labels)
        dist.all_reduce(sums)
        assert sums[1] == LIMIT, sums
        return time.perf_counter() - started

    return epoch


LOOPS: dict[str, Callable] = {
    "plain loop": plain_loop,
    "training.fit": fit_loop,
    "accelerate": accelerate_loop,
    "Fabric": fabric_loop,
}


def take_turns(rounds: int, loops: dict[str, Callable]) -> tuple[Speeds, Speeds]:
    """On each rank: an epoch of each loop, round after round.

    Samples a second by loop, by the clock and by this rank's CPU time: the second hardly changes
    when others use the machine too.
    """
    import torch.distributed as dist

    from ddp_helpers import process_group

    with process_group(backend="gloo"), contextlib.redirect_stderr(io.StringIO()):
        names = [*loops]
        loops = {name: start() for name, start in loops.items()}
        speeds: Speeds = {name: [] for name in names}
        by_cpu: Speeds = {name: [] for name in names}
        for number in range(rounds + 1):
            shift = number % len(names)  # nobody always comes first
            for name in [*names[shift:], *names[:shift]]:
                dist.barrier()
                started = time.process_time()
                seconds = loops[name](number)
                if number > 0:  # the first is for warming up
                    speeds[name].append(LIMIT / seconds)
                    by_cpu[name].append(LIMIT / (time.process_time() - started))
        return speeds, by_cpu


# ---- the same job as starter.py's own, by hand and with a library around the loop


def starter_module(build: Callable | None):
    """starter.py as a module; `build` in place of its own model."""
    spec = importlib.util.spec_from_file_location("starter", STARTER)
    module = importlib.util.module_from_spec(spec)
    sys.modules["starter"] = module
    spec.loader.exec_module(module)
    module.make_model = build or module.make_model
    return module


def starter_loop(build):
    """starter.py's own epoch, with all that it does in one."""
    import torch
    import torch.distributed as dist

    starter = starter_module(build)
    folder = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folder)
    sys.argv = [str(STARTER), "--run-folder", folder[0], "--log-every", "50", "--epochs", "1000"]
    training = starter.Training(starter.parse_args(), torch.device("cpu"))

    def epoch(number: int) -> float:
        started = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            training.run_epoch()
        training.at |= {"epoch": number + 2, "done": 0, "loss": 0.0, "count": 0.0}
        return time.perf_counter() - started

    return epoch


def starters_job(build):
    """Its model, optimizer, schedule and data, for a loop of one's own."""
    import torch

    starter = starter_module(build)
    torch.manual_seed(0)
    model = starter.make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    return model, optimizer, schedule, starter.make_datasets()[0]


def own_loop(model, optimizer, schedule, loader, *, forward=None, backward=None, clip=None):
    """A loop that clips, schedules and adds up as starter.py does."""
    import torch
    import torch.distributed as dist
    from torch.nn import functional as F

    forward, backward = forward or model, backward or (lambda loss: loss.backward())
    clip = clip or (lambda: torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))

    def epoch(number: int) -> float:
        started = time.perf_counter()
        for each in (loader, loader.sampler):
            if hasattr(each, "set_epoch"):
                each.set_epoch(number)
        model.train()
        sums = torch.zeros(2, dtype=torch.float64)
        for images, labels in loader:
            loss = F.cross_entropy(forward(images), labels)
            backward(loss)
            clip()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            sums[0] += loss.detach() * len(labels)
            sums[1] += len(labels)
        dist.all_reduce(sums)
        return time.perf_counter() - started

    return epoch


def plain_job(build):
    from torch.nn.parallel import DistributedDataParallel
    from torch.utils.data import DataLoader, DistributedSampler

    model, optimizer, schedule, data = starters_job(build)
    loader = DataLoader(data, BATCH, sampler=DistributedSampler(data))
    return own_loop(model, optimizer, schedule, loader, forward=DistributedDataParallel(model))


def accelerate_job(build):
    from accelerate import Accelerator
    from torch.utils.data import DataLoader

    accelerator = Accelerator(cpu=True)
    model, optimizer, schedule, data = starters_job(build)
    loader = DataLoader(data, BATCH, shuffle=True)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, loader, schedule)

    def clip():
        accelerator.clip_grad_norm_(model.parameters(), 1.0)

    return own_loop(model, optimizer, schedule, loader, backward=accelerator.backward, clip=clip)


def fabric_job(build):
    import torch.distributed as dist
    from lightning_fabric import Fabric
    from torch.utils.data import DataLoader

    fabric = Fabric(accelerator="cpu", devices=dist.get_world_size(), strategy="ddp")
    fabric.launch()
    model, optimizer, schedule, data = starters_job(build)
    model, optimizer = fabric.setup(model, optimizer)
    loader = fabric.setup_dataloaders(DataLoader(data, BATCH, shuffle=True))

    def clip():
        fabric.clip_gradients(model, optimizer, max_norm=1.0)

    return own_loop(model, optimizer, schedule, loader, backward=fabric.backward, clip=clip)


JOBS: dict[str, Callable] = {
    "plain loop": plain_job,
    "starter.py": starter_loop,
    "accelerate": accelerate_job,
    "Fabric": fabric_job,
}


def one_and_two(rounds: int) -> Speeds:
    """The larger model: rank 0 alone, both ranks without a word, both under DDP, in turns.

    The second is what two processes of this machine can do at most.
    """
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from ddp_helpers import process_group

    with process_group(backend="gloo") as pg:
        alone, shared = parts(large_model), parts(large_model)
        images, labels = (part[: LARGE_BATCH * pg.world_size] for part in digits().tensors)
        mine = images[pg.rank :: pg.world_size], labels[pg.rank :: pg.world_size]
        ways = {"1 rank": alone, "2 ranks, not in touch": alone}
        ways |= {"2 ranks": (DistributedDataParallel(shared[0]), shared[1])}
        speeds: Speeds = {name: [] for name in ways}
        for number in range(rounds + 1):
            shift = number % len(ways)  # nobody always comes first
            for name in [*list(ways)[shift:], *list(ways)[:shift]]:
                ranks = int(name[0])
                dist.barrier()
                started = time.perf_counter()
                if pg.rank < ranks:
                    train_steps(*ways[name], *mine)
                dist.barrier()
                seconds = time.perf_counter() - started
                if number > 0:  # the first is for warming up
                    speeds[name].append(ranks * LARGE_STEPS * LARGE_BATCH / seconds)
        return speeds


def train_steps(model, optimizer, images, labels):
    from torch.nn import functional as F

    for _ in range(LARGE_STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


# ---- rounds and tables


def print_speeds(title: str, speeds: Speeds) -> None:
    """Medians with their spread, and ratios to the first row, taken within rounds."""
    base, rows = next(iter(speeds.values())), []
    for name, values in speeds.items():
        ratios = [mine / theirs for mine, theirs in zip(values, base, strict=True)]
        rows.append([name, spread(values, 0), spread(ratios, 3)])
    header = ["", "samples/s", f"ratio to {next(iter(speeds))}"]
    print_table(title, header, rows)


def measure(arguments: argparse.Namespace) -> dict[str, Speeds]:
    from ddp_helpers import launch

    rounds = 2 if arguments.quick else arguments.rounds
    options = {"threads_per_rank": 1, "echo": False, "timeout": 3600.0}
    results = {}
    if "loops" in arguments.parts:
        loops = {name: LOOPS[name] for name in LOOPS if name in (arguments.only or LOOPS)}
        found, by_cpu = launch(take_turns, 2, args=(rounds, loops), **options).values[0]
        print_speeds(f"2 ranks x 1 thread, {rounds} epochs: median (least-greatest)", found)
        print_speeds("The same by the CPU time of rank 0", by_cpu)
        results |= {"loops": found, "loops by CPU time": by_cpu}
    if "starter" in arguments.parts:
        for title, build in (("starter.py's own model", None), ("a larger model", large_model)):
            loops = {name: functools.partial(start, build) for name, start in JOBS.items()}
            loops = {name: loops[name] for name in JOBS if name in (arguments.only or JOBS)}
            found, by_cpu = launch(take_turns, 2, args=(rounds, loops), **options).values[0]
            print_speeds(f"{title}, each loop clips, schedules and adds up", found)
            print_speeds("The same by the CPU time of rank 0", by_cpu)
            results |= {f"starter, {title}": found, f"starter, {title}, by CPU time": by_cpu}
    if "speedup" in arguments.parts:
        found = launch(one_and_two, 2, args=(rounds,), **options).values[0]
        results["speedup"] = found
        print_speeds("One thread a rank, a compute-bound model", found)
    return results


def main() -> None:
    """Measure what was asked for and print the tables."""
    arguments = parse_arguments()
    enter_environment(arguments.venv.resolve(), Path(__file__))
    report = {"machine": describe_machine(), "load before": os.getloadavg()}
    results = measure(arguments)
    report["load after"] = os.getloadavg()
    print(json.dumps(report))
    if arguments.json:
        text = json.dumps(report | results, indent=1)
        arguments.json.write_text(text + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="training.fit beside its alternatives")
    parser.add_argument("--rounds", type=int, default=15, help="epochs of each loop (default: 15)")
    parser.add_argument("--quick", action="store_true", help="two rounds")
    parser.add_argument("--only", nargs="+", choices={**LOOPS, **JOBS}, metavar="LOOP")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path, metavar="FILE", help="every figure, also raw ones")
    parser.add_argument("--venv", type=Path, default=REPOSITORY / ".venv-bench")
    arguments = parser.parse_args()
    if arguments.rounds < 2:
        parser.error(f"--rounds {arguments.rounds}: expected at least 2")
    return arguments


if __name__ == "__main__":
    main()
