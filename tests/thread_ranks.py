"""Threads that play the ranks of a process group: fast, in one process, and any number of them.

For code that asks for few and small collectives. torch.distributed's functions are replaced while
`on_ranks` runs; DistributedDataParallel needs a real group, so `Averaged` stands in for it.
"""

from __future__ import annotations

import contextlib
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn

LIMIT_S = 20


class ThreadGroup:
    """What the threads know of one another. A rank that stays away breaks the barrier for all."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.mine = threading.local()
        self.barrier = threading.Barrier(size, timeout=LIMIT_S)
        self.given: list = [None] * size
        self.calls: list[list[str]] = [[] for _ in range(size)]

    @property
    def rank(self) -> int:
        return self.mine.rank

    def exchange(self, name: str, value: object) -> list:
        """What each rank brought to this collective, which must be the same for all."""
        self.calls[self.rank].append(name)
        self.given[self.rank] = (name, pickle.dumps(value))
        self.barrier.wait()
        given = list(self.given)
        self.barrier.wait()
        assert len({name for name, _ in given}) == 1, f"crossed: {[name for name, _ in given]}"
        return [pickle.loads(each) for _, each in given]

    def all_reduce(self, tensor, op=dist.ReduceOp.SUM):
        values = torch.stack(self.exchange("all_reduce", tensor.detach()))
        joined = {dist.ReduceOp.SUM: values.sum, dist.ReduceOp.MAX: values.amax}[op](0)
        tensor.data.copy_(joined)

    def broadcast(self, tensor, src):
        tensor.data.copy_(self.exchange("broadcast", tensor.detach())[src])

    def broadcast_object_list(self, objects, src):
        objects[:] = self.exchange("broadcast_object_list", objects)[src]

    def all_gather_object(self, objects, value):
        objects[:] = self.exchange("all_gather_object", value)


def on_ranks(function: Callable, size: int) -> tuple[list, ThreadGroup]:
    """Run `function(rank)` on each rank; the values in rank order, and what the ranks called.

    Raises the error of a rank that failed, rather than that of one that waited for it.
    """
    group = ThreadGroup(size)

    def run(rank):
        group.mine.rank = rank
        try:
            return function(rank)
        except BaseException:
            group.barrier.abort()
            raise

    names = "all_reduce broadcast broadcast_object_list all_gather_object"
    replaced = {name: getattr(group, name) for name in names.split()}
    replaced |= {
        "is_initialized": lambda: hasattr(group.mine, "rank"),
        "get_rank": lambda: group.rank,
        "get_world_size": lambda: size,
    }
    with mock.patch.multiple(dist, **replaced), ThreadPoolExecutor(size) as pool:
        ended = [pool.submit(run, rank) for rank in range(size)]
        errors = [future.exception() for future in ended]
    own = [
        error for error in errors if error and not isinstance(error, threading.BrokenBarrierError)
    ]
    for error in own or filter(None, errors):
        raise error
    return [future.result() for future in ended], group


class Averaged(nn.Module):
    """Averages gradients as DDP does: in the backward, if the forward was not under no_sync."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.syncing = self.due = True
        for parameter in module.parameters():
            parameter.register_post_accumulate_grad_hook(self.average)

    def forward(self, *inputs):
        self.due = self.syncing
        return self.module(*inputs)

    @contextlib.contextmanager
    def no_sync(self):
        self.syncing = False
        try:
            yield
        finally:
            self.syncing = True

    def average(self, parameter):
        if self.due:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()
