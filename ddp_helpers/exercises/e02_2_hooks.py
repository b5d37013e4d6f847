"""Average each gradient as soon as it is there, while backward still runs."""

import weakref

import torch
import torch.distributed as dist
from torch import nn

from ddp_helpers.evidence.sent_calls import watched
from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import Gate, expect, show

EXERCISE = Exercise(
    title="Average with hooks, during backward",
    name="attach",
    task="Register hooks on the parameters of `model`, so that after each backward() the gradients "
    "are the average over all ranks. Backward must not stand still while a message travels: start "
    "each as soon as its gradient is there, with async_op=True, and return a function that waits "
    "for them all; it is called after each backward. Gradients are set to None between the steps; "
    "parameter.grad may become another tensor. DDP itself is not allowed.",
    hints=(
        "A parameter can call you back when its gradient has been written.",
        "parameter.register_post_accumulate_grad_hook(f) calls f(parameter) in each backward.",
        "In the hook: divide parameter.grad, start its all_reduce, and keep the job in a list.",
    ),
    lesson="The communication hides behind the rest of backward: most of DDP's speed is this.",
    minutes=15,
)


def starter(model):
    def hook(parameter):
        raise NotImplementedError(f"start to average {parameter.grad} here")

    def finish():
        pass  # wait here for what was started

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(hook)
    return finish


def solution(model):
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


def step(model, x, finish, number):
    """One backward; how much was sent before its last layer, and whether rank 0 stood still in it.

    Rank 1 begins when rank 0 has come to the end of its backward.
    """
    end = Gate(f"end of backward {number}")
    free = dist.get_rank() != 1 or end.wait()
    sent = []  # when the gradients of all layers but the first are there
    note = lambda *_: sent.append(len(calls))
    hook = model[0].register_forward_hook(lambda *io: io[-1].register_hook(note) and None)
    with watched() as calls:
        model(x).square().mean().backward()
        hook.remove()
        if dist.get_rank() == 0:
            end.reached()
        finish()
    return sent[0], free


def on_rank(answer):
    model = nn.Sequential(*[nn.Linear(16, 16) for _ in range(6)], nn.Linear(16, 1))
    batches = [torch.randn(12, 16) for _ in range(3)]
    whole = []
    for x in batches:
        model.zero_grad(set_to_none=True)
        model(x).square().mean().backward()
        whole.append([p.grad for p in model.parameters()])
    model.zero_grad(set_to_none=True)
    finish = answer(model)
    if isinstance(finish, nn.parallel.DistributedDataParallel):
        raise NotYet("this is DDP itself: register the hooks on your own")
    if not callable(finish):
        raise NotYet(f"attach returned {show(finish)}, expected a function that waits for them all")
    first_step = []  # its gradients, as long as somebody holds them
    for number, x in enumerate(batches):
        share = x.chunk(dist.get_world_size())[dist.get_rank()]
        sent, free = step(model, share, finish, number)
        for (name, p), grad in zip(model.named_parameters(), whole[number], strict=True):
            expect(p.grad, grad, f"after backward {number + 1}, the gradient of {name}")
        if not sent:
            raise NotYet(
                "the gradients are right, but nothing is sent while backward still has a layer to "
                "do: start with each gradient as soon as it is there"
            )
        if not free:
            raise NotYet(
                "the gradients are right, but backward stands still for a message: rank 1 began "
                "late, and rank 0 waited for it in the middle of its backward"
            )
        first_step = first_step or [weakref.ref(p.grad) for p in model.parameters()]
        model.zero_grad(set_to_none=True)
    # to keep those of the last step is no leak
    if any(grad() is not None for grad in first_step):
        raise NotYet(
            "the gradients are right, but those of the first step are still held after the third, "
            "so memory grows with each step: empty your list once you have waited"
        )


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
    return lambda: None


def in_step(model):
    def hook(parameter):
        dist.all_reduce(parameter.grad)  # and backward waits
        parameter.grad /= dist.get_world_size()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(hook)
    return lambda: None


def only_once(model):
    handles = []

    def hook(parameter):
        dist.all_reduce(parameter.grad)
        parameter.grad /= dist.get_world_size()
        handles.pop().remove()

    for parameter in model.parameters():
        handles.append(parameter.register_post_accumulate_grad_hook(hook))
    return lambda: None


def returns_nothing(model):
    solution(model)


def never_emptied(model):
    jobs = []

    def hook(parameter):
        parameter.grad /= dist.get_world_size()
        jobs.append(dist.all_reduce(parameter.grad, async_op=True))

    def finish():
        for job in jobs:
            job.wait()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(hook)
    return finish


def wraps(model):
    return nn.parallel.DistributedDataParallel(model)


def last_layer_only(model):
    solution(model[-1])


def other_tensors(model):
    jobs = {}

    def hook(parameter):
        total = parameter.grad.clone()  # and p.grad becomes another tensor
        jobs[parameter] = total, dist.all_reduce(total, async_op=True)

    def finish():
        for parameter, (total, job) in jobs.items():
            job.wait()
            parameter.grad = total / dist.get_world_size()
        jobs.clear()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(hook)
    return finish


WRONG = (
    Wrong(after_the_end, "nothing is sent while backward still has a layer"),
    Wrong(not_divided, "after backward 1, the gradient of"),
    Wrong(only_once, "after backward"),
    Wrong(in_step, "backward stands still for a message"),
    Wrong(never_emptied, "those of the first step are still held after the third"),
    Wrong(returns_nothing, "expected a function that waits"),
    Wrong(wraps, "this is DDP itself"),
)
ALSO_RIGHT = (other_tensors,)
