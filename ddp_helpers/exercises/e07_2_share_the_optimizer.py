"""ZeRO-1 by hand: each rank steps its share of the weights, and sends them to the others."""

import torch
import torch.distributed as dist

from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import expect

EXERCISE = Exercise(
    title="Share the optimizer",
    name="make_step",
    task="The weights (a list) and their averaged gradients are the same on all ranks. Return a "
    "function step() that does what one optimizer for all weights would do, while this rank's "
    "optimizer has only a share of them: weight i belongs to rank i % world_size. "
    "`make_optimizer(list_of_weights)` makes an optimizer; call it once.",
    hints=(
        "Two things happen in step(): this rank steps its weights, then everybody gets all.",
        "dist.broadcast(tensor, src=...) sends from the rank that has it. All ranks call it for "
        "all weights, in the same order.",
        "weights[rank::world_size] is this rank's share. A weight that requires a gradient is "
        "sent as weight.detach().",
    ),
    lesson="ZeroRedundancyOptimizer does this; Adam's averages are then 8 bytes by N for a weight.",
    minutes=15,
)


def starter(weights, make_optimizer):
    optimizer = make_optimizer(weights)  # all of them, on each rank
    return optimizer.step


def solution(weights, make_optimizer):
    rank, world = dist.get_rank(), dist.get_world_size()
    optimizer = make_optimizer(weights[rank::world])

    def step():
        optimizer.step()
        for number, weight in enumerate(weights):
            dist.broadcast(weight.detach(), src=number % world)

    return step


def on_rank(answer, count):
    rank, world = dist.get_rank(), dist.get_world_size()
    weights = [torch.randn(3, 2, requires_grad=True) for _ in range(count)]
    twins = [weight.detach().clone().requires_grad_() for weight in weights]
    # by SGD a gradient that is twice as large moves a weight twice as far
    kind = torch.optim.Adam if world == 2 else torch.optim.SGD
    whole, given = kind(twins, lr=0.1), []

    def make_optimizer(share):
        share = list(share)
        given.append(sorted(ids.index(id(weight)) for weight in share))
        return kind(share, lr=0.1)

    ids = [id(weight) for weight in weights]
    step = answer(weights, make_optimizer)
    if not callable(step):
        raise NotYet(f"expected a function step(), but {EXERCISE.name} returned {step!r}")
    mine = list(range(rank, count, world))
    for number in range(1, 4):
        for weight, twin in zip(weights, twins, strict=True):
            twin.grad = torch.randn(3, 2)
            weight.grad = twin.grad.clone()
        step()
        whole.step()
        if number == 1 and given != [mine]:
            told = f"the weights {given[0]}" if given else "no weights"
            raise NotYet(f"on rank {rank} of {world} the optimizer has {told}, expected {mine}")
        for place, (weight, twin) in enumerate(zip(weights, twins, strict=True)):
            expect(weight.detach(), twin.detach(), f"after step {number}, weight {place}")
    if len(given) > 1:
        raise NotYet("make_optimizer was called more than once: an optimizer must keep its state")


def check(ranks):
    ranks.run(on_rank, 2, 5)
    ranks.run(on_rank, 3, 4)


def keeps_to_itself(weights, make_optimizer):
    return make_optimizer(weights[dist.get_rank() :: dist.get_world_size()]).step


def all_from_rank_0(weights, make_optimizer):
    own = keeps_to_itself(weights, make_optimizer)

    def step():
        own()
        for weight in weights:
            dist.broadcast(weight.detach(), src=0)

    return step


def new_each_time(weights, make_optimizer):
    rank, world = dist.get_rank(), dist.get_world_size()

    def step():
        make_optimizer(weights[rank::world]).step()
        for number, weight in enumerate(weights):
            dist.broadcast(weight.detach(), src=number % world)

    return step


def steps_at_once(weights, make_optimizer):
    solution(weights, make_optimizer)


def gathers(weights, make_optimizer):
    rank, world = dist.get_rank(), dist.get_world_size()
    optimizer = make_optimizer(weights[rank::world])

    @torch.no_grad()
    def step():
        optimizer.step()
        for number, weight in enumerate(weights):
            if number % world != rank:
                weight.zero_()
            dist.all_reduce(weight.detach())

    return step


WRONG = (
    Wrong(keeps_to_itself, "on rank 0 of 2, after step 1, weight 1 is"),
    Wrong(all_from_rank_0, "after step 1, weight 1"),
    Wrong(new_each_time, "after step 2, weight"),
    Wrong(steps_at_once, "returned None"),
)
ALSO_RIGHT = (gathers,)
STARTER_SAYS = "the optimizer has the weights [0, 1, 2, 3, 4], expected ["
