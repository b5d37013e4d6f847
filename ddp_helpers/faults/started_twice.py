"""The process group is started twice.

The trainer of a library starts it, and the script had done so already; or a notebook cell runs a
second time in the same process.
"""

import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Started twice",
    group="start-up",
    says="trying to initialize the default process group twice!",
    cause="A process can have one default group at a time, and has one already.",
    mend="Start it in one place, and end it before it starts again.",
    kind="started-twice",
    seen_in="mmsegmentation#901",
)


def faulty():
    dist.init_process_group("gloo")
    dist.init_process_group("gloo")  # FAULT: it runs already


def fixed():
    if not dist.is_initialized():  # MENDED: only if nobody did it before
        dist.init_process_group("gloo")
    dist.barrier()
    dist.destroy_process_group()
