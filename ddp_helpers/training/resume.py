"""Exact resume: save all that a run depends on, and go on as if it had never stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypedDict

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ddp_helpers.checkpoints.file import unwrap
from ddp_helpers.checkpoints.folder import CheckpointFolder
from ddp_helpers.checkpoints.random_state import (
    RandomState,
    capture_random_state,
    random_state_kept,
    restore_random_state,
    seed_everything,
)
from ddp_helpers.data.batches import to_device
from ddp_helpers.data.sampler import GlobalBatchSampler
from ddp_helpers.group.lifetime import get_rank, get_world_size
from ddp_helpers.training.best import is_best
from ddp_helpers.training.objective import AnyLoss, as_objective
from ddp_helpers.training.precision import MixedPrecision
from ddp_helpers.training.records import EpochRecord
from ddp_helpers.training.schedule import check_schedule
from ddp_helpers.training.steps import EpochTotals, TotalsState

# a sum of two numbers is the same in any order
_ORDER_ROUNDS_FROM_RANKS = 3


class RankState(TypedDict):
    """What a checkpoint holds for each rank."""

    random: RandomState
    totals: TotalsState


class ResumableRun:
    """A run that leaves checkpoints: weights, optimizer, position, and each rank's random state.

    Saved and loaded on the same number of ranks (and threads), it gives the same bits as a run
    that was never stopped. On another number of ranks the samples of each global batch are the
    same, sums differ in their order, and random draws (dropout) start anew from a fixed seed.

    Args:
        folder: where the checkpoints are.
        loader: over a GlobalBatchSampler, from `make_resumable_loader`.
        save_every: optimizer steps from one checkpoint in mid-epoch to the next.
        keep_best: the rule by which the checkpoint of the best epoch is kept, as in `fit`.
        epochs: what this run was asked for; a resumed one with another number is told so.
        parts: by name, what has a state_dict: model, optimizer, ...; None is left out.

    Raises:
        ValueError: the loader can't be resumed.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        loader: DataLoader,
        device: torch.device | str,
        *,
        save_every: int | None = None,
        keep_best: str = "min loss",
        epochs: int | None = None,
        **parts: Any,
    ) -> None:
        self.keep_best, self.epochs = keep_best, epochs
        self.sampler = _resumable_sampler(loader)
        self.save_every = save_every
        self.folder = folder
        self.parts = {name: part for name, part in parts.items() if part is not None}
        self.totals = EpochTotals(device)
        self.records: list[EpochRecord] = []

    def save(self) -> Path:
        """One more checkpoint; all ranks must call it, between two optimizer steps."""
        mine: RankState = {
            "random": capture_random_state(),
            "totals": self.totals.state_dict(),
        }
        ranks = [mine] * get_world_size()
        if len(ranks) > 1:
            dist.all_gather_object(ranks, mine)
        return self.folder.save(
            **self.parts,
            sampler=self.sampler,
            ranks=ranks,
            records=[asdict(record) for record in self.records],
            epochs=self.epochs,
        )

    def after_step(self, before_save: Callable[[], None] = lambda: None) -> None:
        """One more step was taken; save if it is time to. Steps are counted over the epochs."""
        self.sampler.advance()
        done = self.sampler.epoch * self.sampler.steps + self.sampler.finished
        if self.save_every is not None and done % self.save_every == 0:
            before_save()
            self.save()

    def after_epoch(self, record: EpochRecord) -> None:
        """Move to the start of the next epoch, and save."""
        self.records.append(record)
        self.totals.reset()
        self.sampler.set_epoch(record.epoch + 1)
        self._keep_if_best(self.save())

    def load(self) -> bool:
        """Go on from the newest whole checkpoint; False if there is none.

        Raises:
            ValueError: it was saved with other parts, or another order of samples.
            CheckpointError: there are checkpoints, but none is whole.
        """
        found = self.folder.load_newest()
        if found is None:
            return False
        path, state = found
        ranks, records, epochs = state.pop("ranks"), state.pop("records"), state.pop("epochs", None)
        self.sampler.load_state_dict(state.pop("sampler"))
        _check_parts(state.keys(), self.parts.keys(), path.name)
        check_schedule(state, self.parts.get("scheduler"), path.name)
        for name, part in self.parts.items():
            target = unwrap(part) if isinstance(part, nn.Module) else part
            target.load_state_dict(state[name])  # every rank the same file, so DDP stays in step
        self.records = [EpochRecord(**record) for record in records]
        self._restore_rank(ranks)
        if get_rank() == 0:
            place = f"epoch {self.sampler.epoch + 1}, step {self.sampler.finished}"
            print(f"resumed from {path.name}: {place}", flush=True)
        self._tell_more_epochs(epochs)
        if self.records and self.sampler.finished == 0:
            self._keep_if_best(path)  # a run that was killed just before it could
        return True

    def _keep_if_best(self, path: Path) -> None:
        if is_best(self.records, self.keep_best):
            self.folder.keep_best(path)

    def _tell_more_epochs(self, before: int | None) -> None:
        scheduler = self.parts.get("scheduler")
        if scheduler is None or before in (None, self.epochs) or get_rank() != 0:
            return
        rates = ", ".join(f"{group['lr']:.3g}" for group in scheduler.optimizer.param_groups)
        print(
            f"epochs was {before} and is {self.epochs} now: the scheduler goes on as it was, from "
            f"the learning rate {rates}; to train on at another rate, start anew in another "
            "folder from these weights",
            flush=True,
        )

    def _restore_rank(self, ranks: Sequence[RankState]) -> None:
        rank, world_size = get_rank(), get_world_size()
        if len(ranks) == world_size:
            restore_random_state(ranks[rank]["random"])
            self.totals.load_state_dict(ranks[rank]["totals"])
            return
        if rank == 0:
            print(
                f"saved on {len(ranks)} ranks, resumed on {world_size}: the same samples in each "
                "step, but other random draws and other rounding",
                flush=True,
            )
        seed_everything(self.sampler.seed, self.sampler.epoch, self.sampler.finished, rank)
        for saved in ranks[rank::world_size]:  # each saved share is counted by one rank
            self.totals.merge(saved["totals"])


