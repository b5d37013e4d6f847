"""The data is split twice.

Each rank keeps its part of the data already, and a DistributedSampler then gives each rank a part
of its part. Of what a rank holds it goes through a half, and nobody through the rest.
"""

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler, RandomSampler, Subset, TensorDataset

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Data that is split twice",
    group="silently wrong",
    says="nothing",
    cause="Each rank holds a part of the data, and DistributedSampler splits it again.",
    mend="Split once: the sampler over the whole dataset, or no sampler over each part.",
    kind="missing-data",
    sanitize=True,
)


def train(sampler_for):
    dist.init_process_group("gloo")
    rank, size = dist.get_rank(), dist.get_world_size()
    part = Subset(TensorDataset(torch.arange(64.0)), range(rank, 64, size))
    ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=1e-6)
    seen = 0
    for (x,) in DataLoader(part, batch_size=4, sampler=sampler_for(part)):
        optimizer.zero_grad()
        ddp(x[:, None]).mean().backward()
        optimizer.step()
        seen += len(x)
    dist.barrier()
    dist.destroy_process_group()
    return seen


def faulty():
    return train(sampler_for=DistributedSampler)  # FAULT: a half of each half


def fixed():
    return train(sampler_for=RandomSampler)  # MENDED: each rank goes through its part
