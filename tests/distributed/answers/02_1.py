from functools import partial

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol


# right
def average_gradients(model):
    for p in model.parameters():
        if p.grad is not None:
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()


# right
def average_gradients(model: torch.nn.Module) -> None:
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.view(-1) for g in grads])
    dist.all_reduce(flat.div_(dist.get_world_size()))
    for grad, piece in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.view(-1).copy_(piece)


# right
def average(model, how):
    for _, parameter in model.named_parameters():
        if (grad := parameter.grad) is None:
            continue
        rows = [torch.empty_like(grad) for _ in range(dist.get_world_size())]
        how(rows, grad)
        grad.copy_(torch.stack(rows).mean(0))


average_gradients = partial(average, how=dist.all_gather)


# right
def average_gradients(model):
    """All start, then all are waited for."""
    jobs = [
        (p, dist.all_reduce(p.grad, async_op=True))
        for p in model.parameters()
        if p.grad is not None
    ]
    for p, job in jobs:
        job.wait()
        p.grad.mul_(1 / dist.get_world_size())
    return model


# right
def average_gradients(model):
    """To rank 0 and back."""
    for p in filter(lambda p: p.grad is not None, model.parameters()):
        dist.reduce(p.grad.data, dst=0)
        p.grad.data.div_(dist.get_world_size())
        dist.broadcast(p.grad.data, src=0)


# wrong: the gradient of 0.weight is
def average_gradients(model):
    for p in model.parameters():
        if p.grad is not None:
            total = p.grad.clone()
            dist.all_reduce(total)
            total /= dist.get_world_size()


# wrong: 2 times too large: a sum for a mean, or summed twice?
def average_gradients(model):
    for p in model.parameters():
        if p.grad is not None:
            dist.all_reduce(p.grad)


# wrong: average_gradients failed in a run of 2 ranks
def average_gradients(model):
    for p in model.parameters():
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()


# wrong: 1.weight took no part, and yet it has a gradient now
def average_gradients(model):
    for p in model.parameters():
        if p.grad is None:
            p.grad = torch.zeros_like(p)
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()


# wrong: of 3, the gradient of 0.weight is
def average_gradients(model):
    for p in model.parameters():
        if p.grad is not None:
            dist.all_reduce(p.grad)
            p.grad /= 2


# wrong: the gradient of 0.weight is
def average_gradients(model):
    for p in model.parameters():
        dist.all_reduce(p.data)
        p.data /= dist.get_world_size()


# wrong: the gradient of 0.bias is
def average_gradients(model):
    """By its name, only weights."""
    for name, p in model.named_parameters():
        if "weight" in name and p.grad is not None:
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()


# wrong: the gradient of 0.weight is
def average_gradients(model):
    if dist.get_rank() == 0:
        for p in model.parameters():
            if p.grad is not None:
                p.grad /= dist.get_world_size()
    for p in model.parameters():
        if p.grad is not None:
            dist.broadcast(p.grad, src=0)


# wrong: the gradient of 0.weight is
def average_gradients(model):
    torch.nn.parallel.DistributedDataParallel(model)


# right
def average_gradients(model):
    for p in model.parameters():
        if p.grad is not None:
            p.grad = funcol.all_reduce(p.grad, "sum", dist.group.WORLD) / dist.get_world_size()


# right
def average_gradients(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial

    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for p in model.parameters():
        if p.grad is not None:
            whole = DTensor.from_local(p.grad, mesh, [Partial("sum")]).full_tensor()
            p.grad.copy_(whole / mesh.size())


# wrong: the gradient of 2.weight is
def average_gradients(model):
    for p in model.parameters():
        if p.grad is None:
            break
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()
