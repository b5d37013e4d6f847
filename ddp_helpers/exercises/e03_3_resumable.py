"""Go on in the middle of an epoch, without a sample lost or repeated."""

import itertools

import torch
import torch.distributed as dist

from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import are_numbers, plain, show

EXERCISE = Exercise(
    title="Go on in mid-epoch",
    name="batches",
    task="Return this rank's batches of an epoch, as lists or tensors of indices, from step `done` "
    "on. The order is shuffled, and only seed and epoch decide it. `n` samples are divisible by "
    "`size` (samples of one batch on one rank) times the ranks. A run that goes on after `done` "
    "steps must see exactly what an unbroken run would have seen from there.",
    hints=(
        "The order must not depend on what was drawn before. What fixes it?",
        "torch.randperm(n, generator=torch.Generator().manual_seed(...)) is the same on all ranks.",
        "Make all batches of the epoch for this rank, as always, and leave out the first `done`.",
    ),
    lesson="Save epoch and step in the checkpoint; the order can be made again.",
    minutes=15,
)


def starter(n, size, seed, epoch, done):
    generator = torch.Generator().manual_seed(seed + epoch)
    order = torch.randperm(n, generator=generator).tolist()
    mine = order[dist.get_rank() :: dist.get_world_size()]
    return [mine[i : i + size] for i in range(0, len(mine), size)]  # always from the start


def solution(n, size, seed, epoch, done):
    generator = torch.Generator().manual_seed(seed + epoch)
    order = torch.randperm(n, generator=generator).tolist()
    mine = order[dist.get_rank() :: dist.get_world_size()]
    return [mine[i : i + size] for i in range(done * size, len(mine), size)]


def on_rank(answer, n, size, seed):
    torch.rand(3 + dist.get_rank())  # a run that goes on has drawn other numbers before
    first = [plain(answer(n, size, seed, epoch, 0)) for epoch in (0, 1)]
    torch.rand(5)
    steps = n // size // dist.get_world_size()
    rest = [plain(answer(n, size, seed, 1, done)) for done in (1, 3, steps)]
    other_seed = plain(answer(n, size, seed + 1000, 0, 0))
    for got in (*first, *rest, other_seed):
        if not isinstance(got, list) or not all(are_numbers(batch, int) for batch in got):
            raise NotYet(f"expected a list of batches, each a list of indices, got {show(got)}")
    return first, rest, other_seed


def check(ranks):
    for nprocs, n, size, seed in ((2, 48, 4, 11), (3, 60, 5, 2)):
        values = ranks.run(on_rank, nprocs, n, size, seed)
        for epoch in (0, 1):
            judge_epoch([value[0][epoch] for value in values], n, size, epoch)
        if values[0][0][0] == values[0][0][1]:
            raise NotYet("the epochs 0 and 1 have the same order")
        order = [i for batch in values[0][0][0] for i in batch]
        gaps = [(later - one) % n for one, later in itertools.pairwise(order)]
        if len(set(gaps)) <= 2:  # one step again and again, wherever it begins
            raise NotYet(f"the order is not shuffled: rank 0 begins with {order[:6]}")
        if values[0][0][0] == values[0][2]:
            raise NotYet("two seeds have the same order in epoch 0")
        for rank, (whole, resumed, _) in enumerate(values):
            for done, rest in zip((1, 3, n // size // nprocs), resumed, strict=True):
                judge_rest(rank, done, rest, whole[1][done:])


def judge_epoch(shares, n, size, epoch):
    seen = sorted(i for share in shares for batch in share for i in batch)
    if seen != list(range(n)):
        twice = sorted({i for i in seen if seen.count(i) > 1})
        raise NotYet(f"epoch {epoch}: {len(set(seen))} of {n} samples seen, {len(twice)} repeated")
    if any(len(batch) != size for share in shares for batch in share):
        raise NotYet(f"epoch {epoch}: not every batch has size={size} samples")


def judge_rest(rank, done, rest, wanted):
    if len(rest) != len(wanted):
        raise NotYet(
            f"rank {rank}, going on after {done} steps: {len(rest)} batches, an unbroken run has "
            f"{len(wanted)} left"
        )
    if rest != wanted:
        raise NotYet(
            f"rank {rank}, going on after {done} steps: other samples than in an unbroken run"
        )


def deals_anew(n, size, seed, epoch, done):
    generator = torch.Generator().manual_seed(seed + epoch)
    order = torch.randperm(n, generator=generator)[done * size * dist.get_world_size() :]
    mine = order.chunk(dist.get_world_size())[dist.get_rank()].tolist()
    if not done:
        return solution(n, size, seed, epoch, 0)
    return [mine[i : i + size] for i in range(0, len(mine), size)]


def global_generator(n, size, seed, epoch, done):
    order = torch.randperm(n).tolist()
    mine = order[dist.get_rank() :: dist.get_world_size()]
    return [mine[i : i + size] for i in range(done * size, len(mine), size)]


def epoch_forgotten(n, size, seed, epoch, done):
    return solution(n, size, seed, 0, done)


def not_shuffled(n, size, seed, epoch, done):
    mine = list(range(n))[dist.get_rank() :: dist.get_world_size()]
    mine = mine[::-1] if epoch else mine
    return [mine[i : i + size] for i in range(done * size, len(mine), size)]


def one_too_many(n, size, seed, epoch, done):
    return solution(n, size, seed, epoch, max(0, done - 1))


def with_torchs_sampler(n, size, seed, epoch, done):
    from torch.utils.data import BatchSampler, DistributedSampler

    sampler = DistributedSampler(range(n), seed=seed)
    sampler.set_epoch(epoch)
    return list(BatchSampler(sampler, size, drop_last=False))[done:]


WRONG = (
    Wrong(deals_anew, "going on after 1 steps: other samples"),
    Wrong(global_generator, "epoch 0:"),
    Wrong(epoch_forgotten, "have the same order"),
    Wrong(not_shuffled, "not shuffled"),
    Wrong(one_too_many, "going on after 1 steps: 6 batches"),
)
ALSO_RIGHT = (with_torchs_sampler,)
STARTER_SAYS = "an unbroken run has 5 left"
