"""DDP by hand: average the gradients after backward."""

import torch
import torch.distributed as dist
from torch import nn

from ddp_helpers.evidence.sent_calls import watched
from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import exchanged, expect, numbers

EXERCISE = Exercise(
    title="Average gradients by hand",
    name="average_gradients",
    task="backward() has just run on each rank, each with another part of the batch. Make every "
    "gradient of `model` the average over all ranks, with dist alone; parameter.grad may become "
    "another tensor. A parameter that took no part has the gradient None on all ranks: leave it "
    "so.",
    hints=(
        "Which collective gives everybody a sum? And what makes a sum an average?",
        "model.parameters() gives the parameters, parameter.grad the gradient.",
        "all_reduce each gradient that is not None, then divide it by the number of ranks.",
    ),
    lesson="That is all the mathematics in DDP; the rest of it is speed.",
    minutes=8,
)


def starter(model):
    for parameter in model.parameters():
        raise NotImplementedError(f"average {parameter.grad}")


def solution(model):
    for parameter in model.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


def make_model():
    """The same on all ranks; the layer in the middle is not used."""
    return nn.ModuleList([nn.Linear(5, 4), nn.Linear(2, 2), nn.Linear(4, 2)])


def forward(model, x):
    return model[2](torch.tanh(model[0](x))).square().mean()


def on_rank(answer):
    model, wanted = make_model(), {}
    forward(model, torch.randn(4, 5)).backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:  # numbers that tell whose they are
            parts = numbers(*parameter.shape)
            parameter.grad = parts[dist.get_rank()].clone()
            wanted[name] = torch.stack(parts).mean(0)
    weights = [parameter.detach().clone() for parameter in model.parameters()]
    with watched() as calls:
        answer(model)
    for (name, parameter), before in zip(model.named_parameters(), weights, strict=True):
        if not torch.equal(parameter, before):
            raise NotYet(f"the weight {name} itself has changed: only gradients should")
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            raise NotYet(f"{name} no longer learns: its requires_grad is False now")
        if name in wanted:
            expect(parameter.grad, wanted[name], f"the gradient of {name}")
        elif parameter.grad is not None:
            raise NotYet(f"{name} took no part, and yet it has a gradient now")
    exchanged(calls)


def check(ranks):
    for nprocs in (2, 3):
        ranks.run(on_rank, nprocs)


def not_divided(model):
    for parameter in model.parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)


def weights_instead(model):
    for parameter in model.parameters():
        dist.all_reduce(parameter.data)  # a sum, and not of gradients


def none_forgotten(model):
    for parameter in model.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()


def zeros_for_none(model):
    for parameter in model.parameters():
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    solution(model)


def rank_0_only(model):
    for parameter in model.parameters():
        if parameter.grad is not None:
            dist.broadcast(parameter.grad, src=0)


def divides_first(model):
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads]) / dist.get_world_size()
    dist.all_reduce(flat)
    for grad, piece in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(piece.view_as(grad))


WRONG = (
    Wrong(not_divided, "the gradient of 0.weight is"),
    Wrong(weights_instead, "itself has changed"),
    Wrong(none_forgotten, "average_gradients failed in a run of 2 ranks"),
    Wrong(zeros_for_none, "took no part"),
)
ALSO_RIGHT = (divides_first,)
