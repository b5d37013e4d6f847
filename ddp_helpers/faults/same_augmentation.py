"""Every rank draws the same random numbers.

`torch.manual_seed(0)` on all ranks is right for the weights, and wrong for what comes after: noise,
crops and dropout are then the same on each rank, and the batch has less variety than its size says.
"""

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="The same augmentation everywhere",
    group="silently wrong",
    says="nothing",
    cause="All ranks have the same seed, so they draw the same noise and the same crops.",
    mend="After the model is built, seed again with `seed + rank`.",
    kind="identical-random-draws",
    seen_in="transformers#37932",
    sanitize=True,
)


class Noisy(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        noise = torch.randn(4)  # stands for a random crop or flip
        return index + noise, noise


def train(seed_of):
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
    torch.manual_seed(seed_of(dist.get_rank()))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=1e-6)
    data, noises = Noisy(), []
    loader = DataLoader(data, batch_size=8, sampler=DistributedSampler(data))
    for x, noise in loader:
        optimizer.zero_grad()
        ddp(x).mean().backward()
        optimizer.step()
        noises.append(round(noise[0, 0].item(), 3))
    dist.barrier()
    dist.destroy_process_group()
    return noises


def faulty():
    return train(seed_of=lambda rank: 0)  # FAULT: the same noise on each rank


def fixed():
    return train(seed_of=lambda rank: 0 + rank)  # MENDED: noise of its own
