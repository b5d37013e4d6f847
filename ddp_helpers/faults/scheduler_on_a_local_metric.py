"""A scheduler looks at a loss of its own rank.

ReduceLROnPlateau halves the learning rate when the loss no longer falls. Each rank gives it its
own loss, so they halve at different times. Averaged gradients, different steps: the weights part.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="A scheduler on a local metric",
    group="silently wrong",
    says="nothing",
    cause="The ranks decide on the learning rate from different numbers.",
    mend="All-reduce the metric before `scheduler.step(metric)`.",
    kind="different-learning-rates",
    seen_in="DALLE-pytorch#268",
    sanitize=True,
)


def train(metric):
    dist.init_process_group("gloo")
    ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for step in range(4):
        optimizer.zero_grad()
        ddp(torch.ones(8, 4)).mean().backward()
        optimizer.step()
        falls = 1.0 / (step + 1)
        scheduler.step(metric(falls if dist.get_rank() == 0 else 1.0))
    dist.barrier()
    dist.destroy_process_group()
    return optimizer.param_groups[0]["lr"]


def faulty():
    return train(metric=lambda local: local)  # FAULT: each rank its own


def mean_of_all(local):
    total = torch.tensor(local)
    dist.all_reduce(total)  # MENDED: one number for all
    return total.item() / dist.get_world_size()


def fixed():
    return train(metric=mean_of_all)
