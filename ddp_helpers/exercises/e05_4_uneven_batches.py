"""Find the bug: one rank has a batch more."""

import torch
import torch.distributed as dist

from ddp_helpers.exercises.core import Exercise, NotYet, Wrong

EXERCISE = Exercise(
    title="Find the bug: uneven batches",
    name="train",
    task="`batches` can be walked once; its length is not known, and ranks have different numbers "
    "of batches. Call step(batch) for each batch as long as *every* rank has one, and return the "
    "number of steps. step is a collective. This version hangs as soon as one rank has more.",
    hints=(
        "Before each step, a rank knows whether it has a batch itself. What does it not know?",
        "Let all ranks say whether they have one. Which reduction tells that all do?",
        "next(iterator, None), a tensor of 1 or 0, all_reduce with MIN, stop at 0.",
    ),
    lesson="Equal lengths (drop_last, or a sampler that pads) are cheaper than asking each time.",
    minutes=12,
)


def starter(batches, step):
    steps = 0
    for batch in batches:
        step(batch)
        steps += 1
    return steps


def solution(batches, step):
    iterator, steps = iter(batches), 0
    while True:
        batch = next(iterator, None)
        all_have_one = torch.tensor(int(batch is not None))
        dist.all_reduce(all_have_one, op=dist.ReduceOp.MIN)
        if not all_have_one:
            return steps
        step(batch)
        steps += 1


def on_rank(answer, lengths):
    made = []

    def step(batch):
        made.append(int(batch[0]))
        dist.all_reduce(torch.ones(2))

    batches = (torch.full((2,), float(i)) for i in range(lengths[dist.get_rank()]))
    steps = answer(batches, step)
    if len(made) != min(lengths):
        raise NotYet(
            f"with {lengths} batches a rank, rank {dist.get_rank()} made {len(made)} steps, and "
            f"{min(lengths)} can be made together"
        )
    if made != list(range(min(lengths))):
        raise NotYet(f"with {lengths} batches a rank, batches are left out or repeated: {made}")
    if steps != len(made):
        raise NotYet(f"{len(made)} steps were made, but {steps!r} was returned")


def check(ranks):
    ranks.run(on_rank, 2, (5, 3))
    ranks.run(on_rank, 3, (2, 4, 2))


def one_too_few(batches, step):
    iterator, steps = iter(batches), 0
    batch, following = next(iterator, None), next(iterator, None)
    while True:
        flag = torch.tensor(int(following is not None))
        dist.all_reduce(flag, op=dist.ReduceOp.MIN)
        if not flag:
            return steps
        step(batch)
        steps += 1
        batch, following = following, next(iterator, None)


def any_instead_of_all(batches, step):
    iterator, steps, batch = iter(batches), 0, torch.zeros(2)
    while True:
        following = next(iterator, None)
        flag = torch.tensor(int(following is not None))
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        if not flag:
            return steps
        batch = batch if following is None else following
        step(batch)
        steps += 1


def nothing(batches, step):
    solution(batches, step)


def skips_one(batches, step):
    iterator = iter(batches)
    next(iterator)
    return solution([torch.zeros(2), *list(iterator)[1:], torch.zeros(2)], step)


def count_first(batches, step):
    batches = list(batches)
    lengths = [None] * dist.get_world_size()
    dist.all_gather_object(lengths, len(batches))
    for batch in batches[: min(lengths)]:
        step(batch)
    return min(lengths)


WRONG = (
    Wrong(one_too_few, "made 2 steps, and 3 can be made together"),
    Wrong(any_instead_of_all, "made 5 steps, and 3 can be made together"),
    Wrong(nothing, "but None was returned"),
    Wrong(skips_one, "left out or repeated"),
)
ALSO_RIGHT = (count_first,)
STARTER_SAYS = "train did not end"
STARTER_SECONDS = 2.0
