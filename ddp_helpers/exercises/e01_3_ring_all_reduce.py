"""All-reduce on a ring, in chunks: what real libraries do for large tensors."""

import torch
import torch.distributed as dist

from ddp_helpers.evidence.sent_calls import watched
from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import EXACT, expect, fine_numbers, in_place, numbers, only

EXERCISE = Exercise(
    title="Ring all-reduce in chunks",
    name="my_all_reduce",
    task="Sum `tensor` (one dimension) over all ranks, in place, with send and recv. If all "
    "ranks send first, nobody receives: isend and irecv return at once, and their result has a "
    "wait(). Cut it into world_size chunks. Talk to your two neighbours only: send to "
    "rank + 1, receive from rank - 1. No rank may send more than about twice its tensor, however "
    "many ranks there are. The length need not be divisible by the number of ranks.",
    hints=(
        "Two rounds around the ring. In the first, chunks are added up on their way; in the "
        "second, finished chunks are passed on and replace what is there.",
        "tensor.tensor_split(world_size) gives views: what you add to them arrives in `tensor`. "
        "Each round has world_size - 1 steps.",
        "If all ranks send first, large messages block: isend, then recv, then wait. You pass on "
        "what you have just added to. Which chunk is that in step 0, and in step 1?",
        "In step s of the first round rank r sends chunk r - s and adds what comes to chunk "
        "r - s - 1 (modulo world_size). In the second it sends r + 1 - s.",
    ),
    lesson="Each rank sends 2 (n - 1) / n of its tensor: nearly the same for 2 ranks and for 1000.",
    minutes=30,
)


def starter(tensor):
    rank, size = dist.get_rank(), dist.get_world_size()
    chunks = list(tensor.tensor_split(size))
    right, left = (rank + 1) % size, (rank - 1) % size
    raise NotImplementedError(f"send chunks to {right}, receive from {left}: {len(chunks)} chunks")


def solution(tensor):
    rank, size = dist.get_rank(), dist.get_world_size()
    chunks = list(tensor.tensor_split(size))
    right, left = (rank + 1) % size, (rank - 1) % size
    for step in range(2 * (size - 1)):
        adding = step < size - 1
        first = rank - step if adding else rank + 1 - (step - (size - 1))
        outgoing, target = chunks[first % size], chunks[(first - 1) % size]
        incoming = torch.empty_like(target)
        sending = dist.isend(outgoing.clone(), dst=right)
        dist.recv(incoming, src=left)
        sending.wait()
        target.add_(incoming) if adding else target.copy_(incoming)


SOME = 100  # elements; beyond, nobody reads them all


def on_rank(answer, length):
    parts = numbers(length) if length < SOME else fine_numbers(length)
    tensor = parts[dist.get_rank()].clone()
    address = tensor.data_ptr()
    with watched() as calls:
        answer(tensor)
    only(calls, "send", "recv")
    _neighbours(calls)
    expect(tensor, torch.stack(parts).sum(0), f"with {length} elements, the tensor", EXACT)
    in_place(tensor, address, "the tensor")
    return sum(call.elements for call in calls if call.name == "send")


def _neighbours(calls):
    rank, size = dist.get_rank(), dist.get_world_size()
    for name, wanted in (("send", (rank + 1) % size), ("recv", (rank - 1) % size)):
        others = {call.peer for call in calls if call.name == name} - {wanted}
        if others:
            whom = "any rank" if None in others else f"rank {min(others)}"
            raise NotYet(
                f"rank {rank} of {size} calls {name} with {whom}, expected rank {wanted} alone: on "
                "a ring, each rank sends to the next and receives from the one before"
            )


def check(ranks):
    # nine in four parts: chunk() makes three of them, and tensor_split() four
    for nprocs, length in ((2, 8), (3, 30), (4, 9), (4, 4099)):
        sent = max(ranks.run(on_rank, nprocs, length))
        most = round(2 * length * (nprocs - 1) / nprocs) + 2 * nprocs
        counted = (
            f"Numbers that a rank sends of a tensor of {length}, on {nprocs} ranks: "
            f"at most {most}; you: {sent}"
        )
        if sent > most:
            raise NotYet(f"the sum is right. {counted}")
    return f"{counted}."


def whole_tensors(tensor):
    size, passing = dist.get_world_size(), tensor.clone()
    for _ in range(size - 1):
        sending = dist.isend(passing.clone(), dst=(dist.get_rank() + 1) % size)
        dist.recv(passing, src=(dist.get_rank() - 1) % size)
        sending.wait()
        tensor += passing


def calls_it(tensor):
    dist.all_reduce(tensor)


def one_round(tensor):
    size, rank = dist.get_world_size(), dist.get_rank()
    chunks = list(tensor.tensor_split(size))
    for step in range(size - 1):
        sending = dist.isend(chunks[(rank - step) % size].clone(), dst=(rank + 1) % size)
        incoming = torch.empty_like(chunks[(rank - step - 1) % size])
        dist.recv(incoming, src=(rank - 1) % size)
        sending.wait()
        chunks[(rank - step - 1) % size].add_(incoming)


def rest_forgotten(tensor):
    even = len(tensor) // dist.get_world_size() * dist.get_world_size()
    solution(tensor[:even])  # what is left over at the end is never summed


def waits_first(tensor):
    dist.recv(torch.empty_like(tensor), src=(dist.get_rank() - 1) % dist.get_world_size())
    dist.send(tensor, dst=(dist.get_rank() + 1) % dist.get_world_size())


def with_padding(tensor):
    size, rank = dist.get_world_size(), dist.get_rank()
    width = -(-len(tensor) // size)
    table = torch.zeros(size * width)
    table[: len(tensor)] = tensor
    table = table.view(size, width)
    for adding in (True, False):
        for step in range(size - 1):
            mine = (rank - step + (not adding)) % size
            box = torch.zeros(width)
            jobs = [
                dist.P2POp(dist.isend, table[mine].clone(), (rank + 1) % size),
                dist.P2POp(dist.irecv, box, (rank - 1) % size),
            ]
            for job in dist.batch_isend_irecv(jobs):
                job.wait()
            table[mine - 1] = table[mine - 1] + box if adding else box
    tensor.copy_(table.flatten()[: len(tensor)])


def to_everybody(tensor):
    rank, size = dist.get_rank(), dist.get_world_size()
    chunks = list(tensor.tensor_split(size))
    mine, boxes = chunks[rank], {}
    for part in (chunks, [None] * size):  # each sums its own chunk, and hands it to all
        jobs = []
        for other in set(range(size)) - {rank}:
            target = chunks[other] if part[0] is None else torch.empty_like(mine)
            boxes[other] = target
            outgoing = (mine if part[0] is None else part[other]).clone()
            jobs += [dist.isend(outgoing, other), dist.irecv(target, other)]
        for job in jobs:
            job.wait()
        if part[0] is not None:
            for box in boxes.values():
                mine += box


WRONG = (
    Wrong(whole_tensors, "of a tensor of 30, on 3 ranks: at most 46; you: 60"),
    Wrong(calls_it, "you called all_reduce"),
    Wrong(one_round, "with 8 elements, the tensor is"),
    Wrong(rest_forgotten, "with 9 elements, the tensor is"),
    Wrong(to_everybody, "expected rank 1 alone: on a ring"),
    Wrong(waits_first, "my_all_reduce did not end"),
)
ALSO_RIGHT = (with_padding,)
