"""Every rank draws the same random numbers.

`torch.manual_seed(0)` on all ranks is right for the weights, and wrong for what comes after: noise,
dropout and augmentation are then the same on each rank, and the batch has less variety than its
size says.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="The same augmentation everywhere",
    group="silently wrong",
    says="nothing",
    cause="All ranks have the same seed, so they draw the same noise and the same crops.",
    mend="After the model is built, seed again with `seed + rank`.",
    kind="identical-random-draws",
    seen_in="transformers#37932",
    sanitize=True,
)


def train(seed_of):
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
    torch.manual_seed(seed_of(dist.get_rank()))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.01)
    for _ in range(3):
        noise = torch.randn(8, 4)
        optimizer.zero_grad()
        ddp(dist.get_rank() + noise).mean().backward()
        optimizer.step()
    dist.barrier()
    dist.destroy_process_group()
    return noise[0, 0].item()


def faulty():
    return train(seed_of=lambda rank: 0)  # FAULT: the same noise on each rank


def fixed():
    return train(seed_of=lambda rank: 0 + rank)  # MENDED: noise of its own
