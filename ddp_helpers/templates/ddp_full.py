"""Train a small CNN with DistributedDataParallel and all that a long run wants.

    python ddp_full.py                                             # a rank for each GPU, or 2
    torchrun --standalone --nproc_per_node=2 ddp_full.py --bf16 --accumulate 4
    srun --ntasks-per-node=2 python ddp_full.py --epochs 50 --patience 5

Beside bfloat16 (--bf16), several batches for each step (--accumulate) and clipped gradients
(--clip) it has a learning rate that warms up and then falls along a cosine (--warmup), an end when
the accuracy no longer rises (--patience), and torch.compile (--compile). As before, the same
command goes on after SIGTERM, SIGUSR1 or a kill, with exit code 75 where it could save, and the
weights come out the same to the last bit as those of an undisturbed run.
"""
# ruff: noqa: E402

import argparse
import contextlib
import ctypes
import glob
import gzip
import itertools
import json
import math
import os
import re
import signal
import socket
import struct
import sys
import tempfile
import time
import zipfile
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

FILES = [f"{s}-{k}-ubyte.gz" for s in ("train", "t10k") for k in ("images-idx3", "labels-idx1")]
STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)  # sent by torchrun and Slurm, as a warning
# Steps after which the ranks ask each other if one got such a signal. They and a save must fit
ASK_EVERY = 10  # into the time that the launcher gives: torchrun 30 s, slurm.sbatch 120 s.
stop_asked = []  # those that this rank has got
EXACT = ("seed", "batch_size_per_rank", "lr", "limit")  # a run that goes on needs the same
EXACT += ("accumulate", "clip", "bf16", "warmup")


def fail(problem: str):
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(3)  # local rank 0 says it for all, and torchrun ends the others
    if report := os.environ.get("TORCHELASTIC_ERROR_FILE"):  # torchrun repeats it in its report
        cause = {"message": f"error: {problem}", "extraInfo": {"timestamp": int(time.time())}}
        Path(report).write_text(json.dumps({"message": cause}))

    sys.exit(f"error: {problem}")


def ask_slurm():
    """srun tells a process who it is in variables of its own: give them the usual names."""
    told = os.environ
    if "RANK" in told or "SLURM_STEP_ID" not in told:  # torchrun's; or a batch script, no rank
        return
    first = re.match(r"([^,\[]+)(?:\[(\w+))?", told["SLURM_STEP_NODELIST"])  # node[01-04],gpu7
    counts = re.findall(r"(\d+)(?:\(x\d+\))?", told["SLURM_STEP_TASKS_PER_NODE"])  # 4(x2),3
    told |= {"RANK": told["SLURM_PROCID"], "WORLD_SIZE": told["SLURM_NTASKS"]}
    told |= {"LOCAL_RANK": told["SLURM_LOCALID"], "LOCAL_WORLD_SIZE": max(counts, key=int)}
    told.setdefault("MASTER_ADDR", "".join(part or "" for part in first.groups()))
    told.setdefault("MASTER_PORT", str(20000 + int(told["SLURM_JOB_ID"]) % 10000))  # one each job


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
    parser.add_argument("--accumulate", type=at_least_1, default=1, help="batches for each step")
    parser.add_argument("--clip", type=float, default=1.0, help="longest gradient; inf: any")
    parser.add_argument("--warmup", type=at_least_1, default=20, help="steps up to the full --lr")
    parser.add_argument("--patience", type=at_least_1, help="end after so many epochs no better")

    parser.add_argument("--bf16", action="store_true", help="compute in bfloat16 where it is safe")
    parser.add_argument("--compile", action="store_true", help="torch.compile: slow start, faster")

    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, help="folder with the four MNIST files")
    parser.add_argument("--checkpoint", type=Path, default="checkpoint.pt")
    parser.add_argument("--save-every", type=at_least_1, default=100, help="so many steps")
    parser.add_argument("--keep", type=at_least_1, default=3, help="so many checkpoints")
    parser.add_argument("--limit", type=at_least_1, help="use only the first LIMIT samples")
    parser.add_argument("--dist-backend", choices=["nccl", "gloo"], help="default: as GPUs allow")
    parser.add_argument("--dist-url", default="env://", help="where the ranks meet")
    parser.add_argument("--world-size", type=at_least_1, default=os.environ.get("WORLD_SIZE"))
    parser.add_argument("--rank", type=int, default=os.environ.get("RANK"))

    args = parser.parse_args()
    args.spawns = args.rank is None  # nobody told it who it is, so it starts the ranks itself
    if not args.spawns and args.world_size is None:
        fail(f"--rank is {args.rank} but --world-size is not set: give the number of all ranks")

    if not args.spawns and not 0 <= args.rank < args.world_size:
        fail(f"--rank is {args.rank}: give 0 or more, below --world-size {args.world_size}")
    told = () if args.spawns else (("RANK", args.rank), ("WORLD_SIZE", args.world_size))
    for name, value in told:
        if os.environ.setdefault(name, str(value)) != str(value):
            flag = "--" + name.lower().replace("_", "-")
            fail(f"{flag} is {value} but torchrun set {name}={os.environ[name]}: leave {flag} out")
    os.environ.setdefault("LOCAL_RANK", str(args.rank or 0))  # started by hand, on one machine
    os.environ.setdefault("LOCAL_WORLD_SIZE", str(args.world_size))

    if args.dist_url != "env://":
        os.environ.pop("TORCHELASTIC_USE_AGENT_STORE", None)  # else no rank listens at the URL
        check_url(args.dist_url, args.rank or 0)
    elif not args.spawns and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        fail("MASTER_ADDR or MASTER_PORT is not set: use torchrun, or --dist-url tcp://HOST:PORT")
    if not args.lr > 0:
        fail(f"--lr is {args.lr}: give a number above 0, such as 0.002")
    if not args.clip > 0:
        fail(f"--clip is {args.clip}: give a number above 0, such as 1.0, or inf")
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
    if os.environ.get("RANK", "0") == "0":
        print("note: no data/mnist_5k here, so it trains on generated patterns", flush=True)


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


