"""Make it faster, measured: work while a message is on its way."""

import time

import torch
import torch.distributed as dist

from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import Gate, expect, in_place, numbers

EXERCISE = Exercise(
    title="Make it faster: overlap",
    name="step",
    task="Sum `grads` over the ranks, in place, and call work() once; its return value is yours to "
    "return. work() does not touch `grads`. Another rank may come late to the sum. This version "
    "waits for it first, and works afterwards: yours must work while it waits. And no other rank "
    "may wait for your work: send this rank's part of the sum before you call work().",
    hints=(
        "A collective can be started now and be waited for later.",
        "dist.all_reduce(..., async_op=True) returns at once. What does it return?",
        "job = dist.all_reduce(grads, async_op=True); then work(); then job.wait().",
    ),
    lesson="DDP does this in backward: the work is the gradients of the layers below.",
    minutes=6,
)


def starter(grads, work):
    dist.all_reduce(grads)
    return work()


def solution(grads, work):
    job = dist.all_reduce(grads, async_op=True)
    result = work()
    job.wait()
    return result


def on_rank(answer):
    """Rank 1 comes when rank 0 works, and works until rank 0 has its sum.

    A rank 0 that waits first never works in time; a rank 1 that works first keeps rank 0 waiting.
    """
    rank, parts, worked = dist.get_rank(), numbers(1000), []
    works, has_its_sum = Gate("rank 0 works"), Gate("rank 0 has its sum")
    grads = parts[rank].clone()
    address = grads.data_ptr()

    def work():
        if rank == 0:
            works.reached()
        worked.append(rank == 0 or has_its_sum.wait())
        return 42

    overlaps = rank == 0 or works.wait()
    if rank == 1:
        time.sleep(0.2)  # a rank 0 that does not wait for its job at all has no sum yet
    result = answer(grads, work)
    if rank == 0:
        has_its_sum.reached()
    expect(grads, torch.stack(parts).sum(0), "grads")
    in_place(grads, address, "grads")
    if len(worked) != 1:
        raise NotYet(f"work() was called {len(worked)} times, expected once")
    if result != 42:
        raise NotYet(f"work() returned 42, your function {result!r}")
    if not overlaps:
        raise NotYet(
            "the sum is right, but nothing overlaps: rank 1 came late to the sum, and rank 0 "
            "waited for it before it called work()"
        )
    if not worked[0]:
        raise NotYet(
            "the sum is right, but nothing overlaps: rank 1 worked before its part of the sum was "
            "on its way, and rank 0, which was ready, waited for that work"
        )


def check(ranks):
    ranks.run(on_rank, 2)


def waits_at_once(grads, work):
    dist.all_reduce(grads, async_op=True).wait()
    return work()


def no_work(grads, work):
    dist.all_reduce(grads)
    return 42


def forgets_the_result(grads, work):
    solution(grads, work)


def works_twice(grads, work):
    work()
    return solution(grads, work)


def work_first(grads, work):
    result = work()
    dist.all_reduce(grads)
    return result


def by_its_future(grads, work):
    future = dist.all_reduce(grads, async_op=True).get_future()
    result = work()
    future.wait()
    return result


WRONG = (
    Wrong(waits_at_once, "waited for it before it called work()"),
    Wrong(work_first, "waited for that work"),
    Wrong(no_work, "called 0 times"),
    Wrong(forgets_the_result, "your function None"),
    Wrong(works_twice, "called 2 times"),
)
ALSO_RIGHT = (by_its_future,)
STARTER_SAYS = "waited for it before it called work()"
