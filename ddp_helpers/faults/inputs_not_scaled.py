"""One rank does not scale its inputs.

Rank 1 reads its share from another place, and forgets to divide the pixels by 255. Its gradients
are hundreds of times larger than the other rank's, which hardly count in DDP's average.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="A rank with inputs of another scale",
    group="silently wrong",
    says="nothing",
    cause="One rank's inputs are not scaled, so its gradients outweigh all others.",
    mend="Prepare the data alike on all ranks: one function for all of them.",
    kind="gradient-out-of-proportion",
    sanitize=True,
)


def train(scale_of):
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.manual_seed(0)
    ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(16, 1))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=1e-9)
    torch.manual_seed(rank)
    for _ in range(12):
        pixels = torch.randint(256, (8, 16)).float()
        optimizer.zero_grad()
        ddp(pixels / scale_of(rank)).square().mean().backward()
        optimizer.step()
    dist.barrier()
    dist.destroy_process_group()
    return pixels.mean().item() / scale_of(rank)


def faulty():
    return train(scale_of=lambda rank: 1 if rank else 255)  # FAULT: rank 1 forgets it


def fixed():
    return train(scale_of=lambda rank: 255)  # MENDED: all ranks alike
