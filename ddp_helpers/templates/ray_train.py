"""Train a small CNN with DistributedDataParallel: one process per GPU, started by Ray Train.

    python ray_train.py                     # a worker for each GPU; without any, 2
    python ray_train.py --world-size 4 --max-failures 3
    python ray_train.py --address auto --world-size 16 --checkpoint /shared/checkpoint.pt

It needs more than torch:  pip install "ray[train]". The last line is for a Ray cluster that runs
already; then DATA and the checkpoint must lie where every machine sees them.

A way of its own beside the ladder, with the training loop of ddp_spawn.py. Ray starts the workers
and the process group. Rank 0 hands Ray a checkpoint after each epoch. If a worker fails or is
killed, Ray starts all of them again, and they go on from the newest one.
"""

import argparse
import os
import secrets
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray would report to its makers
try:
    import ray
    import ray.train.torch
except ImportError as problem:
    sys.exit(f'error: {problem}: this template needs Ray Train; pip install "ray[train]"')

DATA = Path(__file__).resolve().parent / "../../data/mnist_5k/mnist_5k.pt"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size-per-rank", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--checkpoint", type=Path, default="checkpoint.pt", help="file to write")
    parser.add_argument("--world-size", type=int, default=torch.cuda.device_count() or 2)
    parser.add_argument("--max-failures", type=int, default=0, help="how often to start again")
    parser.add_argument("--address", help="of a Ray cluster; default: one for this run")
    return parser.parse_args()


def build_model() -> nn.Module:
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * 7 * 7, 10))


@torch.no_grad()
def count_right(model: nn.Module, loader: DataLoader, device: torch.device) -> list[int]:
    right = sum((model(x.to(device)).argmax(dim=1) == y.to(device)).sum() for x, y in loader)
    counts = torch.tensor([right, len(loader.dataset)], device=device)
    dist.all_reduce(counts)  # the sum over all ranks
    return counts.tolist()


def train(args: argparse.Namespace):
    """What each worker does."""
    device = ray.train.torch.get_device()
    rank, world_size = dist.get_rank(), dist.get_world_size()
    x, y, held_out_x, held_out_y = torch.load(DATA, weights_only=True)
    train_set = TensorDataset(x[:, None] / 255, y.long())  # images [n, 1, 28, 28] from 0 to 1
    held_out = TensorDataset(held_out_x[:, None] / 255, held_out_y.long())
    held_out = Subset(held_out, range(rank, len(held_out), world_size))  # each sample once
    sampler = DistributedSampler(train_set)  # a share for each rank, all of one size
    loader = DataLoader(train_set, args.batch_size_per_rank, sampler=sampler)

    torch.manual_seed(0)  # the same first weights in every run
    model = build_model().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    done = load_checkpoint(model, optimizer)
    parallel = ray.train.torch.prepare_model(model)  # in DistributedDataParallel, if need be

    for epoch in range(done, args.epochs):
        sampler.set_epoch(epoch)  # without it, every epoch repeats the first one's order
        torch.manual_seed(epoch * world_size + rank)  # each rank has its own dropout
        model.train()
        for x, y in loader:
            loss = nn.functional.cross_entropy(parallel(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        right, seen = count_right(model, DataLoader(held_out, 500), device)
        line = f"epoch {epoch + 1}: {right} of {seen} right, ranks {world_size}"
        report(line, model, optimizer, epoch + 1)


def load_checkpoint(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """After a failure, take up the newest checkpoint; returns the epochs done."""
    if not (saved := ray.train.get_checkpoint()):
        return 0
    with saved.as_directory() as folder:
        content = torch.load(Path(folder, "checkpoint.pt"), map_location="cpu", weights_only=True)
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])  # without it Adam begins again
    return content["epoch"]


def report(line: str, model: nn.Module, optimizer: torch.optim.Optimizer, epoch: int):
    """Give Ray the checkpoint of this epoch; on all ranks, because they wait for one another."""
    with tempfile.TemporaryDirectory() as folder:
        saved = None
        if dist.get_rank() == 0:  # it prints and saves for all
            print(line, flush=True)
            content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(content | {"epoch": epoch}, Path(folder, "checkpoint.pt"))
            saved = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"line": line}, checkpoint=saved)


def run_workers(args: argparse.Namespace, storage: str) -> ray.train.Result:
    """Run train() in every worker, and wait for them."""
    kind = "GPU" if ray.cluster_resources().get("GPU") else "CPU"
    if (found := int(ray.cluster_resources()[kind])) < args.world_size:  # Ray would wait for more
        sys.exit(f"error: --world-size {args.world_size}: Ray has {found} {kind}s; give no more")
    failures = ray.train.FailureConfig(args.max_failures)
    return ray.train.torch.TorchTrainer(
        lambda: train(args),
        scaling_config=ray.train.ScalingConfig(num_workers=args.world_size, use_gpu=kind == "GPU"),
        run_config=ray.train.RunConfig(storage_path=storage, failure_config=failures),
    ).fit()


def main():
    """Start Ray, or join one; train; keep the last checkpoint and nothing else."""
    args = parse_args()
    folder_of_checkpoint = args.checkpoint.absolute().parent
    options = {"address": args.address, "logging_level": "ERROR"}
    with (
        tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp") as folder,  # sockets: a short path
        tempfile.TemporaryDirectory(prefix=".ray-", dir=folder_of_checkpoint) as storage,
    ):
        if not args.address:
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # else it leaves one in $HOME
            options |= {"num_cpus": args.world_size, "include_dashboard": False}
            options |= {"_temp_dir": folder, "_node_ip_address": "127.0.0.1"}  # for this machine
            options["logging_config"] = ray.LoggingConfig(log_level="ERROR")
        with ray.init(**options):
            result = run_workers(args, storage)
            os.replace(Path(result.checkpoint.path, "checkpoint.pt"), args.checkpoint)
            print(f"done: {result.metrics['line']}", flush=True)


if __name__ == "__main__":
    main()
