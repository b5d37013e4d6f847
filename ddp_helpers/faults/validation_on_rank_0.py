"""Validation on rank 0 only, through the DDP wrapper.

"One rank is enough to validate" is true, but the wrapper's forward sends BatchNorm's buffers from
rank 0 to all others, and these are not there to receive them.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Validation on rank 0 only",
    group="hangs",
    says="Timed out waiting",
    cause="DDP's forward broadcasts the buffers, so it is a collective that every rank must call.",
    mend="Validate with `ddp.module`, which sends nothing, or on all ranks.",
    kind="different-collective",
    seen_in="pytorch#20611",
    timeout=3.0,
    sanitize=True,
)


def prepare():
    dist.init_process_group("gloo")
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    ddp = torch.nn.parallel.DistributedDataParallel(net)
    ddp(torch.randn(8, 4)).sum().backward()
    return ddp


def faulty():
    ddp = prepare()
    if dist.get_rank() == 0:
        ddp(torch.randn(8, 4))  # FAULT: the wrapper's forward talks to rank 1, which is not here
    dist.barrier()
    dist.destroy_process_group()


def fixed():
    ddp = prepare()
    if dist.get_rank() == 0:
        ddp.module.eval()  # MENDED: the plain model inside
        with torch.no_grad():
            ddp.module(torch.randn(8, 4))
    dist.barrier()
    dist.destroy_process_group()
