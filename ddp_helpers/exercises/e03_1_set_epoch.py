"""A new order in each epoch."""

import itertools

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import are_numbers, plain, show

EXERCISE = Exercise(
    title="A new order in each epoch",
    name="walk",
    task="Return, for each of `epochs` epochs, the samples that this rank has seen, in order: a "
    "list for each epoch, or a tensor. Each epoch should have another order, and within an epoch "
    "no sample may be seen by two ranks. One line is missing.",
    hints=(
        "The sampler shuffles by itself: torch.manual_seed does not reach it. Notebook 03, part 2.",
        "The sampler shuffles with its seed plus a number that somebody has to raise.",
        "sampler.set_epoch(epoch), before the loader is walked.",
    ),
    lesson="Nothing warns you: without that line the loss still goes down.",
    minutes=5,
)


def starter(dataset, epochs):
    sampler = DistributedSampler(dataset, shuffle=True)
    loader = DataLoader(dataset, batch_size=4, sampler=sampler)
    seen = []
    for _epoch in range(epochs):
        seen.append([int(x) for (batch,) in loader for x in batch])
    return seen


def solution(dataset, epochs):
    sampler = DistributedSampler(dataset, shuffle=True)
    loader = DataLoader(dataset, batch_size=4, sampler=sampler)
    seen = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        seen.append([int(x) for (batch,) in loader for x in batch])
    return seen


def on_rank(answer, samples, epochs):
    got = plain(answer(TensorDataset(torch.arange(samples)), epochs))
    if not isinstance(got, list) or len(got) != epochs:
        raise NotYet(
            f"rank {dist.get_rank()} should return {epochs} lists, one for each epoch, "
            f"but returns {show(got)}"
        )
    for epoch, seen in enumerate(got):
        if not are_numbers(seen, int):
            raise NotYet(f"epoch {epoch}: expected a list of whole numbers, got {show(seen)}")
    return got


def check(ranks):
    for nprocs, samples, epochs in ((2, 26, 3), (3, 63, 4)):
        values = ranks.run(on_rank, nprocs, samples, epochs)
        for epoch in range(epochs):
            judge_epoch([value[epoch] for value in values], epoch, samples)
        for one, other in itertools.combinations(range(epochs), 2):
            if values[0][one] == values[0][other]:
                raise NotYet(f"rank 0 has the same order in the epochs {one} and {other}")


def judge_epoch(lists, epoch, samples):
    seen = sorted(sample for each in lists for sample in each)
    twice = sorted({sample for sample in seen if seen.count(sample) > 1})
    if twice:
        raise NotYet(f"in epoch {epoch}, the samples {twice[:4]} are seen more than once")
    if len(seen) < samples:
        raise NotYet(f"in epoch {epoch}, {samples - len(seen)} of {samples} samples are not seen")


def no_sampler(dataset, epochs):
    loader = DataLoader(dataset, batch_size=4, shuffle=True)
    return [[int(x) for (batch,) in loader for x in batch] for _ in range(epochs)]


def own_seed(dataset, epochs):
    seen = []
    for epoch in range(epochs):
        sampler = DistributedSampler(dataset, seed=100 * dist.get_rank() + epoch)
        seen.append([int(dataset[i][0]) for i in sampler])
    return seen


def one_epoch(dataset, epochs):
    return solution(dataset, 1)


def drops(dataset, epochs):
    return [epoch[:-1] for epoch in solution(dataset, epochs)]


def new_sampler_each_time(dataset, epochs):
    seen = []
    for epoch in range(epochs):
        sampler = DistributedSampler(dataset, seed=epoch)
        seen.append([int(dataset[i][0]) for i in sampler])
    return seen


WRONG = (
    Wrong(no_sampler, "in epoch 0, the samples [0, 1, 2, 3] are seen more than once"),
    Wrong(own_seed, "are seen more than once"),
    Wrong(one_epoch, "should return 3 lists"),
    Wrong(drops, "samples are not seen"),
)
ALSO_RIGHT = (new_sampler_each_time,)
STARTER_SAYS = "the same order in the epochs 0 and 1"
