import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol


# right
def sum_in_two_levels(tensor, per_node):
    rank, size = dist.get_rank(), dist.get_world_size()
    for first in range(0, size, per_node):
        group = dist.new_group(list(range(first, first + per_node)))
        if rank // per_node == first // per_node:
            mine, leader = group, first
    leaders = dist.new_group(list(range(0, size, per_node)))
    dist.reduce(tensor, dst=leader, group=mine)
    if rank == leader:
        dist.all_reduce(tensor, group=leaders)
    dist.broadcast(tensor, src=leader, group=mine)


# right
def sum_in_two_levels(tensor, per_node):
    """torch makes the groups of all machines at once."""
    mine, groups = dist.new_subgroups(per_node)
    leaders = dist.new_group(list(range(0, dist.get_world_size(), per_node)))
    dist.all_reduce(tensor, group=mine)
    if dist.get_rank() % per_node == 0:
        dist.all_reduce(tensor, group=leaders)
    dist.broadcast(tensor, group_src=0, group=mine)


# right
def sum_in_two_levels(tensor, per_node):
    """With send and recv, without groups."""
    rank, size = dist.get_rank(), dist.get_world_size()
    leader = rank - rank % per_node
    if rank != leader:
        dist.send(tensor, leader)
        dist.recv(tensor, leader)
        return
    got = torch.empty_like(tensor)
    for follower in range(leader + 1, leader + per_node):
        dist.recv(got, follower)
        tensor += got
    if leader == 0:
        for other in range(per_node, size, per_node):
            dist.recv(got, other)
            tensor += got
        for other in range(per_node, size, per_node):
            dist.send(tensor, other)
    else:
        dist.send(tensor, 0)
        dist.recv(tensor, 0)
    for follower in range(leader + 1, leader + per_node):
        dist.send(tensor, follower)


# right
def sum_in_two_levels(tensor, per_node):
    """Gathers on the machine, then between machines."""
    rank, size = dist.get_rank(), dist.get_world_size()
    nodes = [dist.new_group(range(i, i + per_node)) for i in range(0, size, per_node)]
    leaders = dist.new_group(range(0, size, per_node))
    mine = nodes[rank // per_node]
    parts = [torch.empty_like(tensor) for _ in range(per_node)]
    dist.all_gather(parts, tensor, group=mine)
    tensor.copy_(sum(parts))
    if rank % per_node == 0:
        parts = [torch.empty_like(tensor) for _ in range(size // per_node)]
        dist.all_gather(parts, tensor, group=leaders)
        tensor.copy_(sum(parts))
    dist.broadcast(tensor, src=rank - rank % per_node, group=mine)


# wrong: among ranks [0, 1, 2, 3], on several machines
def sum_in_two_levels(tensor, per_node):
    dist.all_reduce(tensor)


# wrong: among ranks [0, 1, 2, 3]
def sum_in_two_levels(tensor, per_node):
    """All gather from all."""
    parts = torch.empty(dist.get_world_size() * len(tensor))
    dist.all_gather_into_tensor(parts, tensor)
    tensor.copy_(parts.view(-1, len(tensor)).sum(0))


# wrong: among ranks [0, 1, 2, 3]
def sum_in_two_levels(tensor, per_node):
    """To rank 0 from all, and back."""
    size = dist.get_world_size()
    parts = [torch.empty_like(tensor) for _ in range(size)] if dist.get_rank() == 0 else None
    dist.gather(tensor, parts, dst=0)
    if parts:
        tensor.copy_(sum(parts))
    dist.scatter(tensor, [tensor] * size if parts else None, src=0)


# wrong: on rank 1 of 4, with 2 ranks a machine, the tensor is
def sum_in_two_levels(tensor, per_node):
    rank, size = dist.get_rank(), dist.get_world_size()
    nodes = [dist.new_group(range(i, i + per_node)) for i in range(0, size, per_node)]
    leaders = dist.new_group(range(0, size, per_node))
    dist.all_reduce(tensor, group=nodes[rank // per_node])
    if rank % per_node == 0:
        dist.all_reduce(tensor, group=leaders)


# wrong: rank 1, not the first of its machine, takes part in an exchange among ranks [1, 3]
def sum_in_two_levels(tensor, per_node):
    """The same place on each machine, side by side: as NCCL does it on good lines."""
    rank, size = dist.get_rank(), dist.get_world_size()
    nodes = [dist.new_group(range(i, i + per_node)) for i in range(0, size, per_node)]
    columns = [dist.new_group(range(i, size, per_node)) for i in range(per_node)]
    dist.all_reduce(tensor, group=nodes[rank // per_node])
    dist.all_reduce(tensor, group=columns[rank % per_node])


# right
def sum_in_two_levels(tensor, per_node):
    """All call the leaders' sum, which does nothing where a rank is no leader."""
    rank, size = dist.get_rank(), dist.get_world_size()
    nodes = [dist.new_group(range(i, i + per_node)) for i in range(0, size, per_node)]
    leaders = dist.new_group(range(0, size, per_node))
    leader = rank // per_node * per_node
    dist.reduce(tensor, dst=leader, group=nodes[rank // per_node])
    dist.all_reduce(tensor, group=leaders)
    dist.broadcast(tensor, src=leader, group=nodes[rank // per_node])
    dist.barrier()


# wrong: among ranks [1, 3]
def sum_in_two_levels(tensor, per_node):
    """Over the last rank of each machine."""
    rank, size = dist.get_rank(), dist.get_world_size()
    nodes = [dist.new_group(range(i, i + per_node)) for i in range(0, size, per_node)]
    lasts = range(per_node - 1, size, per_node)
    speakers = dist.new_group(lasts)
    mine = nodes[rank // per_node]
    dist.all_reduce(tensor, group=mine)
    if rank in lasts:
        dist.all_reduce(tensor, group=speakers)
    dist.broadcast(tensor, src=rank // per_node * per_node + per_node - 1, group=mine)


# wrong: among ranks [0, 1, 2, 3]
def sum_in_two_levels(tensor, per_node):
    """Objects among all."""
    parts = [None] * dist.get_world_size()
    dist.all_gather_object(parts, tensor)
    tensor.copy_(sum(parts))


# wrong: takes part in an exchange among ranks
def sum_in_two_levels(tensor, per_node):
    tensor.copy_(funcol.all_reduce(tensor, "sum", dist.group.WORLD))


# right
def sum_in_two_levels(tensor, per_node):
    n, r = dist.get_world_size(), dist.get_rank()
    ranks = list(range(n))
    inside, _ = dist.new_subgroups(group_size=per_node)
    heads = dist.new_group(ranks[::per_node])
    dist.all_reduce(tensor, group=inside)
    if r % per_node == 0:
        tensor.copy_(funcol.all_reduce(tensor, "sum", heads))
    dist.broadcast(tensor, group_src=0, group=inside)
