"""Gradient accumulation that sends once."""

import contextlib

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddp_helpers.evidence.sent_calls import watched
from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import expect

EXERCISE = Exercise(
    title="Accumulate, and send once",
    name="accumulate",
    task="`ddp` is a model inside DDP, `batches` a list of equally large micro-batches. Leave in "
    "the gradients the average over all samples of all micro-batches and ranks. The loss of a "
    "micro-batch is loss_of(ddp(x)), a mean. Only one of them fits into memory at a time, with "
    "all that its backward needs. Gradients may be sent for the last one only.",
    hints=(
        "DDP has a context in which it keeps gradients to itself.",
        "Inside ddp.no_sync() for all but the last. What decides, the forward or the backward?",
        "Both forward and backward go inside no_sync. And divide each loss by len(batches).",
    ),
    lesson="It is the forward inside no_sync that counts, not the backward.",
    minutes=12,
)


def starter(ddp, batches, loss_of):
    for x in batches:
        loss_of(ddp(x)).backward()


def solution(ddp, batches, loss_of):
    for number, x in enumerate(batches):
        last = number == len(batches) - 1
        with contextlib.nullcontext() if last else ddp.no_sync():
            (loss_of(ddp(x)) / len(batches)).backward()


def on_rank(answer, parts):
    world = dist.get_world_size()
    model, x = nn.Linear(5, 2), torch.randn(4 * parts * world, 5)
    if parts > 2:  # two that are equal are two all the same
        rows = x.view(world, parts, 4, 5)
        rows[:, 0] = rows[:, -1]
    loss_of = lambda output: output.square().mean()
    loss_of(model(x)).backward()
    whole = [parameter.grad.clone() for parameter in model.parameters()]
    ddp = DistributedDataParallel(model)
    ddp.zero_grad(set_to_none=True)
    sizes, held, most_held = [], [], [0]

    def comes_in(_, inputs):
        sizes.append(len(inputs[0]))
        most_held.append(len(held))

    def goes_out(_, inputs, output):
        if output.requires_grad:
            held.append(output.shape)
            output.register_hook(lambda _: held.pop() and None)

    model.register_forward_pre_hook(comes_in)
    model.register_forward_hook(goes_out)
    mine = list(x.chunk(world)[dist.get_rank()].chunk(parts))
    with watched() as calls:
        answer(ddp, mine, loss_of)
    if max(sizes, default=4) > 4:
        raise NotYet(
            f"samples in the model at once: at most 4, one micro-batch; you: {max(sizes)}. "
            "This is for batches that don't fit into memory"
        )
    sent = [call for call in calls if call.name == "all_reduce" and call.elements > 1]
    if not sent:
        raise NotYet("the gradients were never sent: each rank has its own")
    for (name, parameter), grad in zip(model.named_parameters(), whole, strict=True):
        expect(parameter.grad, grad, f"with {parts} micro-batches, the gradient of {name}")
    if max(most_held):
        raise NotYet(
            "the gradients are right, but a micro-batch goes in while another one has not been "
            "backward yet: both are held in memory, and only one fits"
        )
    if not ddp.require_backward_grad_sync:
        raise NotYet("the gradients are right, but DDP sends none any more: no_sync() is still on")
    if len(sent) > 1:
        raise NotYet(f"the gradients are right. Times they are sent: at most 1; you: {len(sent)}")


def check(ranks):
    for nprocs, parts in ((2, 3), (3, 2), (2, 1)):
        ranks.run(on_rank, nprocs, parts)


def sends_each(ddp, batches, loss_of):
    for x in batches:
        (loss_of(ddp(x)) / len(batches)).backward()


def forward_outside(ddp, batches, loss_of):
    for number, x in enumerate(batches):
        loss = loss_of(ddp(x)) / len(batches)
        with contextlib.nullcontext() if number == len(batches) - 1 else ddp.no_sync():
            loss.backward()


def never_sends(ddp, batches, loss_of):
    with ddp.no_sync():
        for x in batches:
            (loss_of(ddp(x)) / len(batches)).backward()


def not_divided(ddp, batches, loss_of):
    for number, x in enumerate(batches):
        with contextlib.nullcontext() if number == len(batches) - 1 else ddp.no_sync():
            loss_of(ddp(x)).backward()


def last_only(ddp, batches, loss_of):
    loss_of(ddp(batches[-1])).backward()


def one_exit(ddp, batches, loss_of):
    *first, last = batches
    with ddp.no_sync():
        for x in first:
            loss_of(ddp(x)).div(len(batches)).backward()
    loss_of(ddp(last)).div(len(batches)).backward()


def all_at_once(ddp, batches, loss_of):
    loss_of(ddp(torch.cat(batches))).backward()


WRONG = (
    Wrong(all_at_once, "at most 4, one micro-batch; you: 12"),
    Wrong(sends_each, "Times they are sent: at most 1; you: 3"),
    Wrong(never_sends, "never sent"),
    Wrong(not_divided, "with 3 micro-batches, the gradient of weight is"),
)
ALSO_RIGHT = (one_exit,)
STARTER_SAYS = "with 3 micro-batches, the gradient of weight is"
