"""Each rank shuffles for itself, and takes its part.

`torch.randperm(n)[rank::world_size]` divides a shuffle; but every rank divides another one. Some
samples are seen twice in an epoch, others never.
"""

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Subset, TensorDataset

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Each rank divides its own shuffle",
    group="silently wrong",
    says="nothing",
    cause="The ranks shuffle with different seeds before they divide, so their parts overlap.",
    mend="Shuffle with one seed on all ranks, or let DistributedSampler do it.",
    kind="overlapping-data",
    sanitize=True,
)


def train(seed_of):
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    shuffle = torch.randperm(32, generator=torch.Generator().manual_seed(seed_of(rank)))
    data = Subset(TensorDataset(torch.arange(32.0)), shuffle[rank::size].tolist())
    ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=1e-6)
    seen = []
    for (x,) in DataLoader(data, batch_size=4):
        optimizer.zero_grad()
        ddp(x[:, None]).mean().backward()
        optimizer.step()
        seen += x.int().tolist()
    dist.barrier()
    dist.destroy_process_group()
    return sorted(seen)


def faulty():
    return train(seed_of=lambda rank: rank)  # FAULT: each rank has its own shuffle


def fixed():
    return train(seed_of=lambda rank: 0)  # MENDED: one shuffle, divided
