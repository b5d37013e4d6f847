"""The sampler is never told which epoch it is.

DistributedSampler shuffles with a seed made of its own seed and the epoch. Without `set_epoch` the
epoch stays 0, and every epoch has the same batches in the same order. Training works; it is only
a little worse, for ever.
"""

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="No set_epoch",
    group="silently wrong",
    says="nothing",
    cause="Without set_epoch the sampler draws one shuffle, and repeats it in each epoch.",
    mend="Call `sampler.set_epoch(epoch)` at the beginning of each epoch.",
    kind="epoch-not-advanced",
    seen_in="pytorch#31771",
    sanitize=True,
)


def epochs(before_epoch):
    dist.init_process_group("gloo")
    data = TensorDataset(torch.arange(32.0))
    sampler = DistributedSampler(data, shuffle=True)
    loader = DataLoader(data, batch_size=4, sampler=sampler)
    ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=1e-6)
    orders = []
    for epoch in range(3):
        before_epoch(sampler, epoch)
        orders.append([])
        for (x,) in loader:
            optimizer.zero_grad()
            ddp(x[:, None]).mean().backward()
            optimizer.step()
            orders[-1] += x.int().tolist()
    dist.barrier()
    dist.destroy_process_group()
    return orders


def faulty():
    return epochs(lambda sampler, epoch: None)  # FAULT: nobody tells the sampler


def fixed():
    return epochs(lambda sampler, epoch: sampler.set_epoch(epoch))  # MENDED
