import torch
import torch.distributed as dist
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors


# right
def average_in_buckets(parameters, cap):
    buckets, filled = [], 0
    for parameter in parameters:
        size = parameter.grad.numel()
        if not buckets or filled + size > cap:
            buckets.append([])
            filled = 0
        buckets[-1].append(parameter.grad)
        filled += size
    for bucket in buckets:
        flat = torch.cat([grad.flatten() for grad in bucket])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for grad, piece in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            grad.copy_(piece.view_as(grad))


# right
def buckets_of(grads, cap):
    bucket = []
    for grad in grads:
        if bucket and sum(g.numel() for g in bucket) + grad.numel() > cap:
            yield bucket
            bucket = []
        bucket.append(grad)
    if bucket:
        yield bucket


def average_in_buckets(parameters, cap):
    for bucket in buckets_of((p.grad for p in parameters), cap):
        flat = _flatten_dense_tensors(bucket) / dist.get_world_size()
        dist.all_reduce(flat)
        for grad, new in zip(bucket, _unflatten_dense_tensors(flat, bucket), strict=True):
            grad.set_(new.clone())


# right
def average_in_buckets(parameters, cap):
    """All start before any is waited for; the gradients are replaced."""
    waiting, started = list(parameters), []
    while waiting:
        now = [waiting.pop(0)]
        room = cap - now[0].grad.numel()
        while waiting and (room := room - waiting[0].grad.numel()) >= 0:
            now.append(waiting.pop(0))
        flat = torch.hstack([p.grad.ravel() for p in now])
        started.append((now, flat, dist.all_reduce(flat, async_op=True)))
    for now, flat, job in started:
        job.wait()
        start = 0
        for p in now:
            end = start + p.numel()
            p.grad = (flat[start:end] / dist.get_world_size()).reshape(p.shape)
            start = end


# right
class Buckets:
    """Views into one large tensor."""

    def __call__(self, parameters, cap):
        sizes = [p.grad.numel() for p in parameters]
        everything = torch.cat([p.grad.flatten() for p in parameters])
        ends, here, at = [], 0, 0
        for size in sizes:
            if here and here + size > cap:
                ends.append(at)
                here = 0
            here += size
            at += size
        for part in everything.tensor_split(ends):
            dist.all_reduce(part)
        everything.mul_(1.0 / dist.get_world_size())
        for p, piece in zip(parameters, everything.split(sizes), strict=True):
            p.grad[...] = piece.view(p.shape)


average_in_buckets = Buckets()


# wrong: you: 1, of [38] numbers
def average_in_buckets(parameters, cap):
    flat = torch.cat([p.grad.flatten() for p in parameters])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for p, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad.copy_(piece.view_as(p.grad))


# wrong: you: 7, of [4, 4, 2, 6, 20, 1, 1] numbers
def average_in_buckets(parameters, cap):
    for p in parameters:
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()


# wrong: gradient 5 is
def average_in_buckets(parameters, cap):
    """The last bucket is forgotten."""
    bucket, filled = [], 0

    def send():
        flat = torch.cat([grad.flatten() for grad in bucket])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for grad, piece in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            grad.copy_(piece.view_as(grad))
        bucket.clear()

    for p in parameters:
        if bucket and filled + p.grad.numel() > cap:
            send()
            filled = 0
        bucket.append(p.grad)
        filled += p.grad.numel()


# wrong: you sent [2, 20, 8, 8] numbers
def average_in_buckets(parameters, cap):
    """Reversed, as DDP does it."""
    buckets, filled = [], cap
    for p in reversed(parameters):
        if filled + p.grad.numel() > cap:
            buckets.append([])
            filled = 0
        buckets[-1].append(p.grad)
        filled += p.grad.numel()
    for bucket in buckets:
        flat = torch.cat([grad.flatten() for grad in bucket])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for grad, piece in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            grad.copy_(piece.view_as(grad))


# wrong: you: 1, of [38] numbers
def average_in_buckets(parameters, cap):
    """Counts gradients, not numbers."""
    for start in range(0, len(parameters), cap):
        bucket = [p.grad for p in parameters[start : start + cap]]
        flat = torch.cat([grad.flatten() for grad in bucket])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for grad, piece in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            grad.copy_(piece.view_as(grad))


# wrong: you sent [10, 10, 10, 8] numbers
def average_in_buckets(parameters, cap):
    """Cuts gradients in pieces."""
    flat = torch.cat([p.grad.flatten() for p in parameters])
    for piece in flat.split(cap):
        dist.all_reduce(piece)
    flat /= dist.get_world_size()
    for p, piece in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        p.grad.copy_(piece.view_as(p.grad))


# wrong: 2 times too large
def average_in_buckets(parameters, cap):
    """An empty bucket in front."""
    buckets, filled = [[]], 0
    for p in parameters:
        if filled + p.grad.numel() > cap:
            buckets.append([])
            filled = 0
        buckets[-1].append(p.grad)
        filled += p.grad.numel()
    for bucket in buckets:
        if not bucket:
            continue
        flat = torch.cat([grad.flatten() for grad in bucket])
        dist.all_reduce(flat)
        for grad, piece in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            grad.copy_(piece.view_as(grad))
    return buckets


# wrong: you sent [8, 8, 20, 2] numbers
def average_in_buckets(parameters, cap):
    """One smaller than cap, never equal to it."""
    buckets, filled = [[parameters[0].grad]], parameters[0].grad.numel()
    for p in parameters[1:]:
        if filled + p.grad.numel() >= cap:
            buckets.append([])
            filled = 0
        buckets[-1].append(p.grad)
        filled += p.grad.numel()
    for bucket in buckets:
        flat = torch.cat([grad.flatten() for grad in bucket])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for grad, piece in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            grad.copy_(piece.view_as(grad))
