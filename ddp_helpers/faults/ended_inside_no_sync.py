"""The last step of an accumulation happens inside no_sync.

`no_sync` is meant for all backwards but the last one before a step. What decides is the forward:
a step whose last *forward* ran inside no_sync uses gradients that nobody averaged. An epoch whose
length is no multiple of the accumulation ends that way.
"""

import contextlib

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="The step inside no_sync",
    group="silently wrong",
    says="nothing",
    cause="The optimizer steps with gradients that were accumulated, and never averaged.",
    mend="Leave no_sync for the last batch before every step, also at the end of the epoch.",
    kind="ended-inside-no-sync",
    seen_in="stylegan2-ada#233",
    sanitize=True,
)
BATCHES, ACCUMULATE = 5, 2  # 2 + 2 + 1


def epoch(is_last):
    dist.init_process_group("gloo")
    ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    x = torch.ones(8, 4) * (1 + dist.get_rank())
    for batch in range(BATCHES):
        with contextlib.nullcontext() if is_last(batch) else ddp.no_sync():
            (ddp(x).mean() / ACCUMULATE).backward()
        if (batch + 1) % ACCUMULATE == 0 or batch + 1 == BATCHES:
            optimizer.step()
            optimizer.zero_grad()
    dist.barrier()
    dist.destroy_process_group()
    return ddp.module.weight[0, 0].item()


def faulty():
    return epoch(lambda batch: (batch + 1) % ACCUMULATE == 0)  # FAULT: forgets the fifth batch


def fixed():
    def is_last(batch):
        return (batch + 1) % ACCUMULATE == 0 or batch + 1 == BATCHES  # MENDED: whenever it steps

    return epoch(is_last)
