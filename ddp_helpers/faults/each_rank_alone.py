"""Each rank is a world of its own.

`world_size=1` has stayed in the script, or four plain `python train.py` were started by Slurm. Each
process trains the whole model on all the data; four times the same work, and no error.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Each rank alone",
    group="silently wrong",
    says="nothing",
    cause="The process group has one rank, though the launcher started several.",
    mend="Leave rank and world_size out: init_process_group reads them from the environment.",
    kind="smaller-world",
    sanitize=True,
)


def train(**options):
    dist.init_process_group("gloo", **options)
    ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    ddp(torch.ones(8, 4)).mean().backward()
    optimizer.step()
    size = dist.get_world_size()
    dist.barrier()
    dist.destroy_process_group()
    return size


def faulty():
    alone = dist.HashStore()
    return train(rank=0, world_size=1, store=alone)  # FAULT: each rank says it is the only one


def fixed():
    return train()  # MENDED: rank and world_size come from the launcher
