"""The parts of an optimizer step over several ranks and micro-batches."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Iterable, Iterator
from typing import TypedDict

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from ddp_helpers.data.loaders import empty_like
from ddp_helpers.data.sampler import GlobalBatchSampler
from ddp_helpers.group.lifetime import get_world_size
from ddp_helpers.training.losses import Loss

Batch = tuple[Tensor, Tensor]


def micro_batches(batches: Iterable[Batch], accumulation_steps: int) -> Iterator[list[Batch]]:
    """The batches of one optimizer step at a time; the last step may have fewer."""
    batches = iter(batches)
    while window := list(itertools.islice(batches, accumulation_steps)):
        yield window


def sync_gradients(model: nn.Module, last: bool) -> contextlib.AbstractContextManager:
    """Gradients are averaged over the ranks in the backward of the last micro-batch only.

    Wrap the forward too: it is the forward that decides whether DDP averages, not the backward.
    """
    no_sync = getattr(model, "no_sync", None)
    return contextlib.nullcontext() if last or no_sync is None else no_sync()


def terms_on_all_ranks(
    window: list[Batch],
    loader: DataLoader | None,
    loss: Loss,
    step: int,
    device: torch.device | str,
) -> float | Tensor:
    """The terms of the loss in one optimizer step, over all ranks and micro-batches; at least 1.

    Where the sampler knows, no rank has to ask. Otherwise it is an all_reduce a step.

    Args:
        loader: knows what the other ranks have; None to ask them in any case.
        step: of this epoch, counted from 0.
    """
    mine = sum(loss.count(labels) for _, labels in window)
    if get_world_size() == 1:
        return max(mine, 1)
    if loader is not None and loss.counts_samples(window[0][1]):
        if isinstance(loader.batch_sampler, GlobalBatchSampler):
            return loader.batch_sampler.samples_in(step)
        if isinstance(loader.sampler, DistributedSampler):
            return mine * get_world_size()  # it repeats samples until all shares are equal
    total = torch.tensor(float(mine), dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.clamp_(min=1)


def steps_done_and_due(loader: DataLoader, accumulation_steps: int) -> tuple[int, int]:
    """Optimizer steps of this epoch that are behind (after a resume), and those of all of it."""
    sampler = loader.batch_sampler
    if isinstance(sampler, GlobalBatchSampler):
        return sampler.finished, sampler.steps
    return 0, math.ceil(len(loader) / accumulation_steps)


def until_all_are_done(batches: Iterable[Batch], device: torch.device | str) -> Iterator[Batch]:
    """For ranks with different numbers of batches: who has run out goes on with empty ones.

    torch's `Join` shadows DDP's collectives instead, but the rank that has run out takes no
    optimizer step: Adam's averages fall behind on it, and the next epoch drifts apart.
    Costs an all_reduce a batch.

    Raises:
        ValueError: a rank has no batch at all, so it can't know the shapes of an empty one.
    """
    batches = iter(batches)
    batch = last = next(batches, None)
    if any_rank(batch is None, device):
        raise ValueError("uneven_inputs: a rank has no batch at all: give each at least one")
    while any_rank(batch is not None, device):
        last = empty_like(last) if batch is None else batch
        yield last
        batch = next(batches, None)


def any_rank(flag: bool, device: torch.device | str = "cpu") -> bool:
    """True on every rank if it is True on one; all ranks must ask.

    A rank that stops alone leaves the others waiting in their next collective.
    """
    if get_world_size() == 1:
        return flag
    value = torch.tensor(int(flag), device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


class TotalsState(TypedDict):
    loss: float
    count: int
    seconds: float


class EpochTotals:
    """What this rank has trained on in an epoch: sum of losses, their count, seconds."""

    def __init__(self, device: torch.device | str) -> None:
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.count = 0
        self._seconds = 0.0  # until the clock was started
        self._started: float | None = None

    def add(self, loss_sum: Tensor, count: int) -> None:
        """One batch more."""
        self.loss += loss_sum.detach()  # stays on its device: .item() would wait for the GPU
        self.count += count

    def start_clock(self) -> None:
        """From here on time counts."""
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Of this epoch, also those before a resume."""
        since = 0.0 if self._started is None else time.perf_counter() - self._started
        return self._seconds + since

    def over_all_ranks(self) -> tuple[float, int]:
        """The mean loss and the count. Every rank gets the same."""
        sums = torch.stack([self.loss, torch.full_like(self.loss, self.count)])
        if get_world_size() > 1:
            dist.all_reduce(sums)
        loss_sum, count = sums.tolist()
        return loss_sum / max(count, 1), int(count)

    def state_dict(self) -> TotalsState:
        return {"loss": self.loss.item(), "count": self.count, "seconds": self.seconds}

    def load_state_dict(self, state: TotalsState) -> None:
        self.reset()
        self.merge(state)

    def merge(self, state: TotalsState) -> None:
        """Add what another rank had trained on, in a run with more ranks."""
        self.loss += state["loss"]
        self.count += state["count"]
        self._seconds = max(self._seconds, state["seconds"])

    def reset(self) -> None:
        """A new epoch."""
        self.loss.zero_()
        self.count, self._seconds, self._started = 0, 0.0, None
