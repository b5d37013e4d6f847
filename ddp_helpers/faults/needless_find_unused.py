"""find_unused_parameters=True, and all are used.

It made an error go away once, and stayed. DDP now walks through the whole graph after each forward
and finds nothing.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Needless find_unused_parameters",
    group="slow",
    says="did not find any unused parameters in the forward pass",
    cause="DDP searches the graph for unused parameters in each step, and there are none.",
    mend="Leave find_unused_parameters out.",
    kind="needless-find-unused",
    seen_in="pytorch#47163",
    sanitize=True,
)


def train(**options):
    dist.init_process_group("gloo")
    ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1), **options)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    torch.manual_seed(dist.get_rank())
    for _ in range(12):
        optimizer.zero_grad()
        ddp(torch.randn(8, 4)).mean().backward()
        optimizer.step()
    dist.barrier()
    dist.destroy_process_group()


def faulty():
    train(find_unused_parameters=True)  # FAULT: all are used


def fixed():
    train()  # MENDED
