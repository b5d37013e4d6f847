"""Train a small CNN in one process: the first step to DistributedDataParallel.

    python single_process.py
    python single_process.py --epochs 10 --batch-size 128 --data path/to/mnist_5k

It needs torch and nothing else, and uses a GPU if there is one. Copy the file and make it yours:
load_data() and build_model() are the two functions to replace. Next step: data_parallel.py.
"""
# ruff: noqa: E402

import argparse
import gzip
import os
import struct
import sys
import time
from pathlib import Path

FILES = [f"{s}-{k}-ubyte.gz" for s in ("train", "t10k") for k in ("images-idx3", "labels-idx1")]


def fail(problem: str):
    sys.exit(f"error: {problem}")


def at_least_1(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} found, expected 1 or more")
    return int(text)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.error = lambda problem: fail(f"{problem}; --help lists the flags")
    parser.add_argument("--epochs", type=at_least_1, default=5)
    parser.add_argument("--batch-size", type=at_least_1, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="folder with the four MNIST files")
    parser.add_argument("--checkpoint", type=Path, default="checkpoint.pt")
    parser.add_argument("--limit", type=at_least_1, help="use only the first LIMIT samples")
    args = parser.parse_args()
    if not args.lr > 0:
        fail(f"--lr is {args.lr}: give a number above 0, such as 0.002")
    if args.checkpoint.is_dir() or not os.access(args.checkpoint.parent, os.W_OK):
        fail(f"--checkpoint {args.checkpoint}: give a file in a folder that can be written to")
    args.data = find_data(args.data)
    return args


def find_data(given: Path | None) -> Path | None:
    """The given folder; else ./data/mnist_5k; else the course's own; else none."""
    course = Path(__file__).resolve().parent / "../../data/mnist_5k"
    for folder in [given] if given else [Path("data/mnist_5k"), course]:
        missing = [name for name in FILES if not (folder / name).is_file()]
        if not missing:
            return folder
    if given:
        fail(f"--data {given} has no {missing[0]}: give a folder with the four MNIST files")
    print("note: no data/mnist_5k here, so it trains on generated patterns", flush=True)


if __name__ == "__main__":  # before torch, whose import takes seconds: a wrong flag shows at once
    args = parse_args()

import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset


def read_idx(path: Path) -> torch.Tensor:
    """One MNIST file: 2 bytes of zero, the type, how many dimensions, their sizes, the values."""
    with gzip.open(path) as file:
        raw = bytearray(file.read())
    sizes = struct.unpack_from(f">{raw[3]}I", raw, offset=4)
    return torch.frombuffer(raw, dtype=torch.uint8, offset=4 + 4 * len(sizes)).view(sizes)


def load_data(folder: Path | None, limit: int | None) -> list[TensorDataset]:
    """Training and held-out set: float images [n, 1, 28, 28] from 0 to 1, int64 labels [n]."""
    if folder:
        x, y, held_out_x, held_out_y = (read_idx(folder / name) for name in FILES)
    else:  # ten patterns and noise, the same in every process
        draws = torch.Generator().manual_seed(0)
        patterns = torch.rand(10, 7, 7, generator=draws).kron(torch.ones(1, 4, 4))
        y, held_out_y = torch.randint(10, (5000,), generator=draws).split([4000, 1000])
        noise, held_out_noise = torch.rand(5000, 28, 28, generator=draws).split([4000, 1000])
        x, held_out_x = 255 * patterns[y] * noise, 255 * patterns[held_out_y] * held_out_noise
    sets = (x, y), (held_out_x, held_out_y)
    return [TensorDataset(x[:limit, None] / 255, y[:limit].long()) for x, y in sets]


def build_model() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * 7 * 7, 10)),
    )


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader, device: torch.device) -> list[int]:
    """How many answers were right, of how many."""
    model.eval()
    counts = torch.zeros(2, dtype=torch.int64, device=device)
    for x, y in loader:
        counts[0] += (model(x.to(device)).argmax(dim=1) == y.to(device)).sum()
        counts[1] += len(y)
    return counts.tolist()


def save_checkpoint(path: Path, model: nn.Module, epoch: int):
    """Write beside it, then rename: nobody ever reads half a file."""
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("wb") as stream:
        torch.save({"model": model.state_dict(), "epoch": epoch}, stream)
        stream.flush()
        os.fsync(stream.fileno())  # else a power cut may leave the new name on an empty file
    os.replace(unfinished, path)


def train(args: argparse.Namespace, device: torch.device):
    train_set, held_out = load_data(args.data, args.limit)
    sampler = RandomSampler(train_set, generator=torch.Generator())
    loader = DataLoader(train_set, args.batch_size, sampler=sampler)
    held_out_loader = DataLoader(held_out, batch_size=500)

    torch.manual_seed(args.seed)  # the same first weights in every run
    model = build_model().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    torch.manual_seed(args.seed)  # the random draws of training: shifts and dropout

    start = time.perf_counter()
    for epoch in range(1, args.epochs + 1):
        sampler.generator.manual_seed(args.seed + epoch)  # each epoch has its own order
        model.train()
        sums = torch.zeros(2, dtype=torch.float64, device=device)  # of the losses; of the samples
        for x, y in loader:
            x, y = x.to(device), y.to(device)
            x = x.roll(torch.randint(-2, 3, (2,)).tolist(), dims=(2, 3))  # up to two pixels away
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            sums[0] += loss.detach() * len(y)
            sums[1] += len(y)
        loss = (sums[0] / sums[1]).item()
        right, seen = evaluate(model, held_out_loader, device)
        accuracy = f"accuracy {right / seen:.4f} ({right} of {seen})"
        seconds = time.perf_counter() - start
        print(f"epoch {epoch}  loss {loss:.4f}  {accuracy}  seconds {seconds:.1f}", flush=True)
        save_checkpoint(args.checkpoint, model, epoch)
    print(f"{accuracy}  seconds {seconds:.1f}  ranks 1", flush=True)


def pick_device(number: int = 0) -> torch.device:
    """The GPU of this number, or the CPU if there is no GPU."""
    if not (gpus := torch.cuda.device_count()):
        return torch.device("cpu")
    torch.cuda.set_device(number % gpus)
    return torch.device("cuda", number % gpus)


def main(args: argparse.Namespace):
    device = pick_device()
    train(args, device)


if __name__ == "__main__":
    main(args)
