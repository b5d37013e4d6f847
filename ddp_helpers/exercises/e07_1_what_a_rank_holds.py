"""Count the bytes of weights, gradients and optimizer that this rank holds."""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from ddp_helpers.exercises.core import Exercise, NotYet, Wrong

EXERCISE = Exercise(
    title="What a rank holds",
    name="bytes_held",
    task="Return the bytes that this rank holds, as a dict with the keys weights, gradients and "
    "optimizer. Look at the tensors themselves: they may have any dtype, a gradient may be "
    "missing, the optimizer may have a share of the weights only, and a DTensor is cut over the "
    "ranks: this rank holds its to_local(). Leave out an optimizer's tensors without dimensions: "
    "the number of steps.",
    hints=(
        "A tensor's nbytes is numel() times element_size().",
        "optimizer.state is a dict of dicts: for each weight that it has stepped, its tensors by "
        "name.",
        "Write one function that adds up the nbytes of tensors, to_local() first where there is "
        "one. Then call it for weights, for gradients that are not None, and for the states.",
    ),
    lesson="ZeRO and FSDP make these numbers small; count before you believe.",
    minutes=8,
)


def starter(model, optimizer):
    weights = sum(weight.numel() * 4 for weight in model.parameters())
    return {"weights": weights, "gradients": weights, "optimizer": 2 * weights}


def solution(model, optimizer):
    def size(tensors):
        here = [t.to_local() if hasattr(t, "to_local") else t for t in tensors]
        return sum(t.nbytes for t in here)

    weights = list(model.parameters())
    states = [t for state in optimizer.state.values() for t in state.values()]
    return {
        "weights": size(weights),
        "gradients": size(w.grad for w in weights if w.grad is not None),
        "optimizer": size(t for t in states if isinstance(t, torch.Tensor) and t.dim()),
    }


class Model(nn.Module):
    """A tied weight, one in bfloat16, one that no loss reaches, one that is cut up."""

    def __init__(self, mesh):
        super().__init__()
        world = dist.get_world_size()
        self.first, self.half = nn.Linear(6, 5), nn.Linear(5, 4).bfloat16()
        self.tied, self.idle = self.first, nn.Linear(3, 7)
        cut = distribute_tensor(torch.randn(2 * world, 11), mesh, [Shard(0)])
        self.cut = nn.Parameter(cut)


def on_rank(answer, adam):
    world, rank = dist.get_world_size(), dist.get_rank()
    model = Model(init_device_mesh("cpu", (world,)))
    first, half, idle, cut = 35 * 4, 24 * 2, 28 * 4, 22 * 4  # bytes; of the last one a share
    for name, weight in model.named_parameters():
        weight.grad = None if name.startswith("idle") else torch.ones_like(weight)
    shares = {"cut": [model.cut], "first": list(model.first.parameters())}
    mine = [w for name, share in shares.items() if rank == 0 or name == "cut" for w in share]
    # NAdam has two tensors without dimensions for each weight, and Adam one
    make = torch.optim.NAdam if adam else lambda p, **how: torch.optim.SGD(p, momentum=0.9, **how)
    optimizer = make([{"params": [weight]} for weight in mine], lr=0.1, foreach=False)
    optimizer.step()
    stepped = cut + first if rank == 0 else cut
    wanted = {
        "weights": first + half + idle + cut,
        "gradients": first + half + cut,
        "optimizer": stepped * (2 if adam else 1),
    }
    got = answer(model, optimizer)
    for name, weight in model.named_parameters():
        if weight.grad is None and not name.startswith("idle"):
            raise NotYet(f"the gradient of {name} is gone: look at it, and leave it as it is")
    if not isinstance(got, dict) or set(got) != set(wanted):
        raise NotYet(f"expected a dict with the keys {', '.join(wanted)}, but it is {got!r}")
    for kind, size in wanted.items():
        if int(got[kind]) != size:
            raise NotYet(
                f"on rank {rank} of {world}, {kind} are {got[kind]} bytes, expected {size}: "
                "35 values of float32 and 24 of bfloat16, 28 of float32 without a gradient, and 22 "
                f"of float32 that are this rank's share of {22 * world}; this rank's optimizer, "
                f"{'NAdam' if adam else 'SGD with momentum'}, has {stepped // 4} of these values"
            )


def check(ranks):
    ranks.run(on_rank, 2, True)
    ranks.run(on_rank, 3, False)


def all_float32(model, optimizer):
    found = solution(model, optimizer)
    return {**found, "weights": found["weights"] + 48}


def whole_shards(model, optimizer):
    found = solution(model, optimizer)
    return {**found, "weights": sum(w.numel() * w.element_size() for w in model.parameters())}


def gradients_as_weights(model, optimizer):
    found = solution(model, optimizer)
    return {**found, "gradients": found["weights"]}


def always_adam(model, optimizer):
    found = solution(model, optimizer)
    stepped = [w for group in optimizer.param_groups for w in group["params"]]
    size = sum((w.to_local() if hasattr(w, "to_local") else w).nbytes for w in stepped)
    return {**found, "optimizer": 2 * size}


def with_the_steps(model, optimizer):
    found = solution(model, optimizer)
    steps = [t for s in optimizer.state.values() for t in s.values() if t is not None]
    return {**found, "optimizer": found["optimizer"] + sum(4 for t in steps if not t.dim())}


def one_number(model, optimizer):
    return sum(solution(model, optimizer).values())


def by_storage(model, optimizer):
    def size(tensors):
        here = [getattr(t, "_local_tensor", t) for t in tensors]
        return sum({t.data_ptr(): t.numel() * t.element_size() for t in here}.values())

    states = [list(state.values()) for state in optimizer.state.values()]
    return {
        "weights": size(w.detach() for w in model.parameters()),
        "gradients": size(w.grad for w in model.parameters() if w.grad is not None),
        "optimizer": size(t for state in states for t in state if t is not None and t.dim()),
    }


WRONG = (
    Wrong(all_float32, "weights are 436 bytes, expected 388"),
    Wrong(whole_shards, "weights are 476 bytes, expected 388"),
    Wrong(gradients_as_weights, "gradients are 388 bytes, expected 276"),
    Wrong(always_adam, "SGD with momentum, has"),
    Wrong(with_the_steps, "optimizer are 480 bytes, expected 456"),
    Wrong(one_number, "expected a dict with the keys"),
)
ALSO_RIGHT = (by_storage,)
STARTER_SAYS = "bytes, expected 388"
