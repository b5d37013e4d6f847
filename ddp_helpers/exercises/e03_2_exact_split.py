"""An evaluation split in which each sample counts once."""

import torch.distributed as dist

from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import are_numbers, plain, show

EXERCISE = Exercise(
    title="An exact evaluation split",
    name="my_share",
    task="Return the indices (a list, a range or a tensor) of the samples 0 to n - 1 that this "
    "rank evaluates. Over all ranks each sample comes exactly once, also when n is not divisible. "
    "No rank has more than one sample more than another.",
    hints=(
        "DistributedSampler repeats samples until all shares are equal. You may not.",
        "Deal the samples out like cards. Which ones does rank 1 of 3 get?",
        "range has a third argument.",
    ),
    lesson="In part 6 of the notebook repeated samples made 0.222 read 0.333.",
    minutes=6,
)


def starter(n):
    size = n // dist.get_world_size()
    first = dist.get_rank() * size
    return list(range(first, first + size))


def solution(n):
    return list(range(dist.get_rank(), n, dist.get_world_size()))


def on_rank(answer):
    shares = {n: plain(answer(n)) for n in (12, 11, 7, 1)}
    for n, share in shares.items():
        if not are_numbers(share, int):
            raise NotYet(f"with n={n}, expected a list of indices, got {show(share)}")
    return shares


def check(ranks):
    for nprocs in (2, 3):
        values = ranks.run(on_rank, nprocs)
        for n in values[0]:
            judge([value[n] for value in values], n)


def judge(shares, n):
    where = f"with n={n} on {len(shares)} ranks"
    dealt = sorted(index for share in shares for index in share)
    outside = [index for index in dealt if not 0 <= index < n]
    if outside:
        raise NotYet(f"{where}, sample {outside[0]} does not exist")
    twice = [index for index in range(n) if dealt.count(index) > 1]
    if twice:
        raise NotYet(f"{where}, sample {twice[0]} is evaluated {dealt.count(twice[0])} times")
    if len(dealt) < n:
        missing = sorted(set(range(n)) - set(dealt))
        raise NotYet(f"{where}, the samples {missing[:5]} are never evaluated")
    sizes = [len(share) for share in shares]
    if max(sizes) - min(sizes) > 1:
        raise NotYet(f"{where}, the shares have {sizes} samples: all wait for the largest")


def padded(n):
    from torch.utils.data import DistributedSampler

    return list(DistributedSampler(range(n), shuffle=False))


def everything(n):
    return list(range(n))


def rest_to_the_last(n):
    share = starter(n)
    if dist.get_rank() == dist.get_world_size() - 1:
        share += range(n // dist.get_world_size() * dist.get_world_size(), n)
    return share


def one_too_far(n):
    return list(range(dist.get_rank() + 1, n + 1, dist.get_world_size()))


def in_blocks(n):
    rank, size = dist.get_rank(), dist.get_world_size()
    return list(range(n * rank // size, n * (rank + 1) // size))


WRONG = (
    Wrong(padded, "sample 0 is evaluated 2 times"),
    Wrong(everything, "with n=12 on 2 ranks, sample 0 is evaluated"),
    Wrong(rest_to_the_last, "all wait for the largest"),
    Wrong(one_too_far, "sample 12 does not exist"),
)
ALSO_RIGHT = (in_blocks,)
STARTER_SAYS = "with n=11 on 2 ranks, the samples [10] are never evaluated"
