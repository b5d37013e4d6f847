"""Rank 0 prepares the data while the others wait.

The download takes twelve minutes, the limit of a collective is ten. The other ranks lose patience,
and print an error about a timeout or a lost connection, far from the slow line.
"""

import time
from datetime import timedelta

import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Rank 0 is slow",
    group="hangs",
    says="Timed out waiting",
    cause="The other ranks wait in a barrier for longer than the group's limit.",
    mend="Prepare the data once, before the run, or give the group a larger timeout.",
    kind="rank-did-not-come",
    seen_in="Lightning#19266",
)


def prepare_on_rank_0(limit):
    dist.init_process_group("gloo", timeout=timedelta(seconds=limit))
    dist.barrier()
    if dist.get_rank() == 0:
        time.sleep(1.5)  # stands for a download of an hour
    dist.barrier()
    dist.destroy_process_group()


def faulty():
    prepare_on_rank_0(limit=0.5)  # FAULT: shorter than the download


def fixed():
    prepare_on_rank_0(limit=30)  # MENDED: longer than the download may take
