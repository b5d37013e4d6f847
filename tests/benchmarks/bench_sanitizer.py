"""What watching costs: two ranks, plain, every step watched, every 50th; two models.

    python tests/benchmarks/bench_sanitizer.py [--rounds 9] [--steps 60] [--model demo]

The three take turns within one run of the ranks, so that a busy machine slows all of them alike;
the ratios count, not the milliseconds. A round's ratio is taken within the round. Where other
programs want the cores, too, each wait lasts as long as they like: there the ratio of rank 0's own
work (of all its threads) tells more than that of the time.
"""

import argparse
import contextlib
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from ddp_helpers import launch, process_group, sanitize
from ddp_helpers.data import load_mnist_5k, make_train_loader
from ddp_helpers.model import SmallCNN

WAYS = {
    "plain": contextlib.nullcontext,
    "every step": sanitize,
    "every 50th": lambda: sanitize(every=50),
}
WARM = 12  # steps at the start of each turn, in which more is looked at than later
LAYERS, WIDTH = 150, 64


def demo(pg):
    """The course's own model, on MNIST."""
    loader = make_train_loader(load_mnist_5k(), 32, rank=pg.rank, world_size=pg.world_size, seed=0)
    return SmallCNN(), loader


def layers(pg):
    """150 small layers, where each of the many small tensors costs more than what is in it."""
    blocks = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(LAYERS)]
    data = TensorDataset(torch.randn(4096, WIDTH), torch.randint(10, (4096,)))
    sampler = DistributedSampler(data, seed=0)
    return nn.Sequential(*blocks, nn.Linear(WIDTH, 10)), DataLoader(data, 32, sampler=sampler)


MODELS = {"demo": demo, "150 layers": layers}


def measure(name, rounds, steps):
    """For each way: milliseconds a step, and those of them at work, in each round."""
    found = {way: [] for way in WAYS}
    with process_group() as pg:
        for number in range(rounds):
            order = list(WAYS)[:: -1 if number % 2 else 1]
            for way in order:
                torch.manual_seed(0)
                model, loader = MODELS[name](pg)
                with WAYS[way]():
                    found[way].append(step_milliseconds(model, loader, steps))
    return found


def step_milliseconds(model, loader, steps):
    """Of one step, and those at work, on average over some that follow the first ones."""
    ddp = DistributedDataParallel(model)
    optimizer = torch.optim.Adam(ddp.parameters(), lr=1e-3)
    done, started = 0, (0.0, 0.0)
    for epoch in range(1 << 20):
        loader.sampler.set_epoch(epoch)
        for inputs, labels in loader:
            if done == WARM:
                started = time.perf_counter(), time.process_time()
            if done == WARM + steps:
                ended = time.perf_counter(), time.process_time()
                return [1e3 * (b - a) / steps for a, b in zip(started, ended, strict=True)]
            optimizer.zero_grad()
            F.cross_entropy(ddp(inputs), labels).backward()
            optimizer.step()
            done += 1
    return None


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--model", choices=MODELS, help="only this one")
    args = parser.parse_args()
    for name in [args.model] if args.model else MODELS:
        result = launch(
            measure,
            2,
            args=(name, args.rounds, args.steps),
            echo=False,
            threads_per_rank=1,
            timeout=3600,
        )
        measured = result.values[0]
        print(f"{name}, 2 ranks, {args.rounds} rounds of {args.steps} steps")
        for way in WAYS:
            (time_ms, time_ratio), (work_ms, work_ratio) = (
                medians(measured[way], measured["plain"], which) for which in (0, 1)
            )
            print(
                f"  {way:11} {time_ms:7.2f} ms a step, ratio {time_ratio:.2f};"
                f" {work_ms:7.2f} ms at work, ratio {work_ratio:.2f}"
            )


def medians(measured, plain, which):
    """Of the milliseconds, and of their ratios to the plain ones of the same round."""
    times = [each[which] for each in measured]
    ratios = [time / each[which] for time, each in zip(times, plain, strict=True)]
    return statistics.median(times), statistics.median(ratios)


if __name__ == "__main__":
    main()
