"""Dropout is alike on all ranks.

All ranks have the same seed when the training begins, so they draw the same masks in each step.
Nothing is wrong with the numbers; only, a step averages over fewer masks than it could.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Dropout that is alike on all ranks",
    group="silently wrong",
    says="nothing",
    cause="All ranks train with one seed, so dropout leaves out the same units everywhere.",
    mend="Once the model is made, seed each rank differently: `torch.manual_seed(seed + rank)`.",
    kind="identical-dropout",
    sanitize=True,
)


def train(seed_of):
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Dropout(0.5), torch.nn.Linear(64, 1))
    ddp = torch.nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    rank = dist.get_rank()
    torch.manual_seed(seed_of(rank))
    for step in range(5):
        x = torch.full((8, 4), 1.0 + rank + step)
        optimizer.zero_grad()
        ddp(x).mean().backward()
        optimizer.step()
    mask = net[1](torch.ones(8)).tolist()
    dist.barrier()
    dist.destroy_process_group()
    return mask


def faulty():
    return train(seed_of=lambda rank: 1)  # FAULT: the same seed on all ranks


def fixed():
    return train(seed_of=lambda rank: 1 + rank)  # MENDED: each rank has its own
