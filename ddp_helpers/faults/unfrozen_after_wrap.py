"""Layers are unfrozen after the wrap.

Fine-tuning begins with a frozen body, and thaws it after an epoch. DDP noted at the wrap which
parameters need a gradient. The thawed ones get one on each rank, and it is never averaged.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Unfrozen after the wrap",
    group="silently wrong",
    says="nothing",
    cause="DDP averages only the parameters that were trainable when it wrapped the model.",
    mend="Unfreeze first, then wrap again.",
    kind="trainable-after-wrap",
    sanitize=True,
)


def train(rewrap):
    dist.init_process_group("gloo")
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 1))
    net[0].requires_grad_(False)
    ddp = torch.nn.parallel.DistributedDataParallel(net)
    x = torch.ones(8, 4) * (1 + dist.get_rank())
    ddp(x).mean().backward()
    net[0].requires_grad_(True)  # FAULT: DDP does not know
    if rewrap:
        ddp = torch.nn.parallel.DistributedDataParallel(net)  # MENDED: now it knows
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        ddp(x).mean().backward()
        optimizer.step()
    dist.barrier()
    dist.destroy_process_group()
    return net[0].weight[0, 0].item()


def faulty():
    return train(rewrap=False)


def fixed():
    return train(rewrap=True)
