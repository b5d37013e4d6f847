"""Train a small CNN with DistributedDataParallel: one process per GPU, started by torchrun.

    torchrun --standalone --nproc_per_node=2 ddp_torchrun.py
    torchrun --standalone --nproc_per_node=gpu ddp_torchrun.py --epochs 10

Two machines, two ranks on each, meeting at the one called first; the same line on both:
    torchrun --nnodes=2 --nproc_per_node=2 --rdzv_backend=c10d --rdzv_endpoint=first:29500 \\
        --rdzv_id=my_run ddp_torchrun.py
By hand, a terminal for each rank; this is the first of two:
    python ddp_torchrun.py --rank 0 --world-size 2 --dist-url tcp://localhost:23456

`# NEW` marks what differs from the step before, ddp_spawn.py. torchrun starts the ranks and tells
each in its environment who it is; evaluate() and train() are the same to the letter.
For Slurm, and for long runs, the steps go on: ddp_slurm.py.
"""
# ruff: noqa: E402

import argparse
import ctypes  # NEW
import gzip
import json  # NEW
import os
import signal  # NEW
import socket
import struct
import sys
import time
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

FILES = [f"{s}-{k}-ubyte.gz" for s in ("train", "t10k") for k in ("images-idx3", "labels-idx1")]


def fail(problem: str):
    # NEW
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(3)  # local rank 0 says it for all, and torchrun ends the others
    if report := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # torchrun repeats it in its report
        cause = {"message": f"error: {problem}", "extraInfo": {"timestamp": int(time.time())}}
        Path(report).write_text(json.dumps({"message": cause}))

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
    parser.add_argument("--dist-backend", choices=["nccl", "gloo"], help="default: as GPUs allow")
    # NEW
    parser.add_argument("--dist-url", default="env://", help="where the ranks meet")
    parser.add_argument("--world-size", type=at_least_1, default=os.environ.get("WORLD_SIZE"))
    parser.add_argument("--rank", type=int, default=os.environ.get("RANK"))

    args = parser.parse_args()
    # NEW
    if args.rank is None or args.world_size is None:
        unset = "RANK" if args.rank is None else "WORLD_SIZE"
        command = f"torchrun --standalone --nproc_per_node=2 {sys.argv[0]}"
        fail(f"{unset} is not set, as torchrun would set it; start with  {command}")

    if not 0 <= args.rank < args.world_size:  # NEW
        fail(f"--rank is {args.rank}: give 0 or more, below --world-size {args.world_size}")
    # NEW
    for name, value in (("RANK", args.rank), ("WORLD_SIZE", args.world_size)):
        if os.environ.setdefault(name, str(value)) != str(value):
            flag = "--" + name.lower().replace("_", "-")
            fail(f"{flag} is {value} but torchrun set {name}={os.environ[name]}: leave {flag} out")
    os.environ.setdefault("LOCAL_RANK", str(args.rank))  # started by hand, on one machine
    os.environ.setdefault("LOCAL_WORLD_SIZE", str(args.world_size))

    if args.dist_url != "env://":  # NEW
        os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)  # NEW  else no rank listens at the URL
        check_url(args.dist_url, args.rank)
    # NEW
    elif not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        fail("MASTER_ADDR or MASTER_PORT is not set: use torchrun, or --dist-url tcp://HOST:PORT")

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
    if os.environ.get("RANK", "0") == "0":  # NEW
        print("note: no data/mnist_5k here, so it trains on generated patterns", flush=True)  # NEW


def check_url(url: str, rank: int):
    """Fail now rather than wait at a place where the ranks cannot meet."""
    parts = urlsplit(url)
    try:
        if parts.scheme == "tcp" and parts.hostname and parts.port:
            socket.getaddrinfo(parts.hostname, parts.port)
            if rank == 0:  # it is the one that listens
                socket.create_server(("", parts.port)).close()
        elif parts.scheme != "file" or (rank == 0 and Path(parts.path).exists()):
            raise ValueError("expected tcp://HOST:PORT, or file:// and the path of a new file")
    except (OSError, ValueError) as problem:
        fail(f"--dist-url {url}: {problem}; give another port, host or file")


if __name__ == "__main__":  # before torch, whose import takes seconds: a wrong flag shows at once
    # NEW
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a rank even inside a collective
    if "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # if torchrun is killed, so is this rank

    args = parse_args()

import torch
import torch.distributed as dist
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


# NEW
def main(args: argparse.Namespace):
    local_rank = int(os.environ["LOCAL_RANK"])
    local_world_size = int(os.environ["LOCAL_WORLD_SIZE"])
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world_size))

    device = pick_device(local_rank)
    gpus = torch.cuda.device_count()
    # NEW
    backend = args.dist_backend or ("nccl" if gpus >= local_world_size else "gloo")
    if backend == "nccl" and gpus < local_world_size:
        fail(f"--dist-backend nccl: GPUs found: {gpus}, ranks here: {local_world_size}; give gloo")

    dist.init_process_group(
        backend,
        init_method=args.dist_url,
        timeout=timedelta(minutes=10),  # no rank waits longer for another
        world_size=args.world_size,
        rank=args.rank,  # NEW
        device_id=device if backend == "nccl" else None,
    )
    try:
        train(args, device)
        dist.barrier()  # leave together: a rank that goes first can make others abort
    finally:  # after an error NCCL would wait in there for the others: then the process just ends
        if backend == "gloo" or sys.exc_info()[0] is None:
            dist.destroy_process_group()


if __name__ == "__main__":
    main(args)  # NEW
