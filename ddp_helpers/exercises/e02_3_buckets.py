"""Average gradients in buckets: few messages, none too large."""

import torch
import torch.distributed as dist
from torch import nn

from ddp_helpers.evidence.sent_calls import watched
from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import expect, numbers, only

EXERCISE = Exercise(
    title="Average in buckets",
    name="average_in_buckets",
    task="Average the gradients of `parameters` (a list) over all ranks, with few dist.all_reduce "
    "calls; parameter.grad may become another tensor. Fill a bucket with gradients in the order "
    "of the list; when the next one would make it larger than `cap` numbers, send it and begin "
    "another. A gradient that is larger than `cap` alone goes in a bucket of its own.",
    hints=(
        "First decide which gradients go together, then send. Two loops are simpler than one.",
        "A list of lists: put a gradient into the last list, or begin a new one.",
        "For each list: torch.cat of the flat gradients, all_reduce, divide, and copy back.",
    ),
    lesson="DDP's bucket_cap_mb is this cap; its default is 25 MiB.",
    minutes=20,
)


def starter(parameters, cap):
    buckets = [[parameter.grad] for parameter in parameters]  # one each: too many messages
    for bucket in buckets:
        flat = torch.cat([grad.flatten() for grad in bucket])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for grad, piece in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            grad.copy_(piece.view_as(grad))


def solution(parameters, cap):
    buckets = [[]]
    for parameter in parameters:
        grad = parameter.grad
        if buckets[-1] and sum(g.numel() for g in buckets[-1]) + grad.numel() > cap:
            buckets.append([])
        buckets[-1].append(grad)
    for bucket in buckets:
        flat = torch.cat([grad.flatten() for grad in bucket])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for grad, piece in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
            grad.copy_(piece.view_as(grad))


def sizes_of_buckets(sizes, cap):
    found = [0]
    for size in sizes:
        if found[-1] and found[-1] + size > cap:
            found.append(0)
        found[-1] += size
    return found


def on_rank(answer, sizes, cap):
    everywhere = torch.stack(numbers(sum(sizes)))
    parameters = [nn.Parameter(torch.zeros(size)) for size in sizes]
    for parameter, grad in zip(parameters, everywhere[dist.get_rank()].split(sizes), strict=True):
        parameter.grad = grad.clone()
    with watched() as calls:
        answer(parameters, cap)
    only(calls, "all_reduce")
    for place, wanted in enumerate(everywhere.mean(0).split(sizes)):
        expect(parameters[place].grad, wanted, f"gradient {place}")
        if parameters[place].any():
            raise NotYet(f"parameter {place} itself has changed: only gradients should")
    sent = [call.elements for call in calls]
    wanted = sizes_of_buckets(sizes, cap)
    if len(sent) != len(wanted):
        raise NotYet(
            f"the averages are right. Messages for gradients of {sizes} numbers with cap={cap}: "
            f"{len(wanted)}; you: {len(sent)}, of {sent} numbers"
        )
    if sorted(sent) != sorted(wanted):
        raise NotYet(f"with gradients of {sizes} numbers and cap={cap}, you sent {sent} numbers")


def check(ranks):
    ranks.run(on_rank, 2, [4, 4, 2, 6, 20, 1, 1], 10)
    ranks.run(on_rank, 3, [3] * 9, 9)
    ranks.run(on_rank, 2, [12, 3, 15, 1], 10)


def one_bucket(parameters, cap):
    solution(parameters, 10**9)


def one_too_few(parameters, cap):
    solution(parameters, cap - 1)  # `>=` where `>` was meant


def not_divided(parameters, cap):
    solution(parameters, cap)
    for parameter in parameters:
        parameter.grad *= dist.get_world_size()


def first_one_empty(parameters, cap):
    buckets = [[]]
    for parameter in parameters:
        if sum(p.numel() for p in buckets[-1]) + parameter.numel() > cap:
            buckets.append([])
        buckets[-1].append(parameter)
    for bucket in buckets:
        flat = torch.cat([torch.zeros(0), *[p.grad.flatten() for p in bucket]])
        dist.all_reduce(flat)
        flat /= dist.get_world_size()
        for p, piece in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
            p.grad.copy_(piece.view_as(p))


def last_forgotten(parameters, cap):
    buckets = sizes_of_buckets([p.numel() for p in parameters], cap)
    count = len(parameters) - 2 if len(buckets) > 3 else len(parameters) - 3
    solution(parameters[:count], cap)


def sends_on_the_way(parameters, cap):
    waiting, held = [], 0

    def send():
        if waiting:
            flat = nn.utils.parameters_to_vector(waiting) / dist.get_world_size()
            dist.all_reduce(flat)
            nn.utils.vector_to_parameters(flat, waiting)
            waiting.clear()

    for parameter in parameters:
        if held + parameter.numel() > cap:
            send()
            held = 0
        waiting.append(parameter.grad)
        held += parameter.numel()
    send()


WRONG = (
    Wrong(one_bucket, "with cap=10: 4; you: 1, of [38] numbers"),
    Wrong(first_one_empty, "with cap=10: 4; you: 5, of [0, 12, 3, 15, 1] numbers"),
    Wrong(one_too_few, "cap=10, you sent [8, 8, 20, 2] numbers"),
    Wrong(not_divided, "on rank 0 of 2, gradient 0 is"),
    Wrong(last_forgotten, "on rank 0 of 2, gradient 5 is"),
)
ALSO_RIGHT = (sends_on_the_way,)
STARTER_SAYS = "with cap=10: 4; you: 7, of"
