import torch
import torch.distributed as dist


# right
def my_all_gather(tensor):
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    parts[dist.get_rank()].copy_(tensor)
    for rank, part in enumerate(parts):
        dist.broadcast(part, src=rank)
    return parts


# right
def my_all_gather(tensor):
    parts = []
    for rank in range(dist.get_world_size()):
        part = tensor.clone()
        dist.broadcast(part, rank)
        parts += [part]
    return parts


# right
def my_all_gather(tensor):
    rows = tensor.repeat(dist.get_world_size(), *[1] * tensor.dim())
    jobs = [dist.broadcast(row, i, async_op=True) for i, row in enumerate(rows)]
    for job in jobs:
        job.wait()
    return list(rows)


# right
def my_all_gather(tensor):
    """The own place holds the given tensor itself."""
    parts = []
    for rank in range(dist.get_world_size()):
        part = tensor if rank == dist.get_rank() else torch.zeros_like(tensor)
        dist.broadcast(part, src=rank)
        parts.append(part)
    return parts


# right
def my_all_gather(tensor):
    def parts():
        for rank in range(dist.get_world_size()):
            part = tensor.detach().clone()
            dist.broadcast(part, src=rank)
            yield part

    return tuple(parts())


# wrong: one and the same tensor
def my_all_gather(tensor):
    parts = [torch.zeros_like(tensor)] * dist.get_world_size()
    parts[dist.get_rank()] = tensor
    for rank, part in enumerate(parts):
        dist.broadcast(part, src=rank)
    return parts


# wrong: you called all_gather
def my_all_gather(tensor):
    parts = [torch.zeros_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor)
    return parts


# wrong: place 1 of the list is
def my_all_gather(tensor):
    parts = []
    for rank in range(dist.get_world_size()):
        dist.broadcast(tensor, src=rank)
        parts.append(tensor.clone())
    return parts


# wrong: place 0 of the list is
def my_all_gather(tensor):
    parts = []
    for rank in range(dist.get_world_size()):
        part = tensor.clone()
        dist.broadcast(part, src=rank)
        parts.append(part)
    return parts[::-1]


# wrong: expected a list of 2 tensors
def my_all_gather(tensor):
    parts = []
    for rank in range(dist.get_world_size()):
        part = tensor.clone()
        dist.broadcast(part, src=rank)
        parts.append(part)
    return torch.cat(parts)


# wrong: did not end within 1.5 s
def my_all_gather(tensor):
    parts = []
    for _ in range(dist.get_world_size()):
        part = tensor.clone()
        dist.broadcast(part, src=dist.get_rank())
        parts.append(part)
    return parts


# wrong: expected the tensors themselves
def my_all_gather(tensor):
    """Objects are broadcast, too."""
    parts = [tensor] * dist.get_world_size()
    for rank in range(dist.get_world_size()):
        box = [tensor]
        dist.broadcast_object_list(box, src=rank)
        parts[rank] = box[0]
    return parts


# wrong: nobody waits for broadcast(async_op=True)
def my_all_gather(tensor):
    rank = dist.get_rank()
    parts = [
        tensor.clone() if i == rank else torch.empty_like(tensor)
        for i in range(dist.get_world_size())
    ]
    for i, part in enumerate(parts):
        dist.broadcast(part, src=i, async_op=True)
    return parts
