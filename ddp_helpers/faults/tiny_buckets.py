"""Gradients travel in tiny pieces.

DDP packs gradients into buckets of 25 MB, and each bucket is one all-reduce. With `bucket_cap_mb`
near zero every parameter travels alone, and pays the price of a message.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Tiny buckets",
    group="slow",
    says="nothing",
    cause="A very small bucket_cap_mb makes one message of each parameter.",
    mend="Leave bucket_cap_mb at its default of 25, and measure before you change it.",
    kind="tiny-buckets",
    sanitize=True,
)


def train(**options):
    dist.init_process_group("gloo")
    layers = [torch.nn.Linear(64, 64) for _ in range(12)]
    ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(*layers), **options)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    torch.manual_seed(dist.get_rank())
    for _ in range(4):
        optimizer.zero_grad()
        ddp(torch.randn(8, 64)).mean().backward()
        optimizer.step()
    dist.barrier()
    dist.destroy_process_group()


def faulty():
    train(bucket_cap_mb=0.001)  # FAULT: 24 messages a step


def fixed():
    train()  # MENDED: one or two
