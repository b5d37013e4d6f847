"""A rank that was never started.

The script says three ranks, and two were started: a node is still in the queue, one command was
not typed, or the number was changed in one place only. Those that came wait for the one that
didn't.
"""

import os
from datetime import timedelta

import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="A rank is missing",
    group="hangs",
    says="DistStoreError",
    cause="world_size is larger than the number of ranks that were started.",
    mend="Let the launcher count: it sets WORLD_SIZE, and init_process_group reads it.",
    kind="rank-missing",
    seen_in="yolov5#4574",
)


def faulty():
    dist.init_process_group(
        "gloo",
        rank=int(os.environ["RANK"]),
        world_size=3,  # FAULT: only two ranks are started
        timeout=timedelta(seconds=1),
    )


def fixed():
    dist.init_process_group("gloo", timeout=timedelta(seconds=20))  # MENDED: reads WORLD_SIZE
    dist.barrier()
    dist.destroy_process_group()
