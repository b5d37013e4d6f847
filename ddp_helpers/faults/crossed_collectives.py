"""Two collectives in a different order on each rank.

The order comes from a set, a dict built from a directory listing, or an `if` that is true on one
rank only. Each rank is in a collective, and the two do not belong together.
"""

import os

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Crossed collectives",
    group="hangs",
    says="Timed out waiting",
    cause="One rank waits in one collective, the other rank in another one.",
    mend="Make all collectives in the same order on every rank; sort what you loop over.",
    kind="different-collective",
    timeout=3.0,
    sanitize=True,
)


def exchange(names):
    dist.init_process_group("gloo")
    for name in names:
        if name == "loss":
            dist.reduce(torch.ones(1), dst=1)
        else:
            dist.broadcast(torch.ones(1), src=1)
    dist.barrier()
    dist.destroy_process_group()


def faulty():
    rank = int(os.environ["RANK"])
    exchange(["loss", "sizes"] if rank == 0 else ["sizes", "loss"])  # FAULT: not one order


def fixed():
    exchange(sorted({"sizes", "loss"}))  # MENDED: sorted, so the same everywhere
