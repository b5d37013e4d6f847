"""Train a small CNN with DistributedDataParallel: one process per GPU, started by torchrun.

    torchrun --standalone --nproc_per_node=2 ddp_torchrun.py
    torchrun --standalone --nproc_per_node=gpu ddp_torchrun.py --epochs 10

Two machines, two ranks on each, meeting at the one called first; the same line on both:
    torchrun --nnodes=2 --nproc_per_node=2 --rdzv_backend=c10d --rdzv_endpoint=first:29500 \\
        --rdzv_id=my_run ddp_torchrun.py

`# NEW` marks what differs from the step before, ddp_spawn.py. torchrun starts the ranks, and tells
each in its environment who it is; train() is the same to the letter. Next rung: ddp_resume.py.
"""

import argparse
import os  # NEW
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.elastic.multiprocessing.errors import record  # NEW
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset

DATA = Path(__file__).resolve().parent / "../../data/mnist_5k/mnist_5k.pt"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size-per-rank", type=int, default=32)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weights", default="weights.pt", help="file to write")
    parser.add_argument("--dist-backend", help="default: nccl if all have a GPU, else gloo")
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
@record  # torchrun's report shows the error of the rank that failed first
def main():
    args = parse_args()
    if "RANK" not in os.environ:  # without torchrun: one rank
        os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost"}
        os.environ |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "MASTER_PORT": "0"}
    local_rank = int(os.environ["LOCAL_RANK"])

    device = torch.device("cpu")
    if torch.cuda.device_count() >= int(os.environ["LOCAL_WORLD_SIZE"]):  # NEW
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)  # else all ranks land on the first GPU
    backend = args.dist_backend or ("nccl" if device.type == "cuda" else "gloo")
    dist.init_process_group(backend)  # NEW  env://: who and where stands in the environment
    train(args, device)  # an error ends the process at once, so that no other rank is blamed
    dist.barrier()  # leave together: a rank that goes first can make others abort
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
