"""A collective before the process group exists.

A helper that averages a metric is called while the model is still being set up; or the group was
ended already, and a last line wants the final loss.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="No process group",
    group="start-up",
    says="Default process group has not been initialized",
    cause="A collective was called before init_process_group, or after destroy_process_group.",
    mend="Keep all collectives inside `with process_group():`.",
    kind="no-process-group",
    seen_in="mmsegmentation#901",
)


def faulty():
    dist.all_reduce(torch.ones(1))  # FAULT: there is no group yet
    dist.init_process_group("gloo")


def fixed():
    dist.init_process_group("gloo")  # MENDED: first the group
    dist.all_reduce(torch.ones(1))
    dist.barrier()
    dist.destroy_process_group()
