"""Find the bug: all ranks draw the same augmentation."""

import torch
import torch.distributed as dist
from torch import nn

from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import are_numbers, different, plain, show

EXERCISE = Exercise(
    title="Find the bug: the same noise everywhere",
    name="prepare",
    task="Return the model's weight and four random numbers for augmentation. All ranks must start "
    "with the same weight and draw different numbers; both must be the same again in the next run "
    "with this seed, and others with another seed. This version draws the same noise on all ranks.",
    hints=(
        "What is drawn depends on the seed. For what should it differ between ranks, for what not?",
        "Seed twice: once for the model, once for the noise.",
        "torch.manual_seed(seed + rank), after the model is made.",
    ),
    lesson="Equal noise on all ranks makes a batch less varied than it looks.",
    minutes=6,
)


def starter(seed):
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    return model.weight.detach(), torch.rand(4)


def solution(seed):
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    torch.manual_seed(seed + dist.get_rank())
    return model.weight.detach(), torch.rand(4)


def on_rank(answer, seed):
    first = parts_of(answer(seed))
    torch.rand(7)
    return first, parts_of(answer(seed)), parts_of(answer(seed + 1000))


def parts_of(got):
    """The weight and the noise, as lists."""
    if not isinstance(got, tuple | list) or len(got) != 2:
        raise NotYet(f"expected the weight and four numbers, got {show(got)}")
    weight, noise = map(plain, got)
    if torch.Size([2, 3]) != getattr(got[0], "shape", None):
        raise NotYet(f"expected the model's weight, a tensor of 2 x 3, got {show(got[0])}")
    if not are_numbers(noise, float) or len(noise) != 4:
        raise NotYet(f"expected four random numbers, got {show(got[1])}")
    return weight, noise


def check(ranks):
    for nprocs, seed in ((2, 3), (4, 88)):
        values = ranks.run(on_rank, nprocs, seed)
        next_run = ranks.run(on_rank, nprocs, seed) if nprocs == 2 else values
        pair = different([first[0] for first, _, _ in values])
        if pair:
            raise NotYet(f"the ranks {pair[0]} and {pair[1]} start with different weights")
        # less the first: the same numbers with the rank added to them are no new ones
        # sorted: nor are they in another order
        noise = [[f"{n - min(first[1]):.4f}" for n in sorted(first[1])] for first, _, _ in values]
        if len(set(map(tuple, noise))) < nprocs:
            raise NotYet(f"of {nprocs} ranks, some draw the same numbers: {show(values[0][0][1])}")
        for rank, (first, again, other) in enumerate(values):
            for place, what in enumerate(("weight", "noise")):
                if first[place] != again[place]:
                    raise NotYet(f"rank {rank}, same seed: the {what} is not the same again")
                if first[place] != next_run[rank][0][place]:
                    raise NotYet(f"rank {rank}, the same seed in the next run: other {what}")
                if first[place] == other[place]:
                    raise NotYet(f"rank {rank}, another seed: the {what} is the same")


def rank_for_both(seed):
    torch.manual_seed(seed + dist.get_rank())
    return nn.Linear(3, 2).weight.detach(), torch.rand(4)


def from_the_clock(seed):
    weight, _ = starter(seed)
    torch.seed()
    return weight, torch.rand(4)


def rank_alone(seed):
    weight, _ = starter(seed)
    torch.manual_seed(dist.get_rank())
    return weight, torch.rand(4)


def with_a_generator(seed):
    torch.manual_seed(seed)
    weight = nn.Linear(3, 2).weight.detach()
    generator = torch.Generator().manual_seed(seed * 1009 + dist.get_rank())
    return weight, torch.rand(4, generator=generator)


WRONG = (
    Wrong(rank_for_both, "start with different weights"),
    Wrong(from_the_clock, "the noise is not the same again"),
    Wrong(rank_alone, "another seed: the noise is the same"),
)
ALSO_RIGHT = (with_a_generator,)
STARTER_SAYS = "some draw the same numbers"
