"""Every rank walks through all the data.

The loader shuffles, and nobody gave it a sampler that divides. Two ranks do the work of one, at
the price of two; the batches are even in the same order, if the seed is the same.
"""

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="No sampler",
    group="silently wrong",
    says="nothing",
    cause="A plain DataLoader gives every rank the whole dataset.",
    mend="Give it `sampler=DistributedSampler(data)`; an IterableDataset must split itself.",
    kind="same-data-on-every-rank",
    seen_in="datasets#5360",
    sanitize=True,
)


def train(make_loader):
    torch.manual_seed(0)
    dist.init_process_group("gloo")
    loader = make_loader(TensorDataset(torch.arange(32.0)))
    ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=1e-6)
    seen = []
    for (x,) in loader:
        optimizer.zero_grad()
        ddp(x[:, None]).mean().backward()
        optimizer.step()
        seen += x.int().tolist()
    dist.barrier()
    dist.destroy_process_group()
    return sorted(seen)


def faulty():
    return train(lambda data: DataLoader(data, batch_size=4, shuffle=True))  # FAULT: all of it


def fixed():
    def make_loader(data):
        sampler = DistributedSampler(data, shuffle=True)  # MENDED: half of it for each of 2 ranks
        return DataLoader(data, batch_size=4, sampler=sampler)

    return train(make_loader)
