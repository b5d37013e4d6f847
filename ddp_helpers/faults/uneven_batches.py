"""Ranks have different numbers of batches.

Real data seldom divides evenly: one rank gets a file more, a filter drops a sample, a stream ends
early. The rank with fewer batches leaves the loop; the other waits in its next backward.
"""

import os

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Uneven batches",
    group="hangs",
    says="This is typically caused by a remote worker",
    cause="One rank has a batch more, and its gradients wait for a rank that has left the loop.",
    mend="Give every rank equally many batches, or train inside `with Join([ddp]):`.",
    kind="uneven-batch-counts",
    seen_in="pytorch#38174",
    sanitize=True,
)


def train(batches):
    dist.init_process_group("gloo")
    ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
    for _ in range(batches):
        ddp(torch.ones(8, 4)).sum().backward()
    dist.destroy_process_group()


def faulty():
    rank = int(os.environ["RANK"])
    train(batches=3 if rank == 0 else 2)  # FAULT: 5 files, shared out as 3 and 2


def fixed():
    train(batches=5 // int(os.environ["WORLD_SIZE"]))  # MENDED: as many as every rank can have
