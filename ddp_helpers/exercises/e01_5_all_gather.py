"""Rebuild all_gather from broadcast."""

import torch
import torch.distributed as dist

from ddp_helpers.evidence.sent_calls import watched
from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import EXACT, expect, fine_numbers, numbers, only

EXERCISE = Exercise(
    title="Rebuild all_gather",
    name="my_all_gather",
    task="Return a list with the tensors of all ranks, in rank order, on every rank. Use "
    "dist.broadcast alone. All tensors have the same shape; leave the given one as it is.",
    hints=(
        "After one broadcast everybody has one rank's tensor. How many are needed?",
        "All ranks make all broadcasts, in the same order, and each fills a place in the list.",
        "For each rank: a fresh copy or an empty tensor of that shape, then "
        "dist.broadcast(it, src=rank).",
    ),
    lesson="A collective under a loop is fine, as long as all ranks go round equally often.",
    minutes=8,
)


def starter(tensor):
    parts = [torch.zeros_like(tensor)] * dist.get_world_size()  # are these different tensors?
    raise NotImplementedError(f"fill {len(parts)} places with dist.broadcast")


def solution(tensor):
    parts = [tensor.clone() for _ in range(dist.get_world_size())]
    for rank, part in enumerate(parts):
        dist.broadcast(part, src=rank)
    return parts


def on_rank(answer, make):
    tensors = make(2, 3)
    mine = tensors[dist.get_rank()].clone()
    with watched() as calls:
        parts = answer(mine)
    only(calls, "broadcast")
    kinds = {call.dtype for call in calls} - {"float32"}
    if kinds:
        raise NotYet(
            f"you have broadcast {' and '.join(sorted(kinds))}, expected the tensors themselves, "
            "which are float32: broadcast_object_list, for example, makes bytes of them"
        )
    parts = list(parts) if isinstance(parts, torch.Tensor) else parts  # one of them stacked
    if not isinstance(parts, list | tuple) or len(parts) != len(tensors):
        raise NotYet(f"on {len(tensors)} ranks, expected a list of {len(tensors)} tensors")
    if len({part.data_ptr() for part in parts}) < len(parts):
        raise NotYet("places of your list are one and the same tensor: the last one wins in all")
    for rank, part in enumerate(parts):
        expect(part, tensors[rank], f"place {rank} of the list", EXACT)
        if part.dtype != tensors[rank].dtype:
            raise NotYet(
                f"place {rank} of the list is {part.dtype}, expected {tensors[rank].dtype}"
            )
    expect(mine, tensors[dist.get_rank()], "the tensor that was given")


def check(ranks):
    ranks.run(on_rank, 2, numbers)
    ranks.run(on_rank, 4, fine_numbers)


def calls_it(tensor):
    parts = [torch.zeros_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor)
    return parts


def one_tensor(tensor):
    parts = [torch.zeros_like(tensor)] * dist.get_world_size()
    for rank, part in enumerate(parts):
        if rank == dist.get_rank():
            part.copy_(tensor)
        dist.broadcast(part, src=rank)
    return parts


def own_first(tensor):
    parts = solution(tensor)
    return [parts[dist.get_rank()], *parts[: dist.get_rank()], *parts[dist.get_rank() + 1 :]]


def overwrites(tensor):
    parts = []
    for rank in range(dist.get_world_size()):
        dist.broadcast(tensor, src=rank)
        parts.append(tensor.clone())
    return parts


def only_the_first(tensor):
    part = tensor.clone()
    dist.broadcast(part, src=0)
    return [part]


def with_a_table(tensor):
    table = torch.empty(dist.get_world_size(), *tensor.shape)
    table[dist.get_rank()] = tensor
    jobs = [dist.broadcast(row, rank, async_op=True) for rank, row in enumerate(table)]
    for job in jobs:
        job.wait()
    return list(table)


WRONG = (
    Wrong(calls_it, "you called all_gather"),
    Wrong(one_tensor, "one and the same tensor"),
    Wrong(own_first, "on rank 1 of 2, place 0 of the list is"),
    Wrong(overwrites, "on rank 0 of 2, place 1 of the list is"),
    Wrong(only_the_first, "expected a list of 2 tensors"),
)
ALSO_RIGHT = (with_a_table,)
