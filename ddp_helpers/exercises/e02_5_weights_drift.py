"""Find the bug: the weights of the ranks are not the same."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import EXACT, expect

EXERCISE = Exercise(
    title="Find the bug: weights that differ",
    name="wrap",
    task="Only rank 0 has read the checkpoint: there `state` is a state_dict, on the others it is "
    "None. Return the model inside DDP, with the checkpoint's weights on every rank. This version "
    "ends without an error, and trains a different model on each rank.",
    hints=(
        "Return the sum of the weights from each rank and compare.",
        "DDP sends rank 0's weights to all ranks exactly once. When?",
        "Swap two steps: load first, wrap then.",
    ),
    lesson="Equal gradients keep an old difference alive: start equal, or stay unequal.",
    minutes=8,
)


def starter(model, state):
    ddp = DistributedDataParallel(model)
    if dist.get_rank() == 0:
        ddp.module.load_state_dict(state)
    return ddp


def solution(model, state):
    if dist.get_rank() == 0:
        model.load_state_dict(state)
    return DistributedDataParallel(model)


def on_rank(answer):
    state = nn.Linear(4, 2).state_dict()
    torch.manual_seed(dist.get_rank())
    model = nn.Linear(4, 2)
    ddp = answer(model, {k: v.clone() for k, v in state.items()} if dist.get_rank() == 0 else None)
    if not isinstance(ddp, DistributedDataParallel):
        raise NotYet(f"expected the model inside DDP, got {type(ddp).__name__}")
    for name, wanted in state.items():
        now = ddp.module.state_dict().get(name)
        expect(now, wanted, f"after the wrap, {name}", EXACT)
    for name, parameter in ddp.module.named_parameters():
        if not parameter.requires_grad:
            raise NotYet(f"{name} can't learn: its requires_grad is False")
    ddp(torch.randn(3, 4)).sum().backward()


def check(ranks):
    for nprocs in (2, 3):
        ranks.run(on_rank, nprocs)


def all_load(model, state):
    model.load_state_dict(state)
    return DistributedDataParallel(model)


def never_loads(model, state):
    return DistributedDataParallel(model)


def bare(model, state):
    solution(model, state)
    return model


def strict_is_off(model, state):
    ddp = DistributedDataParallel(model)
    ddp.load_state_dict(state or {}, strict=False)  # "module." is missing: nothing is loaded
    return ddp


def broadcasts_after(model, state):
    ddp = starter(model, state)
    for tensor in ddp.module.state_dict().values():
        dist.broadcast(tensor, src=0)
    return ddp


WRONG = (
    Wrong(all_load, "wrap failed in a run of 2 ranks"),
    Wrong(never_loads, "on rank 0 of 2, after the wrap, weight is"),
    Wrong(bare, "expected the model inside DDP"),
)
ALSO_RIGHT = (broadcasts_after,)
STARTER_SAYS = "on rank 1 of 2, after the wrap, weight is"
