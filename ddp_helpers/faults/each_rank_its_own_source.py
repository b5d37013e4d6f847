"""Each rank broadcasts from itself.

`src=rank` reads well and means: everybody sends, nobody receives. Each rank keeps its own value
and believes that it is the shared one.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Each rank its own source",
    group="silently wrong",
    says="nothing",
    cause="broadcast needs one source; with `src=rank` every rank sends and none receives.",
    mend="Name one rank, usually `src=0`, on all ranks.",
    kind="different-source",
    sanitize=True,
)


def share(source):
    dist.init_process_group("gloo")
    seed = torch.tensor([dist.get_rank() + 7])
    dist.broadcast(seed, src=source(dist.get_rank()))
    dist.destroy_process_group()
    return seed.item()


def faulty():
    return share(lambda rank: rank)  # FAULT: everybody sends


def fixed():
    return share(lambda rank: 0)  # MENDED: rank 0 sends to all
