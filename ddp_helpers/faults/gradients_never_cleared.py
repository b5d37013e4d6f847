"""Gradients are never cleared.

Each backward() adds to the gradients of all steps before, so each step goes along the sum of all of
them. It is the same on all ranks: their weights stay alike, and the loss swings or grows.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Gradients never cleared",
    group="silently wrong",
    says="nothing",
    cause="Nobody calls zero_grad(), so each step uses the sum of all gradients so far.",
    mend="Call `optimizer.zero_grad()` once for each step.",
    kind="gradients-not-cleared",
    sanitize=True,
)


def train(clears):
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for _ in range(6):
        if clears:
            optimizer.zero_grad()  # MENDED: each step has its own gradients
        ddp(torch.ones(8, 4)).square().mean().backward()  # FAULT: adds to what is there
        optimizer.step()
    loss = ddp(torch.ones(8, 4)).square().mean().item()
    dist.barrier()
    dist.destroy_process_group()
    return loss


def faulty():
    return train(clears=False)


def fixed():
    return train(clears=True)