def settle_buckets(
    model: nn.Module,
    loader: DataLoader,
    loss: AnyLoss,
    amp: MixedPrecision,
    device: torch.device | str,
) -> None:
    """Let DDP choose its buckets for good, before the first step, and leave no other trace.

    DDP reorders its buckets after its first backward. The order decides how three or more ranks
    round their sums, so the first step after a restart would differ in the last bit from the same
    step of a run that was never stopped.
    """
    wrapped = isinstance(unwrap_compiled(model), DistributedDataParallel)
    if not wrapped or get_world_size() < _ORDER_ROUNDS_FROM_RANKS:
        return
    modules = list(model.modules())
    kept = [(module, name, buffer.clone()) for module in modules for name, buffer in _own(module)]
    model.train()
    with random_state_kept():
        sample = loader.dataset[0]
        batch = loader.collate_fn([sample, sample])  # BatchNorm refuses a single one
        with amp.autocast():
            value = as_objective(loss)(model, to_device(batch, device)).sum
        value.backward()
    for module, name, buffer in kept:
        getattr(module, name).copy_(buffer)
    for parameter in model.parameters():
        parameter.grad = None


def unwrap_compiled(model: nn.Module) -> nn.Module:
    """The module that torch.compile was given, or `model`."""
    return getattr(model, "_orig_mod", model)


def _own(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    return module.named_buffers(recurse=False)


def _resumable_sampler(loader: DataLoader) -> GlobalBatchSampler:
    sampler = loader.batch_sampler
    if not isinstance(sampler, GlobalBatchSampler):
        raise ValueError(
            f"checkpoints need a loader that knows its place, but this one has a "
            f"{type(loader.sampler).__name__}: make it with make_resumable_loader"
        )
    if loader.generator is None:
        raise ValueError(
            "the training DataLoader has no generator, so it draws from torch's own at each "
            "start and a resumed run would differ: make it with make_resumable_loader"
        )
    return sampler


def _check_parts(saved: Set[str], given: Set[str], name: str) -> None:
    if saved != given:
        raise ValueError(
            f"{name} holds {', '.join(sorted(saved))}, but this run has "
            f"{', '.join(sorted(given))}: give fit the same as before, or another folder"
        )
