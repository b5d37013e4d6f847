import torch
import torch.distributed as dist


# right
def clip_parts(parts, max_norm):
    total = sum((p.grad.square().sum() for p in parts if p.grad is not None), torch.zeros(()))
    dist.all_reduce(total)
    norm = total.sqrt()
    for part in parts:
        if part.grad is not None:
            part.grad *= (max_norm / norm).clamp(max=1.0)
    return norm


# right
def clip_parts(parts, max_norm):
    grads = [p.grad for p in parts if p.grad is not None]
    norms = [None] * dist.get_world_size()
    dist.all_gather_object(norms, [float(g.norm()) for g in grads])
    norm = torch.tensor([n for some in norms for n in some]).norm()
    if norm > max_norm:
        for p in parts:
            p.grad = None if p.grad is None else p.grad * (max_norm / norm)
    return norm


# wrong: gradient 0 is
def clip_parts(parts, max_norm):
    return torch.nn.utils.clip_grad_norm_(parts, max_norm)


# wrong: the norm is
def clip_parts(parts, max_norm):
    """The square is returned."""
    total = sum((p.grad.square().sum() for p in parts if p.grad is not None), torch.zeros(()))
    dist.all_reduce(total)
    for part in parts:
        if part.grad is not None:
            part.grad *= (max_norm / total.sqrt()).clamp(max=1.0)
    return total


# wrong: the norm should be a tensor, but it is the number
def clip_parts(parts, max_norm):
    total = sum((p.grad.square().sum() for p in parts if p.grad is not None), torch.zeros(()))
    dist.all_reduce(total)
    norm = total.sqrt().item()
    for part in parts:
        if part.grad is not None:
            part.grad *= min(1.0, max_norm / norm)
    return norm


# wrong: gradient 0 is
def clip_parts(parts, max_norm):
    total = sum(p.grad.square().sum() for p in parts)
    dist.all_reduce(total)
    return total.sqrt()


# wrong: piece 0 itself has changed
def clip_parts(parts, max_norm):
    grads = [p.grad for p in parts if p.grad is not None]
    s = sum((g.square().sum() for g in grads), torch.zeros(()))
    dist.all_reduce(s)
    norm = s.sqrt()
    for p in parts:
        p.data.mul_((max_norm / norm).clamp(max=1))
        if p.grad is not None:
            p.grad.mul_((max_norm / norm).clamp(max=1))
    return norm
