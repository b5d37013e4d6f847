"""Too many loader workers.

`num_workers=8` was tuned on one process. With eight ranks it means 64 workers, which take turns on
the same cores and each hold a copy of the dataset's objects.
"""

import os

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Too many loader workers",
    group="slow",
    says="This DataLoader will create 3 worker processes",
    cause="num_workers counts for each rank; together the ranks have more workers than cores.",
    mend="Divide: cores // ranks, less one for the rank itself.",
    kind="too-many-workers",
    seen_in="pytorch#47163",
    sanitize=True,
)


def train(workers_for):
    cores = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, cores)  # as on a laptop
    dist.init_process_group("gloo")
    data = TensorDataset(torch.arange(32.0))
    sampler = DistributedSampler(data)
    loader = DataLoader(data, batch_size=4, sampler=sampler, num_workers=workers_for(len(cores)))
    ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=1e-6)
    for (x,) in loader:
        optimizer.zero_grad()
        ddp(x[:, None]).mean().backward()
        optimizer.step()
    dist.barrier()
    dist.destroy_process_group()


def faulty():
    train(workers_for=lambda cores: cores + 1)  # FAULT: on each rank


def fixed():
    train(workers_for=lambda cores: 0)  # MENDED: the data is in memory, no worker is needed
