"""What watching costs: the demo model on two ranks, plain, every step watched, every 50th.

    python tests/benchmarks/bench_sanitizer.py [--rounds 7] [--epochs 2]

The three take turns within one run, so that a busy machine slows all of them alike; the ratios
count, not the milliseconds.
"""

import argparse
import statistics
import time

import torch
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from ddp_helpers import launch, process_group
from ddp_helpers.data import load_mnist_5k, make_train_loader
from ddp_helpers.model import SmallCNN

WAYS = {"plain": False, "every step": True, "every 50th": 50}


def train(epochs):
    """Milliseconds a step, of each epoch but the first."""
    with process_group() as pg:
        torch.manual_seed(0)
        loader = make_train_loader(
            load_mnist_5k(), 32, rank=pg.rank, world_size=pg.world_size, seed=0
        )
        ddp = DistributedDataParallel(SmallCNN())
        optimizer = torch.optim.Adam(ddp.parameters(), lr=3e-3)
        return [1e3 * epoch_seconds(ddp, optimizer, loader, i) for i in range(epochs + 1)][1:]


def epoch_seconds(ddp, optimizer, loader, epoch):
    """Of one step, on average over an epoch."""
    started = time.perf_counter()
    loader.sampler.set_epoch(epoch)
    for images, labels in loader:
        optimizer.zero_grad()
        F.cross_entropy(ddp(images), labels).backward()
        optimizer.step()
    return (time.perf_counter() - started) / len(loader)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=2)
    args = parser.parse_args()
    measured = {name: [] for name in WAYS}
    for _ in range(args.rounds):
        for name, sanitize in WAYS.items():
            result = launch(
                train, 2, args=(args.epochs,), sanitize=sanitize, echo=False, threads_per_rank=1
            )
            measured[name] += result.values[0]
    plain = statistics.median(measured["plain"])
    for name, times in measured.items():
        median, ratio = statistics.median(times), statistics.median(times) / plain
        print(f"{name:12} {median:7.2f} ms a step (of {len(times)})   ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
