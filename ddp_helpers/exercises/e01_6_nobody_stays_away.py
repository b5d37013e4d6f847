"""Find the bug: a rank with nothing to add stays away."""

import torch
import torch.distributed as dist

from ddp_helpers.evidence.sent_calls import watched
from ddp_helpers.exercises.core import Exercise, Wrong
from ddp_helpers.exercises.on_ranks import EXACT, by_rank, exchanged, expect, numbers_of

EXERCISE = Exercise(
    title="Find the bug: nobody stays away",
    name="total",
    task="This function should return the sum of all values of all ranks, on each rank. It works, "
    "until one day a rank has no values: then it hangs. Mend it.",
    hints=(
        "A collective is a meeting. Who comes to it, and who doesn't?",
        "A rank without values must come, too. What can it bring that changes no sum?",
        "The sum of an empty tensor is 0: the `if` is not needed.",
    ),
    lesson="A collective under an `if` that differs between ranks is the most common hang of all.",
    minutes=5,
)


def starter(values):
    result = values.sum()
    if len(values) > 0:
        dist.all_reduce(result)
    return result


def solution(values):
    result = values.sum()
    dist.all_reduce(result)
    return result


def on_rank(answer, lengths):
    parts = by_rank(lambda rank: numbers_of(rank, lengths[rank]))
    if 0 in lengths:  # whole numbers are easier to read, but int() changes only these
        parts = [part + 0.25 for part in parts]
    with watched() as calls:
        total = answer(parts[dist.get_rank()])
    expect(total, torch.cat(parts).sum(), f"with {lengths} values a rank, the sum", EXACT)
    exchanged(calls)


def check(ranks):
    ranks.run(on_rank, 2, (3, 4))
    ranks.run(on_rank, 3, (2, 0, 5))


def barrier_instead(values):
    result = values.sum()
    if len(values) > 0:
        dist.all_reduce(result)
    else:
        dist.barrier()
    return result


def brings_one(values):
    result = values.sum() if len(values) > 0 else torch.tensor(1.0)
    dist.all_reduce(result)
    return result


def local(values):
    return values.sum()


def averages(values):
    return solution(values) / dist.get_world_size()


def all_agree_first(values):
    lengths = torch.zeros(dist.get_world_size())
    lengths[dist.get_rank()] = len(values)
    dist.all_reduce(lengths)
    room = torch.zeros(dist.get_world_size(), int(lengths.max()))
    room[dist.get_rank(), : len(values)] = values
    dist.all_reduce(room)
    return room.sum()


WRONG = (
    Wrong(barrier_instead, "did not end"),
    Wrong(brings_one, "with (2, 0, 5) values a rank, the sum is"),
    Wrong(local, "on rank 0 of 2, with (3, 4) values a rank, the sum is"),
    Wrong(averages, "with (3, 4) values a rank, the sum is"),
)
ALSO_RIGHT = (all_agree_first,)
STARTER_SAYS = "on rank 1 of 3, with (2, 0, 5) values a rank, the sum is [0], expected"
