"""The mean of the ranks' means.

Each rank divides its loss by its own number of tokens, and DDP averages the gradients. That is
right only if all ranks have equally many. A rank with 2 tokens then weighs as much as one with 14.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="A mean of means",
    group="silently wrong",
    says="nothing",
    cause="Batches of different sizes get the same weight when their means are averaged.",
    mend="Scale the loss by `world_size * local_count / total_count`, or divide sums by sums.",
    kind="uneven-batch-weights",
    seen_in="transformers#34242",
    sanitize=True,
)
COUNTS = (2, 14)


def train(weigh):
    dist.init_process_group("gloo")
    ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1, bias=False))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.01)
    count = COUNTS[dist.get_rank()]
    x = torch.full((count, 1), float(dist.get_rank()))
    for _ in range(3):
        optimizer.zero_grad()
        (ddp(x).mean() * weigh(count)).backward()
        optimizer.step()
    dist.barrier()
    dist.destroy_process_group()
    return ddp.module.weight.grad.item()


def faulty():
    return train(weigh=lambda count: 1.0)  # FAULT: 2 samples weigh as much as 14


def fixed():
    def weigh(count):
        total = torch.tensor(float(count))
        dist.all_reduce(total)  # MENDED: each sample weighs the same
        return dist.get_world_size() * count / total

    return train(weigh)
