"""A rank leaves out a step.

"If the loss is not finite, skip this batch" is decided by each rank for itself. The one that skips
keeps its old weights, and from then on the ranks train two models.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="One rank skips a step",
    group="silently wrong",
    says="nothing",
    cause="Each rank decides from its own loss whether the optimizer steps.",
    mend="Decide together: all-reduce the check, and let all ranks skip or none.",
    kind="steps-differ",
    sanitize=True,
)


def train(decide):
    dist.init_process_group("gloo")
    ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for batch in range(4):
        x = torch.full((8, 4), float(batch + 10 * dist.get_rank()))
        optimizer.zero_grad()
        ddp(x).mean().backward()
        strange = batch == 1 and dist.get_rank() == 1  # stands for a loss that is too large
        if not decide(strange):
            optimizer.step()
    weight = ddp.module.weight[0, 0].item()
    dist.barrier()
    dist.destroy_process_group()
    return weight


def faulty():
    return train(decide=lambda strange: strange)  # FAULT: each rank for itself


def together(strange):
    any_strange = torch.tensor([float(strange)])
    dist.all_reduce(any_strange, op=dist.ReduceOp.MAX)  # MENDED: all or none
    return bool(any_strange)


def fixed():
    return train(decide=together)
