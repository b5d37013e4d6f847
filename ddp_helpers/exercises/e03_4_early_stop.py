"""Stop together: an early stop that all ranks agree on."""

import itertools

import torch
import torch.distributed as dist

from ddp_helpers.evidence.sent_calls import watched
from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import by_rank

EXERCISE = Exercise(
    title="Stop together",
    name="train",
    task="`losses` holds this rank's loss for each step. After each step, stop if the average loss "
    "of all ranks is below `limit`. Return the number of steps made, the same on all ranks. In "
    "each step gradients are averaged: call `step()` once at the start of each, it is a "
    "collective.",
    hints=(
        "Each rank sees another loss. What must be the same for them to decide alike?",
        "Average the loss over the ranks before you compare it.",
        "After step(): put the loss in a tensor, all_reduce it, divide, and compare that.",
    ),
    lesson="A decision that changes who communicates is made together.",
    minutes=10,
)


def starter(losses, limit, step):
    for number, loss in enumerate(losses, start=1):
        step()
        if loss < limit:
            return number
    return len(losses)


def solution(losses, limit, step):
    for number, loss in enumerate(losses, start=1):
        step()
        mean = torch.tensor(loss)
        dist.all_reduce(mean)
        if mean / dist.get_world_size() < limit:
            return number
    return len(losses)


def on_rank(answer, steps, limit):
    everywhere = by_rank(lambda rank: (torch.rand(steps) + 0.2).tolist())
    if limit > 0.3:
        everywhere[0][1], everywhere[1][1] = 0.3, 1.2  # rank 0 alone is content after step 2
        everywhere[0][0], everywhere[1][0] = 1.0, 1.0
    made = []  # for each step, how many calls there were before it

    def step():
        made.append(len(calls))
        dist.all_reduce(torch.ones(3))

    if limit == 0.5:  # just the limit is not below it, nor is what bfloat16 takes for the same
        for losses in everywhere:
            losses[:] = [1.0, 0.5, 0.501, 0.4997, 1.0]
    means = torch.tensor(everywhere, dtype=torch.float64).mean(0)
    wanted = next((i for i, mean in enumerate(means, 1) if mean < limit), steps)
    with watched() as calls:
        got = answer(everywhere[dist.get_rank()], limit, step)
    if got != len(made):
        raise NotYet(
            f"rank {dist.get_rank()} returned {got!r}, but called step() {len(made)} times"
        )
    if got != wanted:
        how = "too early" if got < wanted else "too late"
        raise NotYet(
            f"with limit={limit}, the ranks stopped {how}, after step {got} of {steps}: their "
            f"average loss was {means[got - 1]:.3f} there"
        )
    silent = [n for n, (one, other) in enumerate(itertools.pairwise(made), 1) if other == one + 1]
    where = f"between step {silent[0]} and the next no message is sent" if silent else ""
    if sum(call.elements for call in calls[: made[0]]) >= steps:
        where = "all losses are sent before the first step"
    if not where and got < steps and len(calls) == made[-1] + 1:
        where = "no message is sent after the last step(), which comes at the start of each"
    if where:
        raise NotYet(
            f"the ranks stop at the right step, but {where}: in a training a step's loss is known "
            "only after it, so compare it then, each time"
        )


def check(ranks):
    ranks.run(on_rank, 2, 60, 0.45)
    ranks.run(on_rank, 3, 40, 0.55)
    ranks.run(on_rank, 2, 5, 0.0)
    ranks.run(on_rank, 2, 5, 0.5)


def first_of_all(losses, limit, step):
    for number, loss in enumerate(losses, start=1):
        step()
        low = torch.tensor(loss)
        dist.all_reduce(low, op=dist.ReduceOp.MIN)
        if low < limit:
            return number
    return len(losses)


def sum_instead(losses, limit, step):
    for number, loss in enumerate(losses, start=1):
        step()
        total = torch.tensor(loss)
        dist.all_reduce(total)
        if total < limit:
            return number
    return len(losses)


def rank_0_decides_alone(losses, limit, step):
    for number, loss in enumerate(losses, start=1):
        step()
        mean = torch.tensor(loss)
        dist.reduce(mean, dst=0)
        if dist.get_rank() == 0 and mean / dist.get_world_size() < limit:
            return number
    return len(losses)


def one_step_late(losses, limit, step):
    steps = solution(losses, limit, step)
    if steps < len(losses):
        step()
    return steps


def all_beforehand(losses, limit, step):
    means = torch.tensor(losses)
    dist.all_reduce(means)
    for number, mean in enumerate(means / dist.get_world_size(), start=1):
        step()
        if mean < limit:
            return number
    return len(losses)


def all_after_the_first(losses, limit, step):
    means = torch.tensor(losses)
    for number in range(len(losses)):
        step()
        if number == 0:
            dist.all_reduce(means)
        if means[number] / dist.get_world_size() < limit:
            return number + 1
    return len(losses)


def with_broadcast(losses, limit, step):
    for number, loss in enumerate(losses, start=1):
        step()
        everything = [None] * dist.get_world_size()
        dist.all_gather_object(everything, loss)
        if sum(everything) / len(everything) < limit:
            return number
    return len(losses)


WRONG = (
    Wrong(first_of_all, "the ranks stopped too early"),
    Wrong(sum_instead, "the ranks stopped too late"),
    Wrong(rank_0_decides_alone, "did not end"),
    Wrong(all_beforehand, "all losses are sent before the first step"),
    Wrong(all_after_the_first, "between step 2 and the next no message is sent"),
    Wrong(one_step_late, "but called step()"),
)
ALSO_RIGHT = (with_broadcast,)
STARTER_SAYS = "the ranks stopped too early"
