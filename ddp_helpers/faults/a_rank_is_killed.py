"""A rank is killed.

Memory runs out and the system ends the largest process, or the scheduler does. The rank itself
can't say a word; the others report a lost connection, and get the blame.
"""

import os
import signal

import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="A rank is killed",
    group="after the end",
    says="SIGKILL",
    cause="Something outside ended the process, most often because memory ran out.",
    mend="Look in `dmesg | tail` for an oom-kill; use less memory a rank, or ask for more.",
    kind="killed",
)


def faulty():
    dist.init_process_group("gloo")
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)  # FAULT: stands for the system's oom killer
    dist.barrier()


def fixed():
    dist.init_process_group("gloo")
    dist.barrier()  # MENDED: nobody is killed
    dist.destroy_process_group()
