"""Gradients are cleared before the step.

zero_grad() stands between backward() and step(), so the optimizer finds no gradient and leaves the
weights as they are, on all ranks alike. The loss goes up and down with the batches, and no further.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Gradients cleared too early",
    group="silently wrong",
    says="nothing",
    cause="zero_grad() comes after backward(), so the step finds no gradient.",
    mend="Call `optimizer.zero_grad()` before `backward()`, or after the step.",
    kind="weights-unchanged",
    sanitize=True,
)


def train(in_time):
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for _ in range(4):
        if in_time:
            optimizer.zero_grad()  # MENDED: before the gradients come
        ddp(torch.ones(8, 4)).mean().backward()
        if not in_time:
            optimizer.zero_grad()  # FAULT: they are gone before the step
        optimizer.step()
    weight = ddp.module.weight[0, 0].item()
    dist.barrier()
    dist.destroy_process_group()
    return weight


def faulty():
    return train(in_time=False)


def fixed():
    return train(in_time=True)
