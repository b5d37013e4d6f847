"""Train a small CNN in one process and on all its GPUs, with DataParallel.

    python data_parallel.py
    python data_parallel.py --epochs 10 --batch-size 256

`# NEW` marks what differs from the step before, single_process.py. DataParallel copies the model to
each GPU in each step, and one Python process feeds them all: slower than the rungs above, which use
a process for each GPU. With less than two GPUs it just calls the model. Next rung: ddp_one_rank.py.
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, RandomSampler, TensorDataset

DATA = Path(__file__).resolve().parent / "../../data/mnist_5k/mnist_5k.pt"


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
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
    return counts.tolist()


def train(args: argparse.Namespace, device: torch.device):
    x, y, held_out_x, held_out_y = torch.load(DATA, weights_only=True)
    train_set = TensorDataset(x[:, None] / 255, y.long())  # images [n, 1, 28, 28] from 0 to 1
    held_out = TensorDataset(held_out_x[:, None] / 255, held_out_y.long())
    sampler = RandomSampler(train_set, generator=torch.Generator())
    loader = DataLoader(train_set, args.batch_size, sampler=sampler)

    torch.manual_seed(0)  # the same first weights in every run
    model = build_model().to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
    parallel = nn.DataParallel(model)  # NEW  model stays the plain one: evaluate and save that

    for epoch in range(args.epochs):
        sampler.generator.manual_seed(epoch)  # each epoch has its own order
        torch.manual_seed(epoch)  # and its own dropout
        model.train()
        for x, y in loader:
            loss = nn.functional.cross_entropy(parallel(x.to(device)), y.to(device))  # NEW
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        model.eval()
        right, seen = count_right(model, DataLoader(held_out, 500), device)
        print(f"epoch {epoch + 1}: {right} of {seen} right", flush=True)
        torch.save(model.state_dict(), args.weights)


def main():
    args = parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train(args, device)


if __name__ == "__main__":
    main()
