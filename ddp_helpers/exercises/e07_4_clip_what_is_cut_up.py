"""Clip gradients whose parts lie on several ranks."""

import torch
import torch.distributed as dist
from torch import nn

from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import expect

EXERCISE = Exercise(
    title="Clip what is cut up",
    name="clip_parts",
    task="Each of `parts` is this rank's piece of a weight, with this piece's gradient in .grad; "
    "other ranks have the other pieces, maybe of other sizes, and no piece is on two ranks. A "
    "gradient may be None. Clip so that the norm of *all* pieces of all ranks together is at most "
    "`max_norm`; if it is already, change nothing. Return that norm from before, as a tensor.",
    hints=(
        "A rank that clips by its own norm turns the whole gradient in another direction.",
        "The norm is the root of the sum of squares: the squares can be summed over the ranks.",
        "All ranks must call all_reduce, also one without any gradient. The factor is "
        "max_norm / norm, and never more than 1.",
    ),
    lesson="On fully_shard's weights clip_grad_norm_ does this; on their local parts it does not.",
    minutes=10,
)


def starter(parts, max_norm):
    return nn.utils.clip_grad_norm_(parts, max_norm)


def solution(parts, max_norm):
    gradients = [part.grad for part in parts if part.grad is not None]
    square = torch.zeros(())
    for gradient in gradients:
        square += gradient.square().sum()
    dist.all_reduce(square)
    norm = square.sqrt()
    factor = min(1.0, max_norm / (norm.item() + 1e-6))
    for gradient in gradients:
        gradient *= factor
    return norm


def on_rank(answer, max_norm, empty):
    rank, world = dist.get_rank(), dist.get_world_size()
    everywhere = [[torch.randn(4 + r), torch.randn(2)] for r in range(world)]
    for gradients in everywhere:
        gradients[0] *= 3
    parts = [nn.Parameter(torch.ones_like(gradient)) for gradient in everywhere[rank]]
    known = [g for r, gradients in enumerate(everywhere) if r != empty for g in gradients]
    norm = torch.cat(known).norm()
    factor = min(1.0, max_norm / norm.item())
    for part, gradient in zip(parts, everywhere[rank], strict=True):
        part.grad = None if rank == empty else gradient.clone()
    got = answer(parts, max_norm)
    where = f"with max_norm={max_norm:g}, where the norm is {norm:.3g}"
    for number, part in enumerate(parts):
        if not (part == 1).all():
            raise NotYet(f"{where}, piece {number} itself has changed: only gradients should")
        if rank != empty:
            expect(part.grad, everywhere[rank][number] * factor, f"{where}, gradient {number}")
        elif part.grad is not None:
            raise NotYet(f"{where}, a gradient that was None is {part.grad} now")
    if got is None:
        raise NotYet("the gradients are right, but nothing is returned: the norm is asked for")
    expect(got, norm, f"{where}, the norm")


def check(ranks):
    ranks.run(on_rank, 2, 0.5, None)
    ranks.run(on_rank, 3, 1e6, None)
    ranks.run(on_rank, 3, 1.0, 1)


def sum_of_norms(parts, max_norm):
    norm = torch.stack([part.grad.norm() for part in parts]).norm()
    dist.all_reduce(norm)
    for part in parts:
        part.grad *= min(1.0, max_norm / norm.item())
    return norm


def stays_away(parts, max_norm):
    if any(part.grad is not None for part in parts):
        return solution(parts, max_norm)
    return torch.zeros(())


def stretches(parts, max_norm):
    norm = solution(parts, 1e9)
    for part in parts:
        part.grad *= max_norm / norm
    return norm


def says_nothing(parts, max_norm):
    solution(parts, max_norm)


def with_torch(parts, max_norm):
    own = nn.utils.get_total_norm([p.grad for p in parts if p.grad is not None]).square()
    dist.all_reduce(own := own.reshape(()).float())
    nn.utils.clip_grads_with_norm_(parts, max_norm, own.sqrt())
    return own.sqrt()


WRONG = (
    Wrong(sum_of_norms, "on rank 0 of 2, with max_norm=0.5, where the norm is"),
    Wrong(stays_away, "did not end within"),
    Wrong(stretches, "with max_norm=1e+06, where the norm is"),
    Wrong(says_nothing, "nothing is returned"),
)
ALSO_RIGHT = (with_torch,)
STARTER_SAYS = "with max_norm=0.5, where the norm is"
