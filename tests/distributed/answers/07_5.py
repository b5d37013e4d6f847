import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch.nn import functional as F


# right
class Copied(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.view_as(x)

    @staticmethod
    def backward(context, gradient):
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


class Summed(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(context, gradient):
        return gradient


def split_layers(x, up, down):
    return Summed.apply(F.linear(F.gelu(F.linear(Copied.apply(x), up)), down))


# right
def split_layers(x, up, down):
    """A hook, and the others' part added without a graph."""
    x = x * 1
    if x.requires_grad:

        def total(gradient):
            gradient = gradient.clone()
            dist.all_reduce(gradient)
            return gradient

        x.register_hook(total)
    mine = F.linear(F.gelu(F.linear(x, up)), down)
    whole = mine.detach().clone()
    dist.all_reduce(whole)
    return mine + (whole - mine.detach())


# wrong: x.grad is
def split_layers(x, up, down):
    mine = F.linear(F.gelu(F.linear(x, up)), down)
    whole = mine.detach().clone()
    dist.all_reduce(whole)
    return mine + (whole - mine.detach())


# wrong: no gradient comes back
def split_layers(x, up, down):
    with torch.no_grad():
        whole = F.linear(F.gelu(F.linear(x, up)), down)
        dist.all_reduce(whole)
    return whole


# wrong: the output is
def split_layers(x, up, down):
    """The mean."""
    whole = F.linear(F.gelu(F.linear(x, up)), down).detach()
    dist.all_reduce(whole)
    return whole / dist.get_world_size()


# right
class FSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return funcol.wait_tensor(funcol.all_reduce(x, "sum", dist.group.WORLD))

    @staticmethod
    def backward(ctx, g):
        return g


class FCopy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, g):
        return funcol.wait_tensor(funcol.all_reduce(g.contiguous(), "sum", dist.group.WORLD))


def split_layers(x, up, down):
    return FSum.apply(F.gelu(FCopy.apply(x) @ up.T) @ down.T)
