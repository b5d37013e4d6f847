"""Each rank uses all cores.

torch takes as many threads as the machine has cores, and so does every rank. Eight ranks on eight
cores then run 64 threads, which mostly wait for one another. torchrun sets OMP_NUM_THREADS=1, and
mp.spawn sets nothing.
"""

import os

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Too many threads",
    group="slow",
    says="nothing",
    cause="The ranks together run more threads than there are cores.",
    mend="Set OMP_NUM_THREADS to cores // ranks; launch() does.",
    kind="too-many-threads",
    seen_in="pytorch#22260",
    sanitize=True,
)


def train(threads_for):
    dist.init_process_group("gloo")
    cores = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, cores)  # as on a laptop
    torch.set_num_threads(threads_for(len(cores)))
    ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        ddp(torch.full((8, 4), float(step + 10 * dist.get_rank()))).mean().backward()
        optimizer.step()
    dist.barrier()
    dist.destroy_process_group()


def faulty():
    train(threads_for=lambda cores: cores)  # FAULT: each rank takes them all


def fixed():
    train(threads_for=lambda cores: max(1, cores // 2))  # MENDED: shared out between two ranks
