"""Train a small CNN with DistributedDataParallel, in a group of one rank: what the loop needs.

    python ddp_one_rank.py
    python ddp_one_rank.py --epochs 10 --batch-size-per-rank 64

`# NEW` marks what differs from the step before, data_parallel.py. Each rank is a process with all
of the model and its own share of the data; DDP averages their gradients in each backward. One rank
alone ends with the very weights of single_process.py. Next rung: ddp_spawn.py, which starts more.
"""

import argparse
from pathlib import Path

import torch
import torch.distributed as dist  # NEW
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset  # NEW

DATA = Path(__file__).resolve().parent / "../../data/mnist_5k/mnist_5k.pt"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size-per-rank", type=int, default=32)  # NEW
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weights", default="weights.pt", help="file to write")
    return parser.parse_args()


def build_model() -> nn.Module:
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * 7 * 7, 10))


@torch.no_grad()
def count_right(model: nn.Module, loader: DataLoader, device: torch.device) -> list[int]:
    right = sum((model(x.to(device)).argmax(dim=1) == y.to(device)).sum() for x, y in loader)
    counts = torch.tensor([right, len(loader.dataset)], device=device)
    dist.all_reduce(counts)  # NEW  the sum over all ranks
    return counts.tolist()


def train(args: argparse.Namespace, device: torch.device):
    rank, world_size = dist.get_rank(), dist.get_world_size()  # NEW
    x, y, held_out_x, held_out_y = torch.load(DATA, weights_only=True)
    train_set = TensorDataset(x[:, None] / 255, y.long())  # images [n, 1, 28, 28] from 0 to 1
    held_out = TensorDataset(held_out_x[:, None] / 255, held_out_y.long())
    held_out = Subset(held_out, range(rank, len(held_out), world_size))  # NEW  each sample once
    sampler = DistributedSampler(train_set)  # NEW  a share for each rank, all of one size
    loader = DataLoader(train_set, args.batch_size_per_rank, sampler=sampler)  # NEW

    torch.manual_seed(0)  # the same first weights in every run
    model = build_model().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    parallel = nn.parallel.DistributedDataParallel(model)  # NEW  model stays the plain one

    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)  # NEW  without it, every epoch repeats the first one's order
        torch.manual_seed(epoch * world_size + rank)  # NEW  each rank has its own dropout
        model.train()
        for x, y in loader:
            loss = nn.functional.cross_entropy(parallel(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        right, seen = count_right(model, DataLoader(held_out, 500), device)
        if rank > 0:  # NEW  rank 0 prints and saves for all
            continue  # NEW
        print(f"epoch {epoch + 1}: {right} of {seen} right, ranks {world_size}", flush=True)  # NEW
        torch.save(model.state_dict(), args.weights)


def main():
    args = parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backend = "nccl" if device.type == "cuda" else "gloo"  # NEW
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)  # NEW
    train(args, device)
    dist.destroy_process_group()  # NEW


if __name__ == "__main__":
    main()
