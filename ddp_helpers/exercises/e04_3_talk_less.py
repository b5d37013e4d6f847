"""Make it faster, measured: talk once instead of once a step."""

import statistics
import time

import torch
import torch.distributed as dist

from ddp_helpers.evidence.sent_calls import watched
from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import EXACT, expect, fine_numbers, numbers

EXERCISE = Exercise(
    title="Make it faster: talk once",
    name="average_losses",
    task="Each rank holds a list of losses, one for each step, as tensors without dimensions. "
    "Return their averages over the ranks, as one tensor with a number for each step. This "
    "version is right, and sends a message for each step; yours may send two, however many steps "
    "there are. Both are measured side by side, in turns.",
    hints=(
        "How many messages does it send, and how large are they?",
        "A list of numbers can travel as one tensor.",
        "torch.stack(losses), one all_reduce, one division.",
    ),
    lesson="Gather what you log, and send it once in a while: each message has a fixed price.",
    minutes=6,
)
MESSAGES, STEPS, ROUNDS = 2, 100, 7


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
    """How many messages it sends, and its time in that of the starter: the median of rounds."""
    shares = []
    for number in range(ROUNDS):
        everywhere = numbers(STEPS) if number == 0 else fine_numbers(STEPS)
        losses = list(everywhere[dist.get_rank()].unbind())
        slow, _ = timed(starter, losses)
        with watched() as calls:
            fast, averages = timed(answer, losses)
        expect(averages, torch.stack(everywhere).mean(0), "the result", EXACT)
        shares.append(fast / slow)
    return len(calls) - 1, statistics.median(shares)  # one is the barrier of timed()


def timed(function, losses):
    dist.barrier()
    started = time.perf_counter()
    result = function([loss.clone() for loss in losses])
    return time.perf_counter() - started, result


def check(ranks):
    sent, share = max(ranks.run(on_rank, 2))
    if sent > MESSAGES:
        raise NotYet(
            f"the averages are right. Messages for {STEPS} steps: at most {MESSAGES}; you: {sent}"
        )
    return (
        f"Messages for {STEPS} steps: at most {MESSAGES}; you: {sent}. It took {100 * share:.0f} % "
        "of the starter's time here."
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
    jobs = [dist.all_reduce(loss, async_op=True) for loss in losses]
    for job in jobs:
        job.wait()
    return torch.stack(losses) / dist.get_world_size()


def gathers(losses):
    flat = torch.stack(losses)
    parts = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, flat)
    return torch.stack(parts).mean(0)


WRONG = (
    Wrong(own_losses, "on rank 0 of 2, the result is"),
    Wrong(one_number, "has the shape (), expected (100,)"),
    Wrong(in_a_list, "should be a tensor"),
    Wrong(only_async, "at most 2; you: 100"),
)
ALSO_RIGHT = (gathers,)
STARTER_SAYS = "Messages for 100 steps: at most 2; you: 100"
