import torch
import torch.distributed as dist


# right
class Gather(torch.autograd.Function):
    @staticmethod
    def forward(context, part):
        pieces = [torch.empty_like(part) for _ in range(dist.get_world_size())]
        dist.all_gather(pieces, part)
        return torch.cat(pieces)

    @staticmethod
    def backward(context, gradient):
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        gradient /= dist.get_world_size()
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]


gathered = Gather.apply


# right
def gathered(part):
    """A leaf of its own, whose hook writes part.grad."""
    pieces = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(pieces, part.detach())
    whole = torch.cat(pieces).requires_grad_()

    def back(gradient):
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        mean = gradient / dist.get_world_size()
        part.grad = mean.chunk(dist.get_world_size())[dist.get_rank()].clone()

    whole.register_hook(back)
    return whole


# wrong: no gradient comes back
def gathered(part):
    pieces = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(pieces, part)
    return torch.cat(pieces).detach()


# wrong: part.grad is
def gathered(part):
    """The own piece stays in the graph; the others' losses are not asked."""
    pieces = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(pieces, part.detach())
    pieces[dist.get_rank()] = part
    return torch.cat(pieces)


# wrong: times too large
def gathered(part):
    """A sum, not an average."""

    class Sum(torch.autograd.Function):
        @staticmethod
        def forward(context, part):
            pieces = [torch.empty_like(part) for _ in range(dist.get_world_size())]
            dist.all_gather(pieces, part)
            return torch.cat(pieces)

        @staticmethod
        def backward(context, gradient):
            gradient = gradient.clone()
            dist.all_reduce(gradient)
            return gradient.chunk(dist.get_world_size())[dist.get_rank()]

    return Sum.apply(part)


# wrong: the whole weight
def gathered(part):
    return part.repeat(dist.get_world_size())


# right
class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g / dist.get_world_size()


def gathered(part):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Shard

    n = dist.get_world_size()
    mesh = init_device_mesh("cpu", (n,))
    whole = DTensor.from_local(part, mesh, [Shard(0)]).full_tensor(grad_placements=[Partial()])
    return Scale.apply(whole)
