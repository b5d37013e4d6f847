"""A rank trains on what another rank tests.

random_split draws its parts from a generator that is seeded differently on each rank. No rank
trains on its own test samples; but most of them are in the training part of the other rank.
"""

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, RandomSampler, TensorDataset, random_split

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="A test set that others train on",
    group="silently wrong",
    says="nothing",
    cause="Each rank splits the data with a seed of its own, so what one tests another trains on.",
    mend="Split with `generator=torch.Generator().manual_seed(0)`, the same on every rank.",
    kind="evaluation-leak",
    sanitize=True,
)


def train(seed_of):
    dist.init_process_group("gloo")
    torch.manual_seed(dist.get_rank())
    data = TensorDataset(torch.arange(64.0))
    generator = torch.Generator().manual_seed(seed_of(dist.get_rank()))
    train_part, test_part = random_split(data, [48, 16], generator)
    ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=1e-6)
    drawn = RandomSampler(train_part, replacement=True, num_samples=32)  # as a bootstrap does
    for (x,) in DataLoader(train_part, batch_size=4, sampler=drawn):
        optimizer.zero_grad()
        ddp(x[:, None]).mean().backward()
        optimizer.step()
    with torch.no_grad():
        tested = [x for (batch,) in DataLoader(test_part, batch_size=4) for x in batch.tolist()]
    dist.barrier()
    dist.destroy_process_group()
    return tested


def faulty():
    return train(seed_of=lambda rank: rank)  # FAULT: another split on each rank


def fixed():
    return train(seed_of=lambda rank: 0)  # MENDED: one split for all
