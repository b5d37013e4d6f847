"""Train a small CNN with DistributedDataParallel, and leave nothing behind when it goes wrong.

    python ddp_safe.py                                     # a rank for each GPU; without any, 2
    python ddp_safe.py --world-size 4 --dist-backend gloo

`# NEW` marks what differs from the step before, ddp_minimal.py. No rank waits for another without
end, none outlives the process that started it, and a backend that cannot work is refused before
the ranks start. Next step: ddp_spawn.py.
"""
# ruff: noqa: E402

import argparse
import gzip
import os
import struct
import sys
import tempfile
import time
from datetime import timedelta  # NEW
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
    parser.add_argument("--batch-size-per-rank", type=at_least_1, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="folder with the four MNIST files")
    parser.add_argument("--checkpoint", type=Path, default="checkpoint.pt")
    parser.add_argument("--limit", type=at_least_1, help="use only the first LIMIT samples")
    # NEW
    parser.add_argument("--dist-backend", choices=["nccl", "gloo"], help="default: as GPUs allow")

    parser.add_argument("--world-size", type=at_least_1, help="ranks; default: one a GPU, or 2")
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
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset


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
    dist.all_reduce(counts)  # the sum over all ranks
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
    rank, world_size = dist.get_rank(), dist.get_world_size()
    train_set, held_out = load_data(args.data, args.limit)
    held_out = Subset(held_out, range(rank, len(held_out), world_size))  # each sample once
    sampler = DistributedSampler(train_set, seed=args.seed)
    loader = DataLoader(train_set, args.batch_size_per_rank, sampler=sampler)
    held_out_loader = DataLoader(held_out, batch_size=500)

    torch.manual_seed(args.seed)  # the same first weights in every run
    model = build_model().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    parallel = nn.parallel.DistributedDataParallel(model)
    torch.manual_seed(args.seed + rank)  # other shifts and dropout on every rank

    start = time.perf_counter()
    for epoch in range(1, args.epochs + 1):
        sampler.set_epoch(epoch)  # without it, every epoch repeats the first one's order
        model.train()
        sums = torch.zeros(2, dtype=torch.float64, device=device)  # of the losses; of the samples
        for x, y in loader:
            x, y = x.to(device), y.to(device)
            x = x.roll(torch.randint(-2, 3, (2,)).tolist(), dims=(2, 3))  # up to two pixels away
            loss = nn.functional.cross_entropy(parallel(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            sums[0] += loss.detach() * len(y)
            sums[1] += len(y)
        dist.all_reduce(sums)
        loss = (sums[0] / sums[1]).item()
        right, seen = evaluate(model, held_out_loader, device)
        accuracy = f"accuracy {right / seen:.4f} ({right} of {seen})"
        seconds = time.perf_counter() - start
        if rank > 0:  # rank 0 prints and saves for all
            continue
        print(f"epoch {epoch}  loss {loss:.4f}  {accuracy}  seconds {seconds:.1f}", flush=True)
        save_checkpoint(args.checkpoint, model, epoch)
    if rank == 0:
        print(f"{accuracy}  seconds {seconds:.1f}  ranks {world_size}", flush=True)


def pick_device(number: int = 0) -> torch.device:
    """The GPU of this number, or the CPU if there is no GPU."""
    if not (gpus := torch.cuda.device_count()):
        return torch.device("cpu")
    torch.cuda.set_device(number % gpus)
    return torch.device("cuda", number % gpus)


def main(local_rank: int, args: argparse.Namespace):
    if not mp.parent_process().is_alive():  # NEW  it was killed while this rank started
        return  # NEW
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // args.world_size))  # share them
    device = pick_device(local_rank)
    gpus = torch.cuda.device_count()
    # NEW
    backend = args.dist_backend or ("nccl" if gpus >= args.world_size else "gloo")
    dist.init_process_group(
        backend,
        init_method=args.dist_url,
        timeout=timedelta(minutes=10),  # no rank waits longer for another
        world_size=args.world_size,
        rank=local_rank,
        device_id=device if backend == "nccl" else None,
    )

    # NEW
    try:
        train(args, device)
        dist.barrier()  # leave together: a rank that goes first can make others abort
    finally:  # after an error NCCL would wait in there for the others: then the process just ends
        if backend == "gloo" or sys.exc_info()[0] is None:
            dist.destroy_process_group()


def start(args: argparse.Namespace):
    # NEW
    """Start the ranks, and end them all when one fails."""
    gpus = torch.cuda.device_count()
    args.world_size = args.world_size or gpus or 2
    if args.dist_backend == "nccl" and gpus < args.world_size:
        fail(f"--dist-backend nccl: GPUs found: {gpus}, ranks: {args.world_size}; give gloo")

    with tempfile.TemporaryDirectory() as folder:
        args.dist_url = f"file://{folder}/meet"  # no port, so none can clash
        # NEW
        try:
            mp.spawn(main, args=(args,), nprocs=args.world_size)
        finally:  # on Ctrl-C too, no rank is left behind
            for child in mp.active_children():
                child.kill()


if __name__ == "__main__":
    start(args)
