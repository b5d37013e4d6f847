import contextlib
from contextlib import ExitStack, nullcontext

import torch
import torch.distributed as dist


# right
def accumulate(ddp, batches, loss_of):
    for number, x in enumerate(batches, 1):
        last = number == len(batches)
        with contextlib.nullcontext() if last else ddp.no_sync():
            (loss_of(ddp(x)) / len(batches)).backward()


# right
def accumulate(ddp, batches, loss_of):
    *early, last = batches
    with ddp.no_sync():
        for x in early:
            loss_of(ddp(x)).div(len(batches)).backward()
    loss_of(ddp(last)).div(len(batches)).backward()


# right
def accumulate(ddp, batches, loss_of):
    """The switch itself."""
    for i, x in enumerate(batches):
        ddp.require_backward_grad_sync = i == len(batches) - 1
        loss_of(ddp(x)).mul(1 / len(batches)).backward()


# right
def accumulate(ddp, batches, loss_of):
    """Divided at the end, gradient by gradient."""
    last = len(batches) - 1
    with ExitStack() as stack:
        stack.enter_context(ddp.no_sync())
        for x in batches[:-1]:
            loss_of(ddp(x)).backward()
    loss_of(ddp(batches[last])).backward()
    for p in ddp.parameters():
        p.grad = p.grad / len(batches)


# wrong: both are held in memory
def accumulate(ddp, batches, loss_of):
    """All losses, and one backward."""
    total = 0.0
    for x in batches[:-1]:
        with ddp.no_sync():
            total = total + loss_of(ddp(x))
    total = total + loss_of(ddp(batches[-1]))
    (total / len(batches)).backward()


# wrong: at most 1; you: 3
def accumulate(ddp, batches, loss_of):
    for x in batches:
        (loss_of(ddp(x)) / len(batches)).backward()


# wrong: 3 times too large
def accumulate(ddp, batches, loss_of):
    for i, x in enumerate(batches):
        with ddp.no_sync() if i < len(batches) - 1 else nullcontext():
            loss_of(ddp(x)).backward()


# wrong: the gradients were never sent
def accumulate(ddp, batches, loss_of):
    with ddp.no_sync():
        for x in batches:
            (loss_of(ddp(x)) / len(batches)).backward()


# wrong: at most 1; you: 3
def accumulate(ddp, batches, loss_of):
    """Only backward is inside."""
    for i, x in enumerate(batches):
        loss = loss_of(ddp(x)) / len(batches)
        with ddp.no_sync() if i < len(batches) - 1 else nullcontext():
            loss.backward()


# wrong: with 3 micro-batches, the gradient of weight is
def accumulate(ddp, batches, loss_of):
    """The gradients of the last one only."""
    for i, x in enumerate(batches):
        ddp.zero_grad()
        with ddp.no_sync() if i < len(batches) - 1 else nullcontext():
            (loss_of(ddp(x)) / len(batches)).backward()


# wrong: the gradient of weight is
def accumulate(ddp, batches, loss_of):
    """The wrong way round."""
    for i, x in enumerate(batches):
        with ddp.no_sync() if i == len(batches) - 1 else nullcontext():
            (loss_of(ddp(x)) / len(batches)).backward()


# wrong: at most 1; you: 6
def accumulate(ddp, batches, loss_of):
    """Past DDP, and by hand, each time."""
    for x in batches:
        (loss_of(ddp.module(x)) / len(batches)).backward()
        for p in ddp.parameters():
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()


# wrong: 'float' object has no attribute 'backward'
def accumulate(ddp, batches, loss_of):
    losses = [loss_of(ddp(x)) for x in batches]
    torch.stack(losses).mean().item().backward()


# wrong: both are held in memory
def accumulate(ddp, batches, loss_of):
    with ddp.no_sync():
        total = sum(loss_of(ddp(x)) for x in batches[:-1])
    ((total + loss_of(ddp(batches[-1]))) / len(batches)).backward()


# wrong: no_sync() is still on
def accumulate(ddp, batches, loss_of):
    for i, x in enumerate(batches):
        with ddp.no_sync() if i < len(batches) - 1 else contextlib.nullcontext():
            (loss_of(ddp(x)) / len(batches)).backward()
    ddp.require_backward_grad_sync = False
