"""Weights are loaded on rank 0, after the model was wrapped.

DDP sends rank 0's weights to all ranks once, when it wraps the model. What rank 0 loads later,
only rank 0 has. The gradients still agree, because they are averaged: every check of gradients
passes, and each rank trains another model.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Weights changed after the wrap",
    group="silently wrong",
    says="nothing",
    cause="Only the wrap copies weights from rank 0; later changes on one rank stay there.",
    mend="Load and initialise before DistributedDataParallel(...), or on every rank.",
    kind="changed-after-wrap",
    seen_in="pytorch#12603",
    sanitize=True,
)


def train(load_late):
    dist.init_process_group("gloo")
    net = torch.nn.Linear(4, 1)
    if not load_late and dist.get_rank() == 0:
        torch.nn.init.ones_(net.weight)  # MENDED: before the wrap, which sends it to all
    ddp = torch.nn.parallel.DistributedDataParallel(net)
    if load_late and dist.get_rank() == 0:
        torch.nn.init.ones_(net.weight)  # FAULT: stands for load_state_dict on rank 0
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        ddp(torch.ones(8, 4)).mean().backward()
        optimizer.step()
    dist.barrier()
    dist.destroy_process_group()
    return net.weight[0, 0].item()


def faulty():
    return train(load_late=True)


def fixed():
    return train(load_late=False)
