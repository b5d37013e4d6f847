"""The parts of an optimizer step over several ranks and micro-batches."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any, TypedDict

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from ddp_helpers.data.batches import empty_like
from ddp_helpers.data.sampler import GlobalBatchSampler
from ddp_helpers.group.lifetime import get_world_size
from ddp_helpers.training.objective import Count, Objective

Batch = Any


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


def count_on_all_ranks(
    window: list[Batch],
    loader: DataLoader | None,
    loss: Objective,
    step: int,
    device: torch.device | str,
) -> Count | None:
    """What the loss counts in one optimizer step, over all ranks and micro-batches, at its start.

    Where the sampler knows, no rank has to ask. Otherwise it is an all_reduce a step.

    Args:
        loader: knows what the other ranks have; None to ask them in any case.
        step: of this epoch, counted from 0.

    Returns:
        None where only the forward can tell.
    """
    mine = loss.count_ahead(window)
    if mine is None or get_world_size() == 1:
        return mine
    if loader is not None and loss.counts_samples(window[0]):
        batch_sampler = getattr(loader, "batch_sampler", None)
        if isinstance(batch_sampler, GlobalBatchSampler):
            return batch_sampler.samples_in(step)
        if isinstance(getattr(loader, "sampler", None), DistributedSampler):
            return mine * get_world_size()  # it repeats samples until all shares are equal
    return sum_over_ranks(mine, device)


class StepCount:
    """Divides the loss of each micro-batch, so that the gradient is that of the mean over all.

    The mean is: the sum over all ranks and micro-batches, divided by the sum of all their counts.
    If only the forward tells the count, that of the first micro-batch of all ranks stands for the
    others meanwhile, and the gradient is put right at the end. Any number that is the same on all
    ranks would do; a good guess keeps what is in 16 bits in its range.

    Args:
        total: over all ranks and micro-batches, if it is known.
        parts: micro-batches in this step.
    """

    def __init__(self, total: Count | None, parts: int, device: torch.device | str) -> None:
        self.total, self._parts, self._device = total, parts, device
        self.mine: Count = 0
        self._divisor = None if total is None else _or_one(total)

    def mean_part(self, value: Tensor, count: Count) -> Tensor:
        """This micro-batch's part of the mean, as DDP wants it."""
        self.mine = self.mine + count
        if self._divisor is None:
            first = sum_over_ranks(count, self._device)
            self.total = first if self._parts == 1 else None
            self._divisor = _or_one(first * self._parts)
        # DDP divides the sum over the ranks by world_size
        return value / (self._divisor / get_world_size())

    def mean_of(self, loss_sum: Tensor) -> Tensor:
        """This rank's own mean loss in this step."""
        return loss_sum / _or_one(self.mine)

    def settle(self, parameters: Iterable[Tensor]) -> None:
        """After the last backward: the gradient is divided by what was counted in the end."""
        if self.total is not None or self._divisor is None:
            return
        self.total = sum_over_ranks(self.mine, self._device)
        factor = self._divisor / _or_one(self.total)
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(factor)


def sum_over_ranks(value: Count, device: torch.device | str) -> Tensor:
    """The same on every rank; all must ask."""
    total = torch.as_tensor(value, dtype=torch.float64, device=device).clone()
    if get_world_size() > 1:
        dist.all_reduce(total)
    return total


def _or_one(count: Count) -> Count:
    """Where nothing counts, the sum is nothing too, and must not become a nan."""
    return torch.where(count == 0, 1.0, count) if isinstance(count, Tensor) else count or 1


def steps_done_and_due(loader: DataLoader, accumulation_steps: int) -> tuple[int, int]:
    """Optimizer steps of this epoch that are behind (after a resume), and those of all of it."""
    sampler = getattr(loader, "batch_sampler", None)
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
    count: float
    seconds: float


class EpochTotals:
    """What this rank has trained on in an epoch: sum of losses, their count, seconds."""

    def __init__(self, device: torch.device | str) -> None:
        self.loss = torch.zeros((), dtype=torch.float64, device=device)
        self.count: Count = 0
        self._seconds = 0.0  # until the clock was started
        self._started: float | None = None

    def add(self, loss_sum: Tensor, count: Count) -> None:
        """One batch more."""
        self.loss += loss_sum.detach()  # stays on its device: .item() would wait for the GPU
        self.count = self.count + count

    def start_clock(self) -> None:
        """From here on time counts."""
        self._started = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Of this epoch, also those before a resume."""
        since = 0.0 if self._started is None else time.perf_counter() - self._started
        return self._seconds + since

    def over_all_ranks(self) -> tuple[float, float]:
        """The mean loss and the count. Every rank gets the same."""
        count = torch.as_tensor(self.count, dtype=self.loss.dtype, device=self.loss.device)
        sums = torch.stack([self.loss, count])
        if get_world_size() > 1:
            dist.all_reduce(sums)
        loss_sum, total = sums.tolist()
        return loss_sum / (total or 1), whole(total)

    def state_dict(self) -> TotalsState:
        count = whole(float(self.count))
        return {"loss": self.loss.item(), "count": count, "seconds": self.seconds}

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


def whole(count: float) -> float:
    """A count of samples as an int; one of weights need not be whole."""
    return int(count) if count.is_integer() else count
