"""Make it faster, measured: talk once instead of once a step."""

import statistics
import time

import torch
import torch.distributed as dist

from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import by_rank, expect

EXERCISE = Exercise(
    title="Make it faster: talk once",
    name="average_losses",
    task="Each rank holds a list of losses, one for each step, as tensors without dimensions. "
    "Return their averages over the ranks, as one tensor with a number for each step. This version "
    "is right; yours must take at most half its time. Both are measured side by side, in turns.",
    hints=(
        "How many messages does it send, and how large are they?",
        "A list of numbers can travel as one tensor.",
        "torch.stack(losses), one all_reduce, one division.",
    ),
    lesson="Gather what you log, and send it once in a while: each message has a fixed price.",
    minutes=6,
)
TARGET, STEPS, ROUNDS = 2.0, 100, 7


def starter(losses):
    averages = []
    for loss in losses:
        mean = loss.clone()
        dist.all_reduce(mean)
        averages.append(mean / dist.get_world_size())
    return torch.stack(averages)


def solution(losses):
    averages = torch.stack(losses)
    dist.all_reduce(averages)
    return averages / dist.get_world_size()


def on_rank(answer):
    """How many times as fast as the starter it is: the median of rounds in turns."""
    everywhere = by_rank(lambda rank: torch.rand(STEPS))
    losses = list(everywhere[dist.get_rank()].unbind())
    ratios = []
    for _ in range(ROUNDS):
        slow, _ = timed(starter, losses)
        fast, averages = timed(answer, losses)
        expect(averages, torch.stack(everywhere).mean(0), "the averages")
        ratios.append(slow / fast)
    return statistics.median(ratios)


def timed(function, losses):
    dist.barrier()
    started = time.perf_counter()
    result = function([loss.clone() for loss in losses])
    return time.perf_counter() - started, result


def check(ranks):
    ratio = min(ranks.run(on_rank, 2))
    if ratio < TARGET:
        raise NotYet(
            f"the averages are right, but it takes {100 / ratio:.0f} % of the time of the version "
            f"you started from (median of {ROUNDS} rounds in turns): at most {100 / TARGET:.0f} % "
            "is the target"
        )


def own_losses(losses):
    return torch.stack(losses)


def one_number(losses):
    mean = torch.stack(losses).mean()
    dist.all_reduce(mean)
    return mean / dist.get_world_size()


def in_a_list(losses):
    return solution(losses).tolist()


def only_async(losses):
    time.sleep(0.001)
    return starter(losses)


def gathers(losses):
    flat = torch.stack(losses)
    parts = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, flat)
    return torch.stack(parts).mean(0)


WRONG = (
    Wrong(own_losses, "on rank 0 of 2, the averages is"),
    Wrong(one_number, "has the shape (), expected (100,)"),
    Wrong(in_a_list, "should be a tensor"),
    Wrong(only_async, "is the target"),
)
ALSO_RIGHT = (gathers,)
STARTER_SAYS = "is the target"
