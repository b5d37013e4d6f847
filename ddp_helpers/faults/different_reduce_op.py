"""One rank sums, the other takes the maximum.

The operation depends on a setting that was read on one rank only. The shapes fit, so nothing
complains; each rank gets a number, and not even the same one.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Different reduce operations",
    group="silently wrong",
    says="nothing",
    cause="Each rank applies its own operation to what it receives.",
    mend="Let the operation depend on nothing that differs between ranks.",
    kind="different-reduce-op",
    sanitize=True,
)


def combine(op):
    dist.init_process_group("gloo")
    value = torch.tensor([1.0 + dist.get_rank()])
    dist.all_reduce(value, op=op(dist.get_rank()))
    dist.barrier()
    dist.destroy_process_group()
    return value.item()


def faulty():
    return combine(lambda rank: dist.ReduceOp.MAX if rank else dist.ReduceOp.SUM)  # FAULT


def fixed():
    return combine(lambda rank: dist.ReduceOp.SUM)  # MENDED: the same everywhere
