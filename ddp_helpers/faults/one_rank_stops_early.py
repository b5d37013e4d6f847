"""A rank decides for itself that it is time to stop.

Early stopping looks at the loss, and each rank looks at its own. One leaves the loop, the other
goes on and waits for gradients that never come.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="One rank stops early",
    group="hangs",
    says="This is typically caused by a remote worker",
    cause="Each rank decides from its own loss, so the ranks leave at different steps.",
    mend="All-reduce the decision: all stop as soon as one wants to.",
    kind="rank-ended-early",
    seen_in="Lightning#379",
)


def train(decide):
    dist.init_process_group("gloo")
    ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
    for step in range(6):
        ddp(torch.ones(8, 4)).sum().backward()
        local_loss = 1 / (step + 1 + 3 * dist.get_rank())
        if decide(local_loss < 0.2):
            break
    dist.destroy_process_group()
    return step


def faulty():
    return train(decide=lambda mine: mine)  # FAULT: each rank asks only itself


def together(mine):
    stop = torch.tensor([float(mine)])
    dist.all_reduce(stop, op=dist.ReduceOp.MAX)  # MENDED: one decision for all
    return bool(stop)


def fixed():
    return train(decide=together)
