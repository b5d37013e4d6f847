"""A collective that only one rank calls.

A line for the log is written under `if rank == 0`, and somebody averages the loss in it. Nothing
stops at once: from then on rank 0 is one call ahead, and sums one thing with another. Only at the
end, when rank 0 has one call too many, does anything hang.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="One extra collective",
    group="hangs",
    says="This is typically caused by a remote worker",
    cause="A collective under `if rank == 0` shifts all later ones: wrong sums first, then a wait.",
    mend="Let every rank make the call, and only rank 0 print the result.",
    kind="different-call-site",
    seen_in="Lightning#19106",
    sanitize=True,
)


def faulty():
    dist.init_process_group("gloo")
    loss, count = torch.tensor([100.0]), torch.tensor([1.0])
    if dist.get_rank() == 0:
        dist.all_reduce(loss)  # FAULT: the other rank does not come here
    dist.all_reduce(count)
    print(f"samples: {count.item():.0f}, expected 2")
    dist.destroy_process_group()


def fixed():
    dist.init_process_group("gloo")
    loss, count = torch.tensor([100.0]), torch.tensor([1.0])
    dist.all_reduce(loss)  # MENDED: all ranks call it
    if dist.get_rank() == 0:
        print(f"loss: {loss.item():.0f}")
    dist.all_reduce(count)
    dist.destroy_process_group()
    return count.item()