if __name__ in ("__main__", "__mp_main__"):  # the warning may come while torch is imported
    signal.signal(signal.SIGUSR1, lambda number, _: stop_asked.append(number))

if __name__ == "__main__":  # before torch, whose import takes seconds: a wrong flag shows at once
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a rank even inside a collective
    ask_slurm()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # if torchrun is killed, so is this rank

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


class ResumableSampler(DistributedSampler):
    """Starts behind the samples of this epoch that its rank has done, and does not load them."""

    done = 0

    def __iter__(self):
        return itertools.islice(super().__iter__(), self.done, None)


def saved_files(path: Path) -> list[Path]:
    """All checkpoints of this name, the newest first."""
    pattern = f"{glob.escape(path.stem)}-{'[0-9]' * 8}{glob.escape(path.suffix)}"
    return sorted(path.parent.glob(pattern), reverse=True)


def save_checkpoint(path: Path, content: dict, keep: int):
    """Write beside it, then rename: nobody ever reads half a file."""
    file = path.with_stem(f"{path.stem}-{content['step']:08}")
    unfinished = path.with_name(path.name + ".tmp")
    with unfinished.open("wb") as stream:
        torch.save(content, stream)
        stream.flush()
        os.fsync(stream.fileno())  # else a power cut may leave the new name on an empty file
    os.replace(unfinished, file)
    for old in saved_files(path)[keep:]:
        old.unlink()


def load_checkpoint(path: Path) -> dict:
    """The newest one that is whole; empty if there is none."""
    for entry in saved_files(path):
        try:
            if damaged := zipfile.ZipFile(entry).testzip():  # torch.load misses a flipped bit
                raise ValueError(f"wrong checksum of {damaged}")
            content = torch.load(entry, map_location="cpu")
            print(f"goes on from {entry.name}", flush=True)
            return content
        except Exception as problem:  # torch raises many kinds
            print(f"note: {entry.name} is damaged ({problem}), an older one is tried", flush=True)
            entry.rename(entry.with_name(entry.name + ".damaged"))  # else it counts as a kept one
    return {}


def check_same(saved: dict, now: dict):
    """Refuse other settings: the run would look continued, and would be another one."""
    for name, value in saved.items():
        if now[name] != value:
            found = f"--{name.replace('_', '-')} is {now[name]}, the checkpoint has {value}"
            fail(f"{found}: give that, or another --checkpoint")


