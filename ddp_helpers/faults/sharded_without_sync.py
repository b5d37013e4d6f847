"""FSDP's gradient sync is left off.

For accumulation it is switched off, and nobody switches it on again before the step. The gradients
stay where each rank keeps its own; the optimizer finds none, and moves nothing.
"""

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="The gradient sync left off",
    group="silently wrong",
    says="nothing",
    cause="FSDP sums no gradients up while its sync is off, so the step finds none.",
    mend="`model.set_requires_gradient_sync(True)` before the last backward of each step.",
    kind="sharded-without-gradients",
    sanitize=True,
)


def train(switch_on):
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.weight.full_tensor().sum().item()
    for batch in range(4):
        last = batch % 2 == 1
        model.set_requires_gradient_sync(last and switch_on)
        model(torch.ones(8, 4)).mean().backward()
        if last:
            optimizer.step()
            optimizer.zero_grad()
    moved = model.weight.full_tensor().sum().item() - before
    dist.barrier()
    dist.destroy_process_group()
    return moved


def faulty():
    return train(switch_on=False)  # FAULT: off for good


def fixed():
    return train(switch_on=True)  # MENDED: on for the last batch before each step
