"""All-reduce in two levels: within a machine, then between machines."""

import torch
import torch.distributed as dist

from ddp_helpers.evidence.collective_methods import INPUTS, POINT_TO_POINT
from ddp_helpers.evidence.sent_calls import watched
from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import expect, in_place, numbers
from ddp_helpers.torch_private import GROUPS

EXERCISE = Exercise(
    title="All-reduce in two levels",
    name="sum_in_two_levels",
    task="Ranks 0 to per_node - 1 are on the first machine, and so on. Between machines the line "
    "is slow. Sum `tensor` over all ranks, in place, so that only the first rank of each machine "
    "takes part in an exchange between machines. Make the groups you need with dist.new_group.",
    hints=(
        "Three steps: inside each machine, between the first ranks, inside each machine again.",
        "dist.new_group is itself a collective: all ranks make all groups, also those that they "
        "are not in, in the same order.",
        "reduce to the first rank of the machine, all_reduce among the first ranks, broadcast.",
    ),
    lesson="nccl does this by itself, over NVLink inside a machine and the network between them.",
    minutes=25,
)


def starter(tensor, per_node):
    dist.all_reduce(tensor)  # everybody talks to everybody


def solution(tensor, per_node):
    rank, size = dist.get_rank(), dist.get_world_size()
    firsts = range(0, size, per_node)
    nodes = [dist.new_group(range(first, first + per_node)) for first in firsts]
    leaders = dist.new_group(firsts)
    mine, leader = nodes[rank // per_node], rank // per_node * per_node
    dist.reduce(tensor, dst=leader, group=mine)
    if rank == leader:
        dist.all_reduce(tensor, group=leaders)
    dist.broadcast(tensor, src=leader, group=mine)


class Groups:
    """Notes which ranks each exchange of this rank was among."""

    def __init__(self):
        self.members = []

    def __enter__(self):
        self.originals = {
            name: getattr(dist.ProcessGroup, name)
            for name in {*INPUTS, *POINT_TO_POINT} - {"barrier"}  # which brings nothing
            if hasattr(dist.ProcessGroup, name)
        }
        for name, original in self.originals.items():
            setattr(dist.ProcessGroup, name, self._noted(original, name))
        return self.members

    def _noted(self, original, name):
        def call(group, tensors, *args, **kwargs):
            ranks = list(dist.get_process_group_ranks(group))
            if name in ("send", "recv"):
                ranks = [dist.get_rank(), args[0]]
            self.members.append(ranks)
            return original(group, tensors, *args, **kwargs)

        return call

    def __exit__(self, *_):
        for name, original in self.originals.items():
            setattr(dist.ProcessGroup, name, original)


def ranks_of(group):
    """Of a group, or of one that only its name tells, as some torch hand it on."""
    if isinstance(group, str):
        group = next(each for each in GROUPS.get() if each.group_name == group)
    return dist.get_process_group_ranks(group)


def on_rank(answer, per_node):
    parts = numbers(5)
    tensor = parts[dist.get_rank()].clone()
    address = tensor.data_ptr()
    with watched() as calls, Groups() as members:
        answer(tensor, per_node)
    expect(tensor, torch.stack(parts).sum(0), f"with {per_node} ranks a machine, the tensor")
    in_place(tensor, address, "the tensor")
    if not calls:
        raise NotYet("nothing was exchanged")
    functional = [ranks_of(call.group) for call in calls if call.group is not None]
    for ranks in (*members, *functional):
        several = len({rank // per_node for rank in ranks}) > 1
        followers = [rank for rank in ranks if rank % per_node]
        if several and followers:
            raise NotYet(
                f"the sum is right, but rank {followers[0]}, not the first of its machine, takes "
                f"part in an exchange among ranks {ranks}, on several machines"
            )


def check(ranks):
    ranks.run(on_rank, 4, 2)
    ranks.run(on_rank, 3, 1)


def only_inside(tensor, per_node):
    groups = [
        dist.new_group(range(first, first + per_node))
        for first in range(0, dist.get_world_size(), per_node)
    ]
    dist.all_reduce(tensor, group=groups[dist.get_rank() // per_node])


def own_group_only(tensor, per_node):
    first = dist.get_rank() // per_node * per_node
    group = dist.new_group(range(first, first + per_node))  # not the same call on all ranks
    dist.all_reduce(tensor, group=group)


def no_broadcast(tensor, per_node):
    rank, size = dist.get_rank(), dist.get_world_size()
    firsts = range(0, size, per_node)
    nodes = [dist.new_group(range(first, first + per_node)) for first in firsts]
    leaders = dist.new_group(firsts)
    dist.reduce(tensor, dst=rank // per_node * per_node, group=nodes[rank // per_node])
    if rank % per_node == 0:
        dist.all_reduce(tensor, group=leaders)


def counted_twice(tensor, per_node):
    solution(tensor, per_node)
    tensor *= 2


def with_all_reduce(tensor, per_node):
    rank, size = dist.get_rank(), dist.get_world_size()
    leaders = dist.new_group(list(range(0, size, per_node)))
    for first in range(0, size, per_node):
        group = dist.new_group(list(range(first, first + per_node)))
        if first <= rank < first + per_node:
            mine = group
    dist.all_reduce(tensor, group=mine)
    if rank % per_node == 0:
        dist.all_reduce(tensor, group=leaders)
    else:
        tensor.zero_()
    dist.all_reduce(tensor, group=mine)


WRONG = (
    Wrong(only_inside, "on rank 0 of 4, with 2 ranks a machine, the tensor is"),
    Wrong(no_broadcast, "on rank 1 of 4, with 2 ranks a machine, the tensor is"),
    Wrong(counted_twice, "with 2 ranks a machine, the tensor is"),
)
ALSO_RIGHT = (with_all_reduce,)
STARTER_SAYS = "takes part in an exchange among ranks"
