"""Rebuild broadcast from send and recv."""

import torch
import torch.distributed as dist

from ddp_helpers.evidence.sent_calls import watched
from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import EXACT, expect, fine_numbers, in_place, numbers, only

EXERCISE = Exercise(
    title="Rebuild broadcast",
    name="my_broadcast",
    task="Give every rank the tensor of rank `src`, with dist.send and dist.recv alone. Change "
    "`tensor` in place, as dist.broadcast does. The group is running already.",
    hints=(
        "One rank sends, and each other rank does something else. Start with that `if`.",
        "Each send needs one recv on the rank that it goes to. How many sends does rank src make?",
        "Rank src loops over all ranks but itself. dist.recv(tensor, src=...) fills in place.",
    ),
    lesson="Real libraries pass it on along a tree, so that no rank sends to all.",
)


def starter(tensor, src):
    rank, world_size = dist.get_rank(), dist.get_world_size()
    raise NotImplementedError(f"rank {rank} of {world_size}: send, or receive?")


def solution(tensor, src):
    if dist.get_rank() == src:
        for rank in range(dist.get_world_size()):
            if rank != src:
                dist.send(tensor, dst=rank)
    else:
        dist.recv(tensor, src=src)


def on_rank(answer, src):
    parts = numbers(3, 2) if src else fine_numbers(3, 2)
    tensor = parts[dist.get_rank()].clone()
    address = tensor.data_ptr()
    with watched() as calls:
        answer(tensor, src)
    only(calls, "send", "recv")
    if dist.get_rank() == src and not torch.equal(tensor, parts[src]):
        raise NotYet(f"rank {src} is the source, and yet its own tensor has changed")
    expect(tensor, parts[src], f"with src={src}, the tensor", EXACT)
    in_place(tensor, address, "the tensor")
    return len(calls)


def check(ranks):
    for nprocs, src in ((2, 0), (3, 2), (4, 1)):
        try:
            ranks.run(on_rank, nprocs, src)
        except NotYet as reason:
            if str(reason).startswith("my_broadcast failed"):  # it can't know of src
                raise NotYet(f"with src={src}, {reason}") from None
            raise


def only_from_0(tensor, src):
    solution(tensor, 0)


def rank_0_sends(tensor, src):
    if dist.get_rank() == 0:
        for rank in range(1, dist.get_world_size()):
            dist.send(tensor, dst=rank)
    else:
        dist.recv(tensor, src=src)


def calls_it(tensor, src):
    dist.broadcast(tensor, src)


def new_tensor(tensor, src):
    if dist.get_rank() == src:
        solution(tensor, src)
    else:
        tensor = torch.empty_like(tensor)  # another tensor: the caller never sees it
        dist.recv(tensor, src=src)
    return tensor


def all_receive(tensor, src):
    if dist.get_rank() == src:
        solution(tensor, src)
    dist.recv(tensor, src=src)


def along_a_chain(tensor, src):
    size = dist.get_world_size()
    place = (dist.get_rank() - src) % size
    if place > 0:
        dist.recv(tensor, src=(dist.get_rank() - 1) % size)
    if place < size - 1:
        dist.send(tensor, dst=(dist.get_rank() + 1) % size)


WRONG = (
    Wrong(only_from_0, "of 3, with src=2, the tensor is"),
    Wrong(rank_0_sends, "with src=2, my_broadcast failed in a run of 3 ranks"),
    Wrong(calls_it, "you called broadcast"),
    Wrong(new_tensor, "on rank 1 of 2, with src=0, the tensor is"),
    Wrong(all_receive, "with src=0, my_broadcast failed"),
)
ALSO_RIGHT = (along_a_chain,)
