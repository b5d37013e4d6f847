"""Gradients are accumulated, and averaged every time.

Four small batches make one step. Without no_sync, DDP averages after each of the four: the result
is right, and three of four exchanges are wasted.
"""

import contextlib

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Accumulation without no_sync",
    group="slow",
    says="nothing",
    cause="Each backward averages the gradients, though only the last one before a step must.",
    mend="Run all but the last forward and backward inside `with ddp.no_sync():`.",
    kind="accumulation-without-no-sync",
    sanitize=True,
)
ACCUMULATE = 4


def train(quiet):
    dist.init_process_group("gloo")
    ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    torch.manual_seed(dist.get_rank())
    for batch in range(4 * ACCUMULATE):
        last = (batch + 1) % ACCUMULATE == 0
        with contextlib.nullcontext() if last else quiet(ddp):
            (ddp(torch.randn(8, 4)).mean() / ACCUMULATE).backward()
        if last:
            optimizer.step()
            optimizer.zero_grad()
    dist.barrier()
    dist.destroy_process_group()


def faulty():
    train(quiet=lambda ddp: contextlib.nullcontext())  # FAULT: averages four times a step


def fixed():
    train(quiet=lambda ddp: ddp.no_sync())  # MENDED: once
