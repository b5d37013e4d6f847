"""FSDP's heart: gather the parts of a weight, and share its gradient out again."""

import torch
import torch.distributed as dist

from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import by_rank, expect

EXERCISE = Exercise(
    title="Gather before use",
    name="gathered",
    task="`part` is this rank's piece of a weight, with equally many values on each rank. Return "
    "the whole weight, one dimension, the pieces in the order of the ranks. A backward through it "
    "must leave in part.grad the average over the ranks of the gradients for this piece: each rank "
    "has a loss of its own.",
    hints=(
        "dist.all_gather gives the whole, but autograd knows nothing of it.",
        "torch.autograd.Function: forward(ctx, part) gathers; backward(ctx, gradient) gets the "
        "gradient of the whole, and returns the one of the part.",
        "In backward: sum the gradients over the ranks (all_reduce of a clone, or a "
        "reduce-scatter), take the chunk of this rank, and divide by world_size.",
    ),
    lesson="fully_shard does this for each block: all-gather before use, reduce-scatter after.",
    minutes=20,
)


def starter(part):
    pieces = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(pieces, part.detach())
    return torch.cat(pieces)  # no gradient comes back


def solution(part):
    class Gather(torch.autograd.Function):
        @staticmethod
        def forward(ctx, part):
            pieces = [torch.empty_like(part) for _ in range(dist.get_world_size())]
            dist.all_gather(pieces, part)
            return torch.cat(pieces)

        @staticmethod
        def backward(ctx, gradient):
            world = dist.get_world_size()
            total = gradient.clone()
            dist.all_reduce(total)
            return total.chunk(world)[dist.get_rank()] / world

    return Gather.apply(part)


def on_rank(answer, size):
    rank, world = dist.get_rank(), dist.get_world_size()
    parts = by_rank(lambda _: torch.randn(size))
    factors = by_rank(lambda _: torch.randn(size * world))
    part = parts[rank].clone().requires_grad_()
    for time in ("", " after the weights have changed"):
        whole = answer(part)
        wanted = torch.cat([each + (1 if time else 0) for each in parts])
        expect(whole, wanted, f"the whole weight{time}")
        if not whole.requires_grad:
            raise NotYet("the weight is right, but no gradient comes back to `part` from it")
        part.grad = None
        (whole * factors[rank]).sum().backward()
        if part.grad is None:
            raise NotYet("the weight is right, but after a backward part.grad is None")
        mean = torch.stack(factors).mean(0).chunk(world)[rank]
        expect(part.grad, mean, f"part.grad{time}")
        with torch.no_grad():
            part += 1


def check(ranks):
    ranks.run(on_rank, 2, 3)
    ranks.run(on_rank, 3, 4)


def own_gradient_only(part):
    whole = starter(part)
    pieces = list(whole.chunk(dist.get_world_size()))
    pieces[dist.get_rank()] = part
    return torch.cat(pieces)


def with_backward(part, back):
    class Gather(torch.autograd.Function):
        @staticmethod
        def forward(ctx, part):
            return starter(part)

        @staticmethod
        def backward(ctx, gradient):
            return back(gradient.clone())

    return Gather.apply(part)


def wrong_piece(part):
    def back(gradient):
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[0] / dist.get_world_size()

    return with_backward(part, back)


def stacked(part):
    return starter(part).view(dist.get_world_size(), -1)


def with_a_hook(part):
    world, rank = dist.get_world_size(), dist.get_rank()
    whole = starter(part)
    start = torch.zeros_like(whole)
    start = torch.cat([part if r == rank else start.chunk(world)[r] for r in range(world)])
    whole = start + (whole - start.detach())

    def average(gradient):
        total = gradient.clone()
        dist.all_reduce(total)
        return total / world

    whole.register_hook(average)
    return whole


WRONG = (
    Wrong(own_gradient_only, "on rank 0 of 2, part.grad is"),
    Wrong(wrong_piece, "on rank 1 of 2, part.grad is"),
    Wrong(stacked, "the whole weight has the shape (2, 3), expected (6,)"),
)
ALSO_RIGHT = (with_a_hook,)
STARTER_SAYS = "no gradient comes back"
