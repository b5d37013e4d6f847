"""A subgroup that only its own members create.

`new_group([0])` looks like a matter of rank 0 alone. It is a collective of the whole group: each
rank must call it, also those that will not be in it.
"""

import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="new_group on some ranks only",
    group="hangs",
    says="wait timeout after",
    cause="dist.new_group() is a collective of all ranks, also of those outside the new group.",
    mend="Call it on every rank, in the same order, and use it only on its members.",
    kind="rank-ended-early",
)


def faulty():
    dist.init_process_group("gloo")
    if dist.get_rank() == 0:
        dist.new_group([0, 1])  # FAULT: rank 1 never calls it
    dist.destroy_process_group()


def fixed():
    dist.init_process_group("gloo")
    dist.new_group([0, 1])  # MENDED: every rank calls it
    dist.barrier()
    dist.destroy_process_group()
