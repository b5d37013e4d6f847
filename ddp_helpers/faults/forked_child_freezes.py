"""A child process freezes, because its parent was forked while it had threads.

A rank computes something, and so starts OpenMP's threads. Then it forks a helper (a loader of its
own, a tokenizer pool). The child inherits the belief that the threads are there, but not the
threads, and waits for them for ever.
"""

import multiprocessing

import torch

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="A forked child freezes",
    group="hangs",
    says="nothing",
    cause="fork copies a process without its threads, and the child waits for them.",
    mend='Let the child use one thread, as a loader does; or start it with "forkserver".',
    kind="child-stuck",
    seen_in="pytorch#82077",
    nprocs=1,
    timeout=3.0,
    threads_per_rank=2,
)
SIZE = 1_000_000  # large enough that torch uses several threads


def work():
    torch.ones(SIZE).exp().sum()


def work_alone():
    torch.set_num_threads(1)  # MENDED: asks for no thread that is not there
    work()


def run_child(task):
    torch.set_num_threads(2)
    work()  # starts OpenMP's threads
    child = multiprocessing.get_context("fork").Process(target=task, daemon=True)
    child.start()
    child.join(5)
    return child.exitcode


def faulty():
    return run_child(work)  # FAULT: the child has no threads, and thinks it has


def fixed():
    return run_child(work_alone)
