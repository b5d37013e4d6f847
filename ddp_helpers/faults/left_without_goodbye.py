"""A rank leaves while others still need it.

Rank 0 waits for the slower ranks' results with `recv`; a rank that believes it is done exits,
without a last barrier. "Connection closed by peer ... a remote worker crashing" says rank 0,
though nothing crashed.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Left without goodbye",
    group="after the end",
    says="This is typically caused by a remote worker",
    cause="A rank ended normally while another still waited for it; no worker crashed.",
    mend="Make every send meet its receive, and let a barrier be the last thing of all ranks.",
    kind="rank-ended-early",
    seen_in="pytorch#179291",
)


def faulty():
    dist.init_process_group("gloo")
    if dist.get_rank() == 0:
        dist.recv(torch.zeros(1), src=1)  # FAULT: rank 1 never sends
    dist.destroy_process_group()


def fixed():
    dist.init_process_group("gloo")
    if dist.get_rank() == 0:
        dist.recv(torch.zeros(1), src=1)
    else:
        dist.send(torch.ones(1), dst=0)  # MENDED: what rank 0 waits for
    dist.barrier()
    dist.destroy_process_group()
