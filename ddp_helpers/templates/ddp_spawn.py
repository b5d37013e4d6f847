"""Train a small CNN with DistributedDataParallel: one process per GPU, started by mp.spawn.

    python ddp_spawn.py                                   # a rank for each GPU; without any, 2
    python ddp_spawn.py --world-size 4 --batch-size-per-rank 16

On two machines with two ranks each, add to the last line  --nprocs 2 --dist-url tcp://first:23456
and on the second one  --rank 2, too. `# NEW` marks what differs from the step before,
ddp_one_rank.py: how ranks start, meet and leave. Next rung: ddp_torchrun.py.
"""

import argparse
import tempfile  # NEW
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp  # NEW
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset

DATA = Path(__file__).resolve().parent / "../../data/mnist_5k/mnist_5k.pt"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size-per-rank", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weights", default="weights.pt", help="file to write")
    parser.add_argument("--dist-backend", help="default: nccl if all have a GPU, else gloo")  # NEW
    parser.add_argument("--dist-url", help="where the ranks meet; default: a file here")  # NEW
    parser.add_argument("--world-size", type=int, default=torch.cuda.device_count() or 2)  # NEW
    parser.add_argument("--nprocs", type=int, help="ranks here; default: all from --rank on")  # NEW
    parser.add_argument("--rank", type=int, default=0, help="the first rank here")  # NEW
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


def train(args: argparse.Namespace, device: torch.device):
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
    parallel = nn.parallel.DistributedDataParallel(model)  # model stays the plain one

    for epoch in range(args.epochs):
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
        if rank > 0:  # rank 0 prints and saves for all
            continue
        print(f"epoch {epoch + 1}: {right} of {seen} right, ranks {world_size}", flush=True)
        torch.save(model.state_dict(), args.weights)


# NEW
def run_rank(local_rank: int, args: argparse.Namespace):
    torch.set_num_threads(1 if args.nprocs > 1 else torch.get_num_threads())  # as under torchrun
    device = torch.device("cpu")
    if torch.cuda.device_count() >= args.nprocs:
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)  # else all ranks land on the first GPU
    backend = args.dist_backend or ("nccl" if device.type == "cuda" else "gloo")
    rank = args.rank + local_rank
    dist.init_process_group(backend, args.dist_url, rank=rank, world_size=args.world_size)
    train(args, device)  # an error ends the process at once, so that no other rank is blamed
    dist.barrier()  # leave together: a rank that goes first can make others abort
    dist.destroy_process_group()


def main():
    args = parse_args()
    # NEW
    args.nprocs = args.nprocs or args.world_size - args.rank
    with tempfile.TemporaryDirectory() as folder:
        args.dist_url = args.dist_url or f"file://{folder}/meet"  # no port, so none can clash
        try:
            mp.spawn(run_rank, (args,), nprocs=args.nprocs)
        finally:  # on Ctrl-C, too, no rank is left behind
            for child in mp.active_children():
                child.kill()


if __name__ == "__main__":
    main()
