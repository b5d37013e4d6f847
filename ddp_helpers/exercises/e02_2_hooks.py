"""Average each gradient as soon as it is there, while backward still runs."""

import torch
import torch.distributed as dist
from torch import nn

from ddp_helpers.evidence.sent_calls import watched
from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import expect

EXERCISE = Exercise(
    title="Average with hooks, during backward",
    name="attach",
    task="Register hooks on the parameters of `model`, so that after each backward() the gradients "
    "are the average over all ranks. The first messages must leave while backward still runs. If "
    "you start them with async_op=True, return a function that waits for them: it is called after "
    "each backward. Gradients are set to None between the steps. DDP itself is not allowed.",
    hints=(
        "A parameter can call you back when its gradient has been written.",
        "parameter.register_post_accumulate_grad_hook(f) calls f(parameter) in each backward.",
        "In the hook: all_reduce parameter.grad, and divide it.",
    ),
    lesson="The communication hides behind the rest of backward: most of DDP's speed is this.",
    minutes=15,
)


def starter(model):
    def hook(parameter):
        raise NotImplementedError(f"average {parameter.grad} here")

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(hook)


def solution(model):
    def hook(parameter):
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(hook)


def step(model, x, finish):
    """One backward; when it reached the input, and what was sent."""
    import time

    ends = []
    x = x.clone().requires_grad_()
    x.register_hook(lambda grad: ends.append(time.time_ns()))
    with watched() as calls:
        model(x).square().mean().backward()
        if callable(finish):
            finish()
    return ends[0], calls


def on_rank(answer):
    model = nn.Sequential(*[nn.Linear(16, 16) for _ in range(6)], nn.Linear(16, 1))
    batches = [torch.randn(12, 16) for _ in range(2)]
    whole = []
    for x in batches:
        model.zero_grad(set_to_none=True)
        model(x).square().mean().backward()
        whole.append([p.grad for p in model.parameters()])
    model.zero_grad(set_to_none=True)
    finish = answer(model)
    if isinstance(finish, nn.parallel.DistributedDataParallel):
        raise NotYet("this is DDP itself: register the hooks on your own")
    for number, x in enumerate(batches):
        share = x.chunk(dist.get_world_size())[dist.get_rank()]
        ended, calls = step(model, share, finish)
        for (name, p), grad in zip(model.named_parameters(), whole[number], strict=True):
            expect(p.grad, grad, f"after backward {number + 1}, the gradient of {name}")
        if not any(call.at < ended for call in calls):
            raise NotYet("the gradients are right, but nothing is sent before backward has ended")
        model.zero_grad(set_to_none=True)


def check(ranks):
    for nprocs in (2, 3):
        ranks.run(on_rank, nprocs)


def after_the_end(model):
    def finish():
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()

    return finish


def not_divided(model):
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: dist.all_reduce(p.grad))


def only_once(model):
    handles = []

    def hook(parameter):
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()
        handles.pop().remove()

    for parameter in model.parameters():
        handles.append(parameter.register_post_accumulate_grad_hook(hook))


def wraps(model):
    return nn.parallel.DistributedDataParallel(model)


def last_layer_only(model):
    solution(model[-1])


def async_in_hooks(model):
    jobs = []

    def hook(parameter):
        parameter.grad /= dist.get_world_size()
        jobs.append(dist.all_reduce(parameter.grad, async_op=True))

    def finish():
        while jobs:
            jobs.pop().wait()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(hook)
    return finish


WRONG = (
    Wrong(after_the_end, "nothing is sent before backward has ended"),
    Wrong(not_divided, "after backward 1, the gradient of"),
    Wrong(only_once, "after backward"),
    Wrong(wraps, "this is DDP itself"),
)
ALSO_RIGHT = (async_in_hooks,)
