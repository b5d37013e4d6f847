import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import nn


# right
def average_and_clip(model, max_norm):
    for p in model.parameters():
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()
    return nn.utils.clip_grad_norm_(model.parameters(), max_norm)


# right
def average_and_clip(model, max_norm):
    grads = [p.grad for p in model.parameters()]
    flat = torch.cat([g.flatten() for g in grads]) / dist.get_world_size()
    dist.all_reduce(flat)
    norm = flat.norm()
    flat *= (max_norm / (norm + 1e-6)).clamp(max=1.0)
    for grad, piece in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(piece.view_as(grad))
    return norm


# right
def average_and_clip(model, max_norm):
    """With new tensors, and a norm of norms."""
    size = dist.get_world_size()
    for p in model.parameters():
        rows = [torch.empty_like(p.grad) for _ in range(size)]
        dist.all_gather(rows, p.grad)
        p.grad = torch.stack(rows).mean(dim=0)
    norm = torch.stack([p.grad.square().sum() for p in model.parameters()]).sum().sqrt()
    if norm > max_norm:
        for p in model.parameters():
            p.grad = p.grad * (max_norm / norm)
    return norm


# right
def average_and_clip(model, max_norm):
    """With the two halves that torch has for it."""
    jobs = [dist.all_reduce(p.grad, async_op=True) for p in model.parameters()]
    [job.wait() for job in jobs]
    torch._foreach_div_([p.grad for p in model.parameters()], float(dist.get_world_size()))
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters()])
    nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)
    return norm


# wrong: 2 times too large
def average_and_clip(model, max_norm):
    for p in model.parameters():
        dist.all_reduce(p.grad)
    return nn.utils.clip_grad_norm_(model.parameters(), max_norm)


# wrong: with max_norm=0.5, the gradient of weight is
def average_and_clip(model, max_norm):
    """Each parameter on its own."""
    norms = []
    for p in model.parameters():
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()
        norms.append(nn.utils.clip_grad_norm_([p], max_norm))
    return torch.stack(norms).norm()


# wrong: with max_norm=0.5, the norm is [0.5]
def average_and_clip(model, max_norm):
    for p in model.parameters():
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    return torch.stack([p.grad.norm() for p in model.parameters()]).norm()


# wrong: the norm should be a tensor, but it is the number
def average_and_clip(model, max_norm):
    for p in model.parameters():
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()
    return nn.utils.clip_grad_norm_(model.parameters(), max_norm).item()


# wrong: with max_norm=0.5, the gradient of weight is
def average_and_clip(model, max_norm):
    """Values, not the norm."""
    for p in model.parameters():
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters()])
    nn.utils.clip_grad_value_(model.parameters(), max_norm)
    return norm


# wrong: with max_norm=1000000.0, the gradient of weight is
def average_and_clip(model, max_norm):
    """Always to that norm, also where it is smaller."""
    for p in model.parameters():
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()
    norm = nn.utils.get_total_norm([p.grad for p in model.parameters()])
    for p in model.parameters():
        p.grad *= max_norm / norm
    return norm


# wrong: nothing is returned: the norm is asked for
def average_and_clip(model, max_norm):
    for p in model.parameters():
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()
    nn.utils.clip_grad_norm_(model.parameters(), max_norm)


# wrong: the gradient of weight is
def average_and_clip(model, max_norm):
    """The sum of all values, as a norm."""
    for p in model.parameters():
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()
    return nn.utils.clip_grad_norm_(model.parameters(), max_norm, norm_type=1)


# right
def average_and_clip(model, max_norm):
    ps = [p for p in model.parameters() if p.grad is not None]
    for p in ps:
        p.grad = funcol.all_reduce(p.grad, "sum", dist.group.WORLD) * (1 / dist.get_world_size())
    return nn.utils.clip_grad_norm_(ps, max_norm, foreach=True)
