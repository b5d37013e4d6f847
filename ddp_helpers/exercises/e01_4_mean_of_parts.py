"""The mean over all ranks, where each has another number of values."""

import torch
import torch.distributed as dist

from ddp_helpers.evidence.sent_calls import watched
from ddp_helpers.exercises.core import Exercise, Wrong
from ddp_helpers.exercises.on_ranks import by_rank, exchanged, expect, numbers_of

EXERCISE = Exercise(
    title="The mean of unequal parts",
    name="my_mean",
    task="Each rank holds a tensor of another length; a rank may hold none at all. Return the mean "
    "of all values of all ranks, on every rank, as a tensor without dimensions.",
    hints=(
        "With [1, 2, 3] on rank 0 and [10] on rank 1 the mean is 4. What is the mean of the two "
        "means?",
        "Two numbers can be added up over all ranks. Which two?",
        "All-reduce the sums and the numbers of values, and divide only then.",
    ),
    lesson="Losses and accuracies are to be summed and counted first, and divided last.",
    minutes=8,
)


def starter(values):
    mean = values.mean()
    dist.all_reduce(mean)
    return mean / dist.get_world_size()


def solution(values):
    total = torch.tensor([values.sum(), float(len(values))])
    dist.all_reduce(total)
    return total[0] / total[1]


def on_rank(answer, lengths):
    # with an eighth no mean of these is a whole number, by luck
    parts = by_rank(lambda rank: numbers_of(rank, lengths[rank]) + 0.125)
    with watched() as calls:
        mean = answer(parts[dist.get_rank()])
    expect(mean, torch.cat(parts).mean(), f"with {lengths} values a rank, the mean")
    exchanged(calls)


def check(ranks):
    for lengths in ((3, 1), (4, 0, 9)):
        ranks.run(on_rank, len(lengths), lengths)


def sum_only(values):
    total = values.sum()
    dist.all_reduce(total)
    return total


def as_number(values):
    return solution(values).item()


def only_rank_0(values):
    total = torch.tensor([values.sum(), float(len(values))])
    dist.reduce(total, dst=0)
    return total[0] / total[1] if dist.get_rank() == 0 else torch.tensor(0.0)


def empty_stays_away(values):
    return solution(values) if len(values) else torch.tensor(0.0)


def with_objects(values):
    everything = [None] * dist.get_world_size()
    dist.all_gather_object(everything, values)
    return torch.cat(everything).mean()


WRONG = (
    Wrong(sum_only, "on rank 0 of 2, with (3, 1) values a rank, the mean is"),
    Wrong(as_number, "should be a tensor"),
    Wrong(only_rank_0, "on rank 1 of 2, with (3, 1) values a rank, the mean is [0], expected"),
    Wrong(empty_stays_away, "on rank 1 of 3, with (4, 0, 9) values a rank, the mean is [0]"),
)
ALSO_RIGHT = (with_objects,)
STARTER_SAYS = "with (3, 1) values a rank, the mean is"
