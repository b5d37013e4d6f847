import torch
import torch.distributed as dist
from torch.nn.utils import parameters_to_vector, vector_to_parameters


# right
def sum_all(tensors):
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat)
    start = 0
    for tensor in tensors:
        tensor.copy_(flat[start : start + tensor.numel()].view_as(tensor))
        start += tensor.numel()


# right
def sum_all(tensors):
    flat = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(flat, async_op=True).wait()
    for tensor, piece in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor[...] = piece.reshape(tensor.shape)
    return tensors


# right
def sum_all(tensors):
    from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

    flat = _flatten_dense_tensors(tensors)
    dist.all_reduce(flat)
    for tensor, new in zip(tensors, _unflatten_dense_tensors(flat, tensors), strict=True):
        tensor.copy_(new)


# right
def sum_all(tensors):
    """The helpers that torch has for parameters."""
    flat = parameters_to_vector(tensors)
    dist.all_reduce(flat)
    sums = [torch.nn.Parameter(torch.empty_like(t)) for t in tensors]
    vector_to_parameters(flat, sums)
    with torch.no_grad():
        for tensor, new in zip(tensors, sums, strict=True):
            tensor.copy_(new)


# right
def sum_all(tensors):
    """A rectangle, padded."""
    longest = max(t.numel() for t in tensors)
    rows = torch.zeros(len(tensors), longest)
    for row, tensor in zip(rows, tensors, strict=True):
        row[: tensor.numel()] = tensor.ravel()
    dist.all_reduce(rows)
    for row, tensor in zip(rows, tensors, strict=True):
        tensor.set_(row[: tensor.numel()].clone().view(tensor.shape))


# wrong: you called all_reduce_coalesced
def sum_all(tensors):
    dist.all_reduce_coalesced(tensors)


# wrong: you called all_reduce_coalesced
def sum_all(tensors):
    with dist.distributed_c10d._coalescing_manager(None):
        for tensor in tensors:
            dist.all_reduce(tensor)


# wrong: tensor 0 is
def sum_all(tensors):
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat)
    pieces = flat.split([t.numel() for t in tensors])
    tensors = [piece.view_as(t) for piece, t in zip(pieces, tensors, strict=True)]


# wrong: shape '[3]' is invalid for input of size 2
def sum_all(tensors):
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat)
    size = len(flat) // len(tensors)
    for i, tensor in enumerate(tensors):
        tensor.copy_(flat[i * size : (i + 1) * size].view_as(tensor))


# wrong: you called broadcast and reduce
def sum_all(tensors):
    for tensor in tensors:
        dist.reduce(tensor, 0)
        dist.broadcast(tensor, 0)


# wrong: you called all_gather
def sum_all(tensors):
    every = [None] * dist.get_world_size()
    dist.all_gather_object(every, tensors)
    for i, tensor in enumerate(tensors):
        tensor.copy_(sum(one[i] for one in every))


# wrong: tensor 0 is
def sum_all(tensors):
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(
        flat, op=dist.ReduceOp.AVG if dist.get_backend() == "nccl" else dist.ReduceOp.MAX
    )
    for tensor, piece in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(piece.view_as(tensor))


# wrong: tensor 0 is
def sum_all(tensors):
    """The list's places change, not the tensors."""
    flat = torch.cat([t.flatten() for t in tensors])
    dist.all_reduce(flat)
    pieces = flat.split([t.numel() for t in tensors])
    tensors[:] = [piece.view_as(t) for piece, t in zip(pieces, tensors, strict=True)]
