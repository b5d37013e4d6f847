"""Tensor parallel by hand: each rank computes a part of two layers."""

import torch
import torch.distributed as dist
from torch.nn import functional as F

from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import expect

EXERCISE = Exercise(
    title="A layer in two",
    name="split_layers",
    task="One process would compute F.linear(F.gelu(F.linear(x, whole_up)), whole_down). This rank "
    "has some rows of whole_up in `up` and the same columns of whole_down in `down`; `x` is the "
    "same on all ranks. Return the whole output on each rank. All ranks then go backward from the "
    "same loss: the gradients of x, up and down must be those of one process.",
    hints=(
        "What each rank has after `down` is a summand of the output.",
        "dist.all_reduce changes a tensor in place and autograd does not see it: the gradient "
        "passes as if nothing had happened. For the output that is just right.",
        "In backward each rank has a summand of the gradient of x. Sum those: a "
        "torch.autograd.Function, or a hook on x.view_as(x).",
    ),
    lesson="ColwiseParallel and RowwiseParallel do this: one all-reduce forth, one back.",
    minutes=20,
)


def starter(x, up, down):
    return F.linear(F.gelu(F.linear(x, up)), down)


def solution(x, up, down):
    class SumBack(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.view_as(x)

        @staticmethod
        def backward(ctx, gradient):
            total = gradient.clone()
            dist.all_reduce(total)
            return total

    class SumForth(torch.autograd.Function):
        @staticmethod
        def forward(ctx, output):
            total = output.clone()
            dist.all_reduce(total)
            return total

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    hidden = F.gelu(F.linear(SumBack.apply(x), up))
    return SumForth.apply(F.linear(hidden, down))


def on_rank(answer, width):
    rank, world = dist.get_rank(), dist.get_world_size()
    x, factors = torch.randn(3, width), torch.randn(3, width)
    sizes = [4 + (number if world > 2 else 0) for number in range(world)]  # "some rows"
    whole = [torch.randn(sum(sizes), width), torch.randn(width, sum(sizes))]
    mine = [whole[0].split(sizes, 0)[rank], whole[1].split(sizes, 1)[rank]]
    alone = [tensor.clone().requires_grad_() for tensor in (x, *whole)]
    wanted = starter(*alone)
    (wanted * factors).sum().backward()
    shared = [tensor.clone().requires_grad_() for tensor in (x, *mine)]
    output = answer(*shared)
    expect(output, wanted.detach(), "the output")
    if not output.requires_grad:
        raise NotYet("the output is right, but no gradient comes back from it")
    (output * factors).sum().backward()
    x_grad, up_grad, down_grad = (tensor.grad for tensor in alone)
    gradients = {
        "down": (shared[2], down_grad.split(sizes, 1)[rank]),
        "up": (shared[1], up_grad.split(sizes, 0)[rank]),
        "x": (shared[0], x_grad),
    }
    for name, (tensor, gradient) in gradients.items():
        if tensor.grad is None:
            raise NotYet(f"the output is right, but {name}.grad is None")
        expect(tensor.grad, gradient, f"the output is right, but {name}.grad")


def check(ranks):
    ranks.run(on_rank, 2, 5)
    ranks.run(on_rank, 3, 4)


def only_forth(x, up, down):
    output = starter(x, up, down)
    dist.all_reduce(output)
    return output


def averaged(x, up, down):
    return only_forth(x, up, down) / dist.get_world_size()


def with_both_ways(x, up, down):
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(starter(x, up, down))  # sums in backward, too


def without_autograd(x, up, down):
    return only_forth(x, up, down).detach()


def with_a_hook(x, up, down):
    x = x.view_as(x)

    def sum_up(gradient):
        total = gradient.clone()
        dist.all_reduce(total)
        return total

    x.register_hook(sum_up)
    return only_forth(x, up, down)


WRONG = (
    Wrong(only_forth, "the output is right, but x.grad is"),
    Wrong(averaged, "on rank 0 of 2, the output is"),
    Wrong(with_both_ways, "the output is right, but down.grad is"),
    Wrong(without_autograd, "no gradient comes back"),
)
ALSO_RIGHT = (with_a_hook,)
STARTER_SAYS = "the output is"
