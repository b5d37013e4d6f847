"""Sum many small tensors with one message."""

import torch
import torch.distributed as dist

from ddp_helpers.evidence.sent_calls import watched
from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import by_rank, expect, numbers_of, only

EXERCISE = Exercise(
    title="One message for many tensors",
    name="sum_all",
    task="Sum each tensor of a list over all ranks, in place, with a single dist.all_reduce. The "
    "tensors have different shapes, the same ones on all ranks.",
    hints=(
        "A message has a price, however small it is. So send one: what could hold all values?",
        "torch.cat joins flat tensors. After the sum, each value must find its way back.",
        "flat.split(sizes) gives the pieces; tensor.copy_(piece.view_as(tensor)) puts one back.",
    ),
    lesson="DDP does this with gradients, and calls it a bucket.",
    minutes=10,
)


def starter(tensors):
    for tensor in tensors:  # one message each: too many
        dist.all_reduce(tensor)


def solution(tensors):
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor, piece in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(piece.view_as(tensor))


def on_rank(answer, shapes):
    parts = by_rank(lambda rank: [numbers_of(rank, *shape) for shape in shapes])
    mine = [tensor.clone() for tensor in parts[dist.get_rank()]]
    with watched() as calls:
        answer(list(mine))  # another list: new tensors in its places change none of these
    only(calls, "all_reduce")
    for place, tensor in enumerate(mine):
        expect(tensor, torch.stack([part[place] for part in parts]).sum(0), f"tensor {place}")
    if len(calls) != 1:
        raise NotYet(f"the sums are right. Messages: at most 1; you: {len(calls)}")


def check(ranks):
    ranks.run(on_rank, 2, ((3,), (2, 2), (1,)))
    ranks.run(on_rank, 3, ((4, 5), (), (7,), (2, 1, 3)))


def never_put_back(tensors):
    dist.all_reduce(torch.cat([tensor.flatten() for tensor in tensors]))


def one_off(tensors):
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    for tensor in tensors:
        tensor.copy_(flat[: tensor.numel()].view_as(tensor))  # always from the beginning


def gathers(tensors):
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    everything = [torch.zeros_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(everything, flat)


def stacks(tensors):
    flat = torch.stack(tensors)
    dist.all_reduce(flat)


def by_place(tensors):
    flat, start = torch.cat([tensor.reshape(-1) for tensor in tensors]), 0
    dist.all_reduce(flat)
    for tensor in tensors:
        tensor.view(-1)[:] = flat[start : start + tensor.numel()]
        start += tensor.numel()


WRONG = (
    Wrong(never_put_back, "on rank 0 of 2, tensor 0 is"),
    Wrong(one_off, "on rank 0 of 2, tensor 1 is"),
    Wrong(gathers, "you called all_gather"),
    Wrong(stacks, "sum_all failed in a run of 2 ranks"),
)
ALSO_RIGHT = (by_place,)
STARTER_SAYS = "Messages: at most 1; you: 3"
