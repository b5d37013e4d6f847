"""Clip the averaged gradient, not each rank's own."""

import torch
import torch.distributed as dist
from torch import nn

from ddp_helpers.evidence.sent_calls import watched
from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import exchanged, expect

EXERCISE = Exercise(
    title="Average, then clip",
    name="average_and_clip",
    task="Gradients of this rank's share are in `model`. Make them the average over the ranks, "
    "clipped to a norm of at most `max_norm` (one norm over all parameters together), as one "
    "process would with the whole batch. Return the norm before clipping, as a tensor.",
    hints=(
        "The norm of an average is not the average of the norms. Which comes first?",
        "nn.utils.clip_grad_norm_ clips in place and returns the norm from before.",
        "First all_reduce and divide each gradient, then one call of clip_grad_norm_ for all.",
    ),
    lesson="Under DDP call clip_grad_norm_ after backward(): the gradients are averaged by then.",
    minutes=8,
)


def starter(model, max_norm):
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()
    return norm


def solution(model, max_norm):
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()
    return nn.utils.clip_grad_norm_(model.parameters(), max_norm)


def on_rank(answer, max_norm):
    world = dist.get_world_size()
    model, x = nn.Linear(5, 2), torch.randn(4 * world, 5) * 3
    # a loss far from its minimum: the bias has its share of the norm, with any weights
    loss_of = lambda output: (output - 5).square().mean()
    loss_of(model(x)).backward()
    norm = nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    whole = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    loss_of(model(x.chunk(world)[dist.get_rank()])).backward()
    with watched() as calls:
        got = answer(model, max_norm)
    for (name, parameter), grad in zip(model.named_parameters(), whole, strict=True):
        expect(parameter.grad, grad, f"with max_norm={max_norm}, the gradient of {name}")
    if got is None:
        raise NotYet("the gradients are right, but nothing is returned: the norm is asked for")
    expect(got, norm, f"with max_norm={max_norm}, the norm")
    exchanged(calls)


def check(ranks):
    ranks.run(on_rank, 2, 0.5)
    ranks.run(on_rank, 3, 1e6)


def clips_each(model, max_norm):
    solution(model, 1e9)
    for parameter in model.parameters():
        norm = nn.utils.clip_grad_norm_([parameter], max_norm)
    return norm


def no_average(model, max_norm):
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
    return nn.utils.clip_grad_norm_(model.parameters(), max_norm)


def says_nothing(model, max_norm):
    solution(model, max_norm)


def by_value(model, max_norm):
    norm = solution(model, 1e9)
    nn.utils.clip_grad_value_(model.parameters(), 1e-3)
    return norm


def norm_after(model, max_norm):
    solution(model, max_norm)
    return torch.stack([p.grad.norm() for p in model.parameters()]).norm()


def by_hand(model, max_norm):
    grads = [parameter.grad for parameter in model.parameters()]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    norm = flat.norm()
    flat *= min(1.0, max_norm / norm.item())
    for grad, piece in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(piece.view_as(grad))
    return norm


WRONG = (
    Wrong(clips_each, "with max_norm=0.5, the gradient of weight is"),
    Wrong(says_nothing, "nothing is returned"),
    Wrong(norm_after, "with max_norm=0.5, the norm is [0.5], expected"),
)
ALSO_RIGHT = (by_hand,)
STARTER_SAYS = "with max_norm=0.5, the gradient of weight is"
