"""Find the bug: validation on rank 0 alone."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddp_helpers.evidence.sent_calls import watched
from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import expect

EXERCISE = Exercise(
    title="Find the bug: validation on rank 0",
    name="validate",
    task="Rank 0 validates, the others go on with their training at once. Return the model's "
    "average output for `x` on rank 0, in eval mode and without gradients, and None elsewhere; "
    "leave the model in train mode. The model has BatchNorm, and this version breaks the training.",
    hints=(
        "What does DDP send in a forward, even if nobody trains?",
        "The forward of the wrapper speaks to the other ranks. The bare model inside it doesn't.",
        "Call ddp.module(x) on rank 0.",
    ),
    lesson="The wrapper's forward broadcasts buffers: evaluate the module inside.",
    minutes=8,
)


def starter(ddp, x):
    if dist.get_rank() == 0:
        ddp.eval()
        with torch.no_grad():
            mean = ddp(x).mean()
        ddp.train()
        return mean


def solution(ddp, x):
    if dist.get_rank() == 0:
        ddp.module.eval()
        with torch.no_grad():
            mean = ddp.module(x).mean()
        ddp.module.train()
        return mean


def on_rank(answer):
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    ddp, x = DistributedDataParallel(model), torch.randn(9, 3)
    ddp(torch.randn(5, 3)).sum().backward()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.eval()
    wanted = model(x).mean().detach()
    model.train()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    with watched() as calls:
        got = answer(ddp, x)
    if calls:
        raise NotYet(
            f"rank {dist.get_rank()} calls {calls[0].name}, you or DDP's forward: the others go on "
            "at once, and wait for nothing that rank 0 does here"
        )
    if not model.training:
        raise NotYet("the model is still in eval mode after your function")
    for name, tensor in model.state_dict().items():
        if not torch.equal(tensor, before[name]):
            raise NotYet(f"validation has changed {name}: BatchNorm learns in train mode")
    for name, weight in model.named_parameters():
        if weight.grad is None or not torch.equal(weight.grad, gradients[name]):
            raise NotYet(f"validation has changed the gradient of {name}: training needs it")
        if not weight.requires_grad:
            raise NotYet(f"{name} no longer learns: its requires_grad is False now")
    if not torch.is_grad_enabled():
        raise NotYet("gradients are switched off for good: use torch.no_grad() in a with")
    if dist.get_rank() == 0:
        if isinstance(got, float):  # of .item(), and no less good
            got = torch.tensor(got)
        expect(got, wanted, "the average output")
        if got.requires_grad:
            raise NotYet("the result drags the graph of its gradients along")
    elif got is not None:
        raise NotYet(f"rank {dist.get_rank()} returned {got}, expected None")
    ddp(torch.randn(5, 3)).sum().backward()


def check(ranks):
    for nprocs in (2, 3):
        ranks.run(on_rank, nprocs)


def in_train_mode(ddp, x):
    if dist.get_rank() == 0:
        with torch.no_grad():
            return ddp.module(x).mean()


def stays_in_eval(ddp, x):
    if dist.get_rank() == 0:
        ddp.module.eval()
        with torch.no_grad():
            return ddp.module(x).mean()


def with_graph(ddp, x):
    if dist.get_rank() == 0:
        ddp.module.eval()
        mean = ddp.module(x).mean()
        ddp.module.train()
        return mean


def nobody(ddp, x):
    return None


def on_a_copy(ddp, x):
    from copy import deepcopy

    if dist.get_rank() > 0:
        return None
    with torch.inference_mode():
        return deepcopy(ddp.module).eval()(x).mean()


WRONG = (
    Wrong(in_train_mode, "BatchNorm learns in train mode"),
    Wrong(stays_in_eval, "still in eval mode"),
    Wrong(with_graph, "drags the graph"),
    Wrong(nobody, "should be a tensor"),
)
ALSO_RIGHT = (on_a_copy,)
STARTER_SAYS = "the ranks called collectives that do not match"
