"""Gradients are averaged after the step.

Somebody averages gradients by hand, and does it one line too late. Each rank has stepped with its
own gradients by then; what is averaged is thrown away by zero_grad().
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Gradients averaged too late",
    group="silently wrong",
    says="nothing",
    cause="The optimizer steps before the gradients are averaged, so each rank uses its own.",
    mend="Average between `backward()` and `optimizer.step()`, or let DDP do it.",
    kind="averaged-after-step",
    sanitize=True,
)


def average(model):
    for p in model.parameters():
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()


def train(in_time):
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.ones(8, 4) * (1 + dist.get_rank())
    for _ in range(3):
        optimizer.zero_grad()
        model(x).mean().backward()
        if in_time:
            average(model)  # MENDED: before the step
        optimizer.step()
        if not in_time:
            average(model)  # FAULT: the step is done
    weight = model.weight[0, 0].item()
    dist.barrier()
    dist.destroy_process_group()
    return weight


def faulty():
    return train(in_time=False)


def fixed():
    return train(in_time=True)
