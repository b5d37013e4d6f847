"""Train with Ray Train, which replaces workers that fail, and goes on from the last epoch.

    python ray_restart.py                   # a worker for each GPU; without any, 2
    python ray_restart.py --max-failures 3
    python ray_restart.py --address auto --world-size 16 --checkpoint /shared/checkpoint.pt

`# NEW` marks what differs from ray_train.py. Rank 0 hands Ray a checkpoint after each epoch. If a
worker fails or is killed, Ray starts all of them again, and they go on from the newest one.
"""
# ruff: noqa: E402

import argparse
import gzip
import os
import secrets
import struct
import sys
import tempfile
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
    parser.add_argument("--batch-size-per-rank", type=at_least_1, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="folder with the four MNIST files")
    parser.add_argument("--checkpoint", type=Path, default="checkpoint.pt")
    parser.add_argument("--limit", type=at_least_1, help="use only the first LIMIT samples")
    parser.add_argument("--world-size", type=at_least_1, help="ranks; default: one a GPU, or 2")
    parser.add_argument("--address", help="of a Ray cluster; default: one for this run")

    # NEW
    parser.add_argument("--max-failures", type=int, default=0, help="how often to start again")

    args = parser.parse_args()
    if args.max_failures < 0:  # NEW
        fail(f"--max-failures is {args.max_failures}: give 0 or more")  # NEW
    if not args.lr > 0:
        fail(f"--lr is {args.lr}: give a number above 0, such as 0.002")
    if args.checkpoint.is_dir() or not os.access(args.checkpoint.parent, os.W_OK):
        fail(f"--checkpoint {args.checkpoint}: give a file in a folder that can be written to")
    args.data = find_data(args.data)
    args.checkpoint = args.checkpoint.absolute()  # a worker works in another folder
    args.data = args.data and args.data.absolute()
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
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
try:
    import ray
    import ray.train.torch
except ImportError as problem:
    fail(f'{problem}: this template needs Ray Train; pip install "ray[train]"')


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


def save_checkpoint(path: Path, model: nn.Module, optimizer, epoch: int):  # NEW
    """Write beside it, then rename: nobody ever reads half a file."""
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}  # NEW
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("wb") as stream:
        torch.save(state | {"epoch": epoch}, stream)  # NEW
        stream.flush()
        os.fsync(stream.fileno())  # else a power cut may leave the new name on an empty file
    os.replace(unfinished, path)


def train(args: argparse.Namespace):
    device = ray.train.torch.get_device()
    rank, world_size = dist.get_rank(), dist.get_world_size()
    train_set, held_out = load_data(args.data, args.limit)
    held_out = Subset(held_out, range(rank, len(held_out), world_size))  # each sample once
    loader = DataLoader(train_set, args.batch_size_per_rank, shuffle=True)
    loader = ray.train.torch.prepare_data_loader(loader)  # it has a DistributedSampler now

    held_out_loader = DataLoader(held_out, batch_size=500)

    torch.manual_seed(args.seed)  # the same first weights in every run
    model = build_model().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    parallel = ray.train.torch.prepare_model(model)  # in DistributedDataParallel, if need be
    torch.manual_seed(args.seed + rank)  # other shifts and dropout on every rank

    # NEW
    first = 1
    if saved := ray.train.get_checkpoint():  # after a failure
        with saved.as_directory() as folder:
            state = torch.load(Path(folder, "checkpoint.pt"), map_location=device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epoch"] + 1

    start = time.perf_counter()
    for epoch in range(first, args.epochs + 1):  # NEW
        if world_size > 1:
            loader.sampler.set_epoch(epoch)  # without it, every epoch repeats one order
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
        # NEW
        summary = f"{accuracy}  seconds {seconds:.1f}  ranks {world_size}"
        with tempfile.TemporaryDirectory() as folder:
            saved = None
            if rank == 0:  # it prints and saves for all
                print(f"epoch {epoch}  loss {loss:.4f}  {accuracy}", flush=True)
                save_checkpoint(Path(folder, "checkpoint.pt"), model, optimizer, epoch)
                saved = ray.train.Checkpoint.from_directory(folder)
            # on all ranks, because they wait for one another here
            ray.train.report({"summary": summary}, checkpoint=saved)


def start(args: argparse.Namespace):
    """Start Ray, or join one; run train() in every worker, and wait for them."""
    args.world_size = args.world_size or torch.cuda.device_count() or 2
    options = {"address": args.address, "logging_level": "ERROR"}
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder,  # sockets: a short path
        tempfile.TemporaryDirectory(prefix=".ray-", dir=args.checkpoint.parent) as storage,
    ):
        if not args.address:
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # else it leaves one in $HOME
            options |= {"num_cpus": args.world_size, "include_dashboard": False}
            options |= {"_temp_dir": folder, "_node_ip_address": "127.0.0.1"}  # for this machine
            options["logging_config"] = ray.LoggingConfig(log_level="ERROR")
        with ray.init(**options):
            kind = "GPU" if ray.cluster_resources().get("GPU") else "CPU"
            if (found := int(ray.cluster_resources()[kind])) < args.world_size:  # it would wait
                fail(f"--world-size {args.world_size}: Ray has {found} {kind}s; give no more")
            workers = ray.train.ScalingConfig(num_workers=args.world_size, use_gpu=kind == "GPU")
            failures = ray.train.FailureConfig(args.max_failures)  # NEW
            run = ray.train.RunConfig(storage_path=storage, failure_config=failures)  # NEW
            result = ray.train.torch.TorchTrainer(
                lambda: train(args), scaling_config=workers, run_config=run
            ).fit()
            os.replace(Path(result.checkpoint.path, "checkpoint.pt"), args.checkpoint)  # NEW
            print(result.metrics["summary"], flush=True)  # NEW


if __name__ == "__main__":
    start(args)
