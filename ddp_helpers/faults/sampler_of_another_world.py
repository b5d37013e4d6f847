"""A sampler that was told the wrong number of ranks.

`num_replicas` and `rank` are given by hand, from an old config or from LOCAL_RANK. Some samples are
seen by nobody, or by two ranks.
"""

import os

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="A sampler of another world",
    group="silently wrong",
    says="nothing",
    cause="The sampler divides the data among more ranks than there are; some of it is never seen.",
    mend="Leave num_replicas and rank out: the sampler asks the process group.",
    kind="missing-data",
    sanitize=True,
)


def train(**options):
    dist.init_process_group("gloo")
    data = TensorDataset(torch.arange(32.0))
    loader = DataLoader(data, batch_size=4, sampler=DistributedSampler(data, **options))
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
    return len(seen)


def faulty():
    return train(num_replicas=4, rank=int(os.environ["RANK"]))  # FAULT: there are two ranks


def fixed():
    return train()  # MENDED: it asks the process group
