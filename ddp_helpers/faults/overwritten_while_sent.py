"""A tensor is overwritten while it is on its way.

The sum of the loss is asked for with async_op=True, to lose no time, and the tensor is cleared for
the next steps before anybody has waited. The ranks get the old numbers, the new ones, or a mixture.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="A tensor overwritten while it is sent",
    group="silently wrong",
    says="nothing",
    cause="async_op=True still works on a tensor that the program changes meanwhile.",
    mend="Wait first, or give the call a copy.",
    kind="async-tensor-changed",
    sanitize=True,
)


def train(keep):
    dist.init_process_group("gloo")
    losses = torch.ones(1000)
    sent = keep(losses)
    call = dist.all_reduce(sent, async_op=True)
    losses.zero_()  # for the next steps
    call.wait()
    total = sent.sum().item()
    dist.barrier()
    dist.destroy_process_group()
    return total


def faulty():
    return train(keep=lambda losses: losses)  # FAULT: the same memory


def fixed():
    return train(keep=torch.clone)  # MENDED: the call has its own
