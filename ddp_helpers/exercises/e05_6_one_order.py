"""Find the bug: the ranks sum different things."""

import torch
import torch.distributed as dist

from ddp_helpers.evidence.sent_calls import watched
from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import are_numbers, by_rank, exchanged, expect, plain, show

EXERCISE = Exercise(
    title="Find the bug: crossed collectives",
    name="sum_metrics",
    task="`metrics` maps names to numbers; all ranks have the same names, in different orders. "
    "Return a dict with the sum over the ranks for each name. This version runs through and mixes "
    "the metrics up.",
    hints=(
        "Which numbers meet in the first all_reduce?",
        "In which order should each rank walk its dict, so that it is the same everywhere?",
        "for name in sorted(metrics).",
    ),
    lesson="The order may come from a set, a directory listing, or a dict that was filled in turn.",
    minutes=6,
)


def starter(metrics):
    sums = {}
    for name, value in metrics.items():
        total = torch.tensor(value)
        dist.all_reduce(total)
        sums[name] = total.item()
    return sums


def solution(metrics):
    sums = {}
    for name in sorted(metrics):
        total = torch.tensor(metrics[name])
        dist.all_reduce(total)
        sums[name] = total.item()
    return sums


def on_rank(answer, names):
    # no two metrics are equal, so none can stand for another
    parts = by_rank(lambda rank: (torch.randperm(9)[: len(names)] + 1.0) * 10**rank + 0.25)
    everywhere = [dict(zip(names, part.tolist(), strict=True)) for part in parts]
    rank = dist.get_rank()
    order = names[rank % len(names) :] + names[: rank % len(names)]
    with watched() as calls:
        got = answer({name: everywhere[rank][name] for name in order})
    if not isinstance(got, dict) or sorted(got) != sorted(names):
        raise NotYet(f"rank {rank} returned {show(got)}, expected a dict with {sorted(names)}")
    for name in names:
        wanted = sum(metrics[name] for metrics in everywhere)
        value = plain(got[name])
        if not are_numbers([value], int, float):
            raise NotYet(f"on rank {rank}, {name} is {show(got[name])}, expected a number")
        expect(torch.tensor(value), torch.tensor(wanted), name)
    exchanged(calls)


def check(ranks):
    ranks.run(on_rank, 2, ["loss", "accuracy", "samples"])
    ranks.run(on_rank, 3, ["loss", "F1", "lr", "f1"])


def in_a_row(metrics):
    flat = torch.tensor(list(metrics.values()))
    dist.all_reduce(flat)
    return dict(zip(sorted(metrics), flat.tolist(), strict=True))


def averages(metrics):
    return {name: value / dist.get_world_size() for name, value in solution(metrics).items()}


def only_values(metrics):
    return list(solution(metrics).values())


def drops_one(metrics):
    return solution({name: metrics[name] for name in sorted(metrics)[1:]})


def rank_0_decides(metrics):
    names = [sorted(metrics, reverse=True)]
    dist.broadcast_object_list(names)
    flat = torch.tensor([metrics[name] for name in names[0]])
    dist.all_reduce(flat)
    return dict(zip(names[0], flat.tolist(), strict=True))


WRONG = (
    Wrong(in_a_row, "on rank 0 of 2, loss is"),
    Wrong(only_values, "expected a dict with"),
    Wrong(drops_one, "returned {"),
)
ALSO_RIGHT = (rank_0_decides,)
STARTER_SAYS = "on rank 0 of 2, loss is"
