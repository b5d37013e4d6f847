"""Tensors of different shapes in one collective.

The last batch is smaller on one rank, or a mask drops some samples, and the results are gathered
all the same. gloo notices only after it has received the data, and ends the process; NCCL hangs,
or returns numbers from somewhere in memory.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Different shapes",
    group="hangs",
    says="SIGABRT",
    cause="A collective needs the same shape and dtype on every rank.",
    mend="Pad to one shape, or use all_gather_object for what differs.",
    kind="different-shape",
    sanitize=True,
)


def faulty():
    dist.init_process_group("gloo")
    kept = torch.ones(3 if dist.get_rank() else 5)
    dist.all_reduce(kept)  # FAULT: 5 numbers on rank 0, 3 on rank 1
    dist.barrier()
    dist.destroy_process_group()


def fixed():
    dist.init_process_group("gloo")
    kept = torch.ones(3 if dist.get_rank() else 5)
    total = kept.sum().reshape(1)  # MENDED: one number a rank
    dist.all_reduce(total)
    dist.barrier()
    dist.destroy_process_group()
    return total.item()
