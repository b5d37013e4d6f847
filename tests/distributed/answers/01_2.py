import functools

import torch
import torch.distributed as dist


# right
def my_broadcast(tensor, src):
    if dist.get_rank() == src:
        for rank in range(dist.get_world_size()):
            if rank != src:
                dist.send(tensor, rank)
    else:
        dist.recv(tensor, src)


# right
def my_broadcast(tensor, src):
    """A chain: each hands it on to the next."""
    rank, size = dist.get_rank(), dist.get_world_size()
    place = (rank - src) % size
    if place > 0:
        dist.recv(tensor, src=(rank - 1) % size)
    if place < size - 1:
        dist.send(tensor, dst=(rank + 1) % size)
    return tensor


# right
def my_broadcast(tensor, src):
    """A tree."""
    size = dist.get_world_size()
    me = (dist.get_rank() - src) % size
    step = 1
    while step < size:
        if me < step and me + step < size:
            dist.send(tensor, (me + step + src) % size)
        elif step <= me < 2 * step:
            dist.recv(tensor, (me - step + src) % size)
        step *= 2


# right
def hand_out(tensor, src, tag):
    me = dist.get_rank()
    others = [r for r in range(dist.get_world_size()) if r != src]
    if me == src:
        for other in others:
            dist.send(tensor, dst=other, tag=tag)
        return
    got = torch.empty_like(tensor)
    dist.recv(got, src=src, tag=tag)
    tensor[...] = got


my_broadcast = functools.partial(hand_out, tag=7)


# right
def my_broadcast(tensor, src):
    if dist.get_rank() == src:
        [dist.send(tensor, r) for r in range(dist.get_world_size()) if r != src]
    else:
        dist.recv(tensor)  # from anybody: only src sends


# wrong: you called broadcast
def my_broadcast(tensor, src):
    dist.broadcast(tensor, src)


# wrong: with src=0, the tensor is
def my_broadcast(tensor, src):
    if dist.get_rank() == src:
        for rank in range(dist.get_world_size()):
            if rank != src:
                dist.send(tensor, rank)
    else:
        tensor = torch.empty_like(tensor)
        dist.recv(tensor, src)


# wrong: of 3, with src=2, the tensor is
def my_broadcast(tensor, src):
    if dist.get_rank() == 0:
        for rank in range(1, dist.get_world_size()):
            dist.send(tensor, rank)
    else:
        dist.recv(tensor, 0)


# wrong: destination rank should not be the same
def my_broadcast(tensor, src):
    if dist.get_rank() == src:
        for rank in range(dist.get_world_size()):
            dist.send(tensor, rank)
    else:
        dist.recv(tensor, src)


# wrong: my_broadcast did not end within 1.5 s
def my_broadcast(tensor, src):
    if dist.get_rank() == src:
        dist.send(tensor, (src + 1) % dist.get_world_size())
    else:
        dist.recv(tensor, src)


# wrong: rank 0 is the source, and yet its own tensor has changed
def my_broadcast(tensor, src):
    if dist.get_rank() == src:
        for rank in range(dist.get_world_size()):
            if rank != src:
                dist.send(tensor + 0, rank)
        tensor.zero_()
    else:
        dist.recv(tensor, src)


# wrong: you called broadcast
def my_broadcast(tensor, src):
    box = [tensor]
    dist.broadcast_object_list(box, src)
    tensor.copy_(box[0])


# wrong: you called all_reduce
def my_broadcast(tensor, src):
    tensor.mul_(dist.get_rank() == src)
    torch.distributed.distributed_c10d.all_reduce(tensor)


# wrong: put something else in place of torch.distributed.broadcast
def my_broadcast(tensor, src):
    dist.broadcast = lambda *args, **kwargs: None
    if dist.get_rank() == src:
        for rank in range(dist.get_world_size()):
            if rank != src:
                dist.send(tensor, rank)
    else:
        dist.recv(tensor, src)


# wrong: the tensor was given other memory
def my_broadcast(tensor, src):
    if dist.get_rank() == src:
        for i in range(dist.get_world_size()):
            if i != src:
                dist.send(tensor, i)
    else:
        new = torch.empty_like(tensor)
        dist.recv(new, src)
        tensor.data = new


# wrong: nearly right: is it rounded on its way?
def my_broadcast(tensor, src):
    if dist.get_rank() == src:
        for i in range(dist.get_world_size()):
            if i != src:
                dist.send(tensor.half(), i)
    else:
        new = torch.empty_like(tensor, dtype=torch.half)
        dist.recv(new, src)
        tensor.copy_(new)
