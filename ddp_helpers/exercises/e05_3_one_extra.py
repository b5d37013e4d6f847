"""Find the bug: one collective too many."""

import time

import torch
import torch.distributed as dist

from ddp_helpers.evidence.sent_calls import watched
from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import exchanged, expect, numbers

LATE = 0.3  # seconds that rank 0 is alone: what it logs without waiting is not the sum yet

EXERCISE = Exercise(
    title="Find the bug: one collective too many",
    name="count_samples",
    task="Each rank trains on some samples. Return the number of samples of all ranks, on each "
    "rank, as a tensor without dimensions; rank 0 also calls log() once with the summed loss of "
    "all ranks. This version counts wrong, and no error says so.",
    hints=(
        "On two ranks, what meets rank 0's first all_reduce?",
        "All ranks must make all collectives, also those whose result only one of them wants.",
        "Take the first all_reduce out of the `if`, and leave log() in it.",
    ),
    lesson="Values shift silently first; the hang comes only at the end. sanitize=True sees both.",
    minutes=8,
)


def starter(loss, samples, log):
    if dist.get_rank() == 0:
        total = loss.clone()
        dist.all_reduce(total)
        log(total)
    count = torch.tensor(float(samples))
    dist.all_reduce(count)
    return count


def solution(loss, samples, log):
    total = loss.clone()
    dist.all_reduce(total)
    if dist.get_rank() == 0:
        log(total)
    count = torch.tensor(float(samples))
    dist.all_reduce(count)
    return count


def on_rank(answer):
    losses, logged = [loss + 0.25 for loss in numbers()], []
    rank = dist.get_rank()
    if rank:
        time.sleep(LATE)
    with watched() as calls:
        count = answer(
            losses[rank].clone(),
            10 + rank,
            lambda total: logged.append(torch.as_tensor(total).clone()),
        )
    wanted = torch.tensor(float(sum(10 + r for r in range(dist.get_world_size()))))
    expect(count, wanted, "the number of samples")
    if rank == 0:
        if len(logged) != 1:
            raise NotYet(f"rank 0 called log() {len(logged)} times, expected once")
        expect(logged[0], torch.stack(losses).sum(), "what is logged")
    elif logged:
        raise NotYet(f"rank {rank} called log(), too: only rank 0 should")
    exchanged(calls)


def check(ranks):
    for nprocs in (2, 3):
        ranks.run(on_rank, nprocs)


def logs_its_own(loss, samples, log):
    if dist.get_rank() == 0:
        log(loss)
    count = torch.tensor(float(samples))
    dist.all_reduce(count)
    return count


def never_logs(loss, samples, log):
    count = torch.tensor(float(samples))
    dist.all_reduce(count)
    return count


def everybody_logs(loss, samples, log):
    total = loss.clone()
    dist.all_reduce(total)
    log(total)
    count = torch.tensor(float(samples))
    dist.all_reduce(count)
    return count


def only_rank_0_counts(loss, samples, log):
    both = torch.tensor([float(samples), loss.item()])
    dist.reduce(both, dst=0)
    if dist.get_rank() == 0:
        log(both[1])
        return both[0]
    return torch.tensor(0.0)


def both_at_once(loss, samples, log):
    both = torch.stack([torch.tensor(float(samples)), loss])
    dist.all_reduce(both)
    if dist.get_rank() == 0:
        log(both[1])
    return both[0]


WRONG = (
    Wrong(logs_its_own, "on rank 0 of 2, what is logged is"),
    Wrong(never_logs, "called log() 0 times"),
    Wrong(everybody_logs, "rank 1 called log(), too"),
    Wrong(only_rank_0_counts, "on rank 1 of 2, the number of samples is [0]"),
)
ALSO_RIGHT = (both_at_once,)
STARTER_SAYS = "the number of samples is"