def random_state(device: torch.device) -> dict:
    """The state of this rank's draws; no two ranks have the same."""
    gpu = {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {}
    return {"cpu": torch.get_rng_state(), **gpu}


def set_random_state(state: dict, device: torch.device):
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        if "cuda" not in state:
            fail("this checkpoint is of a run on the CPU: give another --checkpoint")
        torch.cuda.set_rng_state(state["cuda"], device)


def any_rank_asked(group: dist.ProcessGroup) -> bool:
    """Whether any rank got a stop signal; all hear the same, so all stop after the same step."""
    asked = torch.tensor(len(stop_asked))
    dist.all_reduce(asked, dist.ReduceOp.MAX, group=group)
    return asked.item() > 0


def lr_factor(step: int, warmup: int, steps: int) -> float:
    """Up in a line over the first `warmup` steps, then down half a cosine to 0 at `steps`."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, (step - warmup) / max(1, steps - warmup)))


def no_better(history: list[int], patience: int | None) -> bool:
    """Whether the best of these counts is `patience` or more epochs old."""
    since = len(history) - 1 - history.index(max(history)) if history else 0
    return patience is not None and since >= patience


def train(args: argparse.Namespace, device: torch.device):
    rank, world_size = dist.get_rank(), dist.get_world_size()
    train_set, held_out = load_data(args.data, args.limit)
    held_out = Subset(held_out, range(rank, len(held_out), world_size))  # each sample once
    sampler = ResumableSampler(train_set, seed=args.seed)
    loader = DataLoader(train_set, args.batch_size_per_rank, sampler=sampler)
    loader.generator = torch.Generator()  # or each start of the loader moves the saved draws
    held_out_loader = DataLoader(held_out, batch_size=500)

    torch.backends.cudnn.deterministic = True  # else a GPU sums in another order in each run
    torch.manual_seed(args.seed)  # the same first weights in every run
    model = build_model().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    samples_per_step = args.batch_size_per_rank * args.accumulate  # on each rank
    steps = args.epochs * math.ceil(sampler.num_samples / samples_per_step)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor(step, args.warmup, steps)
    )
    kept = {"model": model, "optimizer": optimizer, "schedule": schedule}

    same = {name: vars(args)[name] for name in EXACT} | {"world_size": world_size}
    limit = timedelta(minutes=10)  # a new group does not take that of the first
    control = dist.new_group(backend="gloo", timeout=limit)  # for what is no work for a GPU
    found = [load_checkpoint(args.checkpoint) if rank == 0 else None]
    dist.broadcast_object_list(found, src=0, group=control)  # only rank 0 needs the disk
    saved = found[0]
    if saved:  # before the wrap, which compares and shares the weights
        check_same(saved["same"], same)
        for name, part in kept.items():
            part.load_state_dict(saved[name])
    step, done_epochs = saved.get("step", 0), saved.get("epoch", 0)
    history = saved.get("history", [])  # right answers after each epoch
    if no_better(history, args.patience):
        done_epochs = args.epochs

    if rank == 0 and done_epochs >= args.epochs:
        print("note: that was all; for more give more --epochs, or another --checkpoint")

    parallel = nn.parallel.DistributedDataParallel(model)
    forward = torch.compile(parallel) if args.compile else parallel
    model.eval()  # after its first backward DDP orders its buckets anew, and the sum over three or
    parallel(train_set[0][0][None].to(device)).sum().backward()  # more ranks rounds in another way:
    optimizer.zero_grad()  # so have that done before the first step of a new or continued run

    torch.manual_seed(args.seed + rank)  # other shifts and dropout on every rank
    sums = torch.zeros(2, dtype=torch.float64, device=device)  # of the losses; of the samples
    if saved:
        set_random_state(saved["ranks"][rank]["random"], device)
        sampler.done = saved["done"]
        sums += saved["ranks"][rank]["sums"].to(device)

    def save(epoch: int):
        mine = {"random": random_state(device)}  # what differs from rank to rank
        mine["sums"] = sums.cpu()
        ranks = [None] * world_size if rank == 0 else None
        dist.gather_object(mine, ranks, group=control)
        if rank == 0:
            content = {name: part.state_dict() for name, part in kept.items()}
            content |= {"epoch": epoch, "step": step, "ranks": ranks, "same": same}
            content |= {"done": sampler.done, "history": history}
            save_checkpoint(args.checkpoint, content, args.keep)

    for number in STOP_SIGNALS:
        signal.signal(number, lambda number, _: stop_asked.append(number))
    start = time.perf_counter()
    for epoch in range(done_epochs + 1, args.epochs + 1):
        if no_better(history, args.patience):  # of all ranks' answers, so all agree
            break

        sampler.set_epoch(epoch)  # without it, every epoch repeats the first one's order
        model.train()
        batches = math.ceil((sampler.num_samples - sampler.done) / args.batch_size_per_rank)

        for number, (x, y) in enumerate(loader, start=1):
            x, y = x.to(device), y.to(device)
            x = x.roll(torch.randint(-2, 3, (2,)).tolist(), dims=(2, 3))  # up to two pixels away
            in_step = min(samples_per_step, sampler.num_samples - sampler.done)
            full = number % args.accumulate == 0 or number == batches
            with contextlib.nullcontext() if full else parallel.no_sync():  # the forward too
                with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
                    answers = forward(x)
                loss = nn.functional.cross_entropy(answers.float(), y, reduction="sum")
                (loss / in_step).backward()  # the last step of an epoch may have fewer samples

            sums[0] += loss.detach()
            sums[1] += len(y)
            if not full:
                continue
            nn.utils.clip_grad_norm_(model.parameters(), args.clip)  # of the sum over all batches

            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            step += 1
            sampler.done += in_step
            stopping = step % ASK_EVERY == 0 and any_rank_asked(control)
            if stopping or step % args.save_every == 0:
                save(epoch - 1)
            if stopping:
                if rank == 0:
                    print("stopped and saved; the same command goes on from there", flush=True)
                dist.barrier()  # leave together here, too
                sys.exit(os.EX_TEMPFAIL)  # 75: try again

        dist.all_reduce(sums)
        loss = (sums[0] / sums[1]).item()
        right, seen = evaluate(model, held_out_loader, device)
        accuracy = f"accuracy {right / seen:.4f} ({right} of {seen})"
        seconds = time.perf_counter() - start
        history.append(right)
        sampler.done = 0
        sums.zero_()
        save(epoch)  # all ranks have a part in it
        if rank > 0:  # rank 0 prints for all
            continue
        print(f"epoch {epoch}  loss {loss:.4f}  {accuracy}  seconds {seconds:.1f}", flush=True)
    if rank == 0 and done_epochs < args.epochs:
        print(f"{accuracy}  seconds {seconds:.1f}  ranks {world_size}", flush=True)


def pick_device(number: int = 0) -> torch.device:
    """The GPU of this number, or the CPU if there is no GPU."""
    if not (gpus := torch.cuda.device_count()):
        return torch.device("cpu")
    torch.cuda.set_device(number % gpus)
    return torch.device("cuda", number % gpus)


def main(args: argparse.Namespace):
    local_rank = int(os.environ["LOCAL_RANK"])
    local_world_size = int(os.environ["LOCAL_WORLD_SIZE"])
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_world_size))

    device = pick_device(local_rank)
    gpus = torch.cuda.device_count()
    backend = args.dist_backend or ("nccl" if gpus >= local_world_size else "gloo")
    if backend == "nccl" and gpus < local_world_size:
        fail(f"--dist-backend nccl: GPUs found: {gpus}, ranks here: {local_world_size}; give gloo")

    dist.init_process_group(
        backend,
        init_method=args.dist_url,
        timeout=timedelta(minutes=10),  # no rank waits longer for another
        world_size=args.world_size,
        rank=args.rank,
        device_id=device if backend == "nccl" else None,
    )
    try:
        train(args, device)
        dist.barrier()  # leave together: a rank that goes first can make others abort
    finally:  # after an error NCCL would wait in there for the others: then the process just ends
        if backend == "gloo" or sys.exc_info()[0] is None:
            dist.destroy_process_group()


def spawned(local_rank: int, args: argparse.Namespace):
    """One rank that start() started, told who it is as torchrun would tell it."""
    if not mp.parent_process().is_alive():  # it was killed while this rank started
        return
    args.rank = local_rank
    os.environ |= {"RANK": str(args.rank), "WORLD_SIZE": str(args.world_size)}
    os.environ |= {"LOCAL_RANK": str(local_rank), "LOCAL_WORLD_SIZE": str(args.world_size)}
    main(args)


def start(args: argparse.Namespace):
    """Start the ranks of this machine."""
    for number in STOP_SIGNALS:  # each rank saves, then ends by itself
        signal.signal(number, lambda n, _: [os.kill(c.pid, n) for c in mp.active_children()])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # Ctrl-C must reach the `finally`
    gpus = torch.cuda.device_count()
    args.world_size = args.world_size or gpus or 2
    if args.dist_backend == "nccl" and gpus < args.world_size:
        fail(f"--dist-backend nccl: GPUs found: {gpus}, ranks: {args.world_size}; give gloo")
    with tempfile.TemporaryDirectory() as folder:
        meet = f"file://{folder}/meet"  # no port, so none can clash
        args.dist_url = meet if args.dist_url == "env://" else args.dist_url
        try:
            mp.spawn(spawned, args=(args,), nprocs=args.world_size)
        except mp.ProcessExitedException as end:  # the rank itself has said why
            sys.exit(end.exit_code if end.exit_code > 0 else f"error: {end}")
        finally:  # on Ctrl-C too, no rank is left behind
            for child in mp.active_children():
                child.kill()


if __name__ == "__main__":
    start(args) if args.spawns else main(args)
