"""A communication hook for DDP that sends half the bytes."""

import contextlib
import functools
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddp_helpers.evidence.sent_calls import watched
from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import expect, show

EXERCISE = Exercise(
    title="Half the bytes",
    name="half_hook",
    task="Write a communication hook for DDP that sends bfloat16 instead of float32. It gets a "
    "bucket and returns a future; the future's value is one flat float32 tensor, the average over "
    "the ranks. It is used as ddp.register_comm_hook(None, half_hook). Write it yourself, without "
    "torch's ready-made hooks.",
    hints=(
        "bucket.buffer() is the flat gradient. Notebook 02 has a hook that forgets something.",
        "dist.all_reduce(x, async_op=True).get_future() gives a future; .then(f) goes on from it.",
        "Divide, .to(torch.bfloat16), all_reduce, and in .then turn done.value()[0] back.",
    ),
    lesson="torch has it ready made: default_hooks.bf16_compress_hook.",
    minutes=15,
)


def starter(state, bucket):
    job = dist.all_reduce(bucket.buffer(), async_op=True)  # float32, and only a sum
    return job.get_future().then(lambda done: done.value()[0])


def solution(state, bucket):
    small = (bucket.buffer() / dist.get_world_size()).to(torch.bfloat16)
    job = dist.all_reduce(small, async_op=True)
    return job.get_future().then(lambda done: done.value()[0].to(torch.float32))


@contextlib.contextmanager
def calls_into(file):
    """The names of functions of this file that are called meanwhile."""
    found = []

    def note(frame, event, argument):
        if event == "call" and frame.f_code.co_filename.endswith(file):
            found.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield found
    finally:
        sys.setprofile(before)


def on_rank(answer):
    model, x = nn.Linear(6, 3), torch.randn(12, 6)
    model(x).square().mean().backward()
    whole = [parameter.grad.clone() for parameter in model.parameters()]
    ddp = DistributedDataParallel(model)
    borrowed, faults = [], []

    def hook(state, bucket):
        with calls_into("default_hooks.py") as functions:
            future = answer(state, bucket)
        borrowed.extend(functions)
        if not hasattr(future, "then"):
            faults.append(f"half_hook returned {show(future)}, expected a future")
            future = torch.futures.Future()
            future.set_result(bucket.buffer())
        return future.then(functools.partial(judge_value, bucket.buffer(), faults))

    ddp.register_comm_hook(None, hook)
    ddp.zero_grad(set_to_none=True)
    with watched() as calls:
        ddp(x.chunk(dist.get_world_size())[dist.get_rank()]).square().mean().backward()
    if faults:
        raise NotYet(faults[0])
    for (name, parameter), grad in zip(model.named_parameters(), whole, strict=True):
        expect(parameter.grad, grad, f"the gradient of {name}", tolerance=0.03)
    sent = sum(call.elements * getattr(torch, call.dtype).itemsize for call in calls)
    counted = f"Bytes sent: {sum(2 * grad.numel() for grad in whole)}; you: {sent}"
    others = {call.dtype for call in calls if call.elements > 1} - {"bfloat16"}
    if others:
        others = ", ".join(others)
        raise NotYet(f"the gradients are right, but {others} was sent, not bfloat16. {counted}")
    if borrowed:
        raise NotYet("the gradients are right, but the hook is torch's own: write it yourself")
    if sent != sum(2 * grad.numel() for grad in whole):
        raise NotYet(f"the gradients are right. {counted}")


def judge_value(buffer, faults, future):
    """The future's value, or a note of what is wrong with it: torch takes bfloat16, too."""
    value = future.value()
    if not isinstance(value, torch.Tensor):
        what = f"a {type(value).__name__}"
    elif value.dtype != torch.float32 or value.shape != buffer.shape:
        what = f"{str(value.dtype).removeprefix('torch.')} of the shape {tuple(value.shape)}"
    else:
        return value
    wanted = f"float32 of the shape {tuple(buffer.shape)}"
    faults.append(f"the future's value is {what}, expected {wanted}, as bucket.buffer()")
    return buffer


def check(ranks):
    for nprocs in (2, 3):
        ranks.run(on_rank, nprocs)


def full_width(state, bucket):
    job = dist.all_reduce(bucket.buffer() / dist.get_world_size(), async_op=True)
    return job.get_future().then(lambda done: done.value()[0])


def not_divided(state, bucket):
    job = dist.all_reduce(bucket.buffer().to(torch.bfloat16), async_op=True)
    return job.get_future().then(lambda done: done.value()[0].to(torch.float32))


def no_future(state, bucket):
    small = bucket.buffer().to(torch.bfloat16)
    dist.all_reduce(small)
    return small.to(torch.float32)


def never_sent(state, bucket):
    future = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


def another_half(state, bucket):
    small = (bucket.buffer() / dist.get_world_size()).half()
    job = dist.all_reduce(small, async_op=True)
    return job.get_future().then(lambda done: done.value()[0].float())


def ready_made(state, bucket):
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    return default_hooks.bf16_compress_hook(None, bucket)


def sent_twice(state, bucket):
    dist.all_reduce(bucket.buffer().bfloat16())
    return solution(state, bucket)


def waits_itself(state, bucket):
    small = bucket.buffer().div(dist.get_world_size()).bfloat16()
    dist.all_reduce(small)
    future = torch.futures.Future()
    future.set_result(small.float())
    return future


WRONG = (
    Wrong(full_width, "float32 was sent, not bfloat16. Bytes sent: 42; you: 84"),
    Wrong(not_divided, "the gradient of weight is"),
    Wrong(no_future, "expected a future"),
    Wrong(never_sent, "on rank 0 of 2, the gradient of"),
    Wrong(another_half, "but float16 was sent, not bfloat16"),
    Wrong(ready_made, "the hook is torch's own"),
    Wrong(sent_twice, "Bytes sent: 42; you: 84"),
)
ALSO_RIGHT = (waits_itself,)
STARTER_SAYS = "the gradient of weight is"
