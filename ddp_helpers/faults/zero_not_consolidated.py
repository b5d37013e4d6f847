"""ZeRO's state is saved before it is brought together.

ZeroRedundancyOptimizer keeps each rank's share of the optimizer's state on that rank. Before one of
them can save it all, every rank must send its share.
"""

import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="ZeRO's state not brought together",
    group="after the end",
    says="Optimizer state has not been consolidated on this rank",
    cause="Each rank has its share of the optimizer's state, and rank 0 asks for all of it.",
    mend="`optimizer.consolidate_state_dict(to=0)` on all ranks, then state_dict() on rank 0.",
    kind="zero-not-consolidated",
)


def save(consolidate):
    dist.init_process_group("gloo")
    ddp = DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = ZeroRedundancyOptimizer(ddp.parameters(), torch.optim.Adam, lr=0.1)
    ddp(torch.ones(2, 4)).mean().backward()
    optimizer.step()
    if consolidate:
        optimizer.consolidate_state_dict(to=0)  # MENDED: all ranks send their share
    saved = 0
    if dist.get_rank() == 0:
        saved = len(optimizer.state_dict()["state"])  # FAULT: rank 0 has only its own
    dist.barrier()
    dist.destroy_process_group()
    return saved


def faulty():
    return save(consolidate=False)


def fixed():
    return save(consolidate=True)
