"""Training and evaluation on any number of ranks. Nothing here starts a process.

Call these on every rank inside a running process group, or in one process without a group.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from ddp_helpers.checkpoints.file import save_checkpoint
from ddp_helpers.checkpoints.folder import CheckpointFolder
from ddp_helpers.group.lifetime import get_world_size
from ddp_helpers.training.checks import check_epochs, check_loader, check_wrapped
from ddp_helpers.training.early_stop import EarlyStop
from ddp_helpers.training.evaluation import evaluate
from ddp_helpers.training.losses import CrossEntropy, Loss
from ddp_helpers.training.precision import MixedPrecision, as_precision
from ddp_helpers.training.records import EpochRecord, TrainMetrics
from ddp_helpers.training.resume import ResumableRun, settle_buckets
from ddp_helpers.training.steps import (
    EpochTotals,
    any_rank,
    micro_batches,
    steps_done_and_due,
    sync_gradients,
    terms_on_all_ranks,
    until_all_are_done,
)

Progress = Callable[[int, int, Tensor], None]


def train_one_epoch(
    model: nn.Module,
    loader: DataLoader,
    optimizer: Optimizer,
    *,
    device: torch.device | str,
    epoch: int,
    progress: Progress | None = None,
    accumulation_steps: int = 1,
    precision: str | MixedPrecision = "fp32",
    max_grad_norm: float | None = None,
    scheduler: LRScheduler | None = None,
    loss: Loss = CrossEntropy(),  # noqa: B008 (it is frozen)
    uneven_inputs: bool = False,
    run: ResumableRun | None = None,
) -> TrainMetrics:
    """Train `model` on each batch of `loader` once.

    The gradient of each step is that of the mean over all samples (or tokens) of the global
    batch, whatever the shares of the ranks and micro-batches.

    Args:
        model: bare, or in DistributedDataParallel if there is more than one rank.
        loader: (images, labels) batches, equally many on all ranks.
        epoch: decides the order of the samples; counted from 0.
        progress: called as progress(step, steps, loss) after each step, step from 1, loss this
            rank's own, still on its device (`.item()` makes the CPU wait for the GPU).
        accumulation_steps: batches of `loader` in one optimizer step.
        precision: "fp32", "bf16", "fp16" (GPU only), or a MixedPrecision that outlives the epoch.
        max_grad_norm: clip the averaged gradient to this norm.
        scheduler: stepped after each optimizer step.
        loss: a sum and a count; `CrossEntropy(ignore_index=...)` for tokens.
        uneven_inputs: allow ranks to have different numbers of batches.
        run: what `fit` saves in mid-epoch; its loader is `loader`.

    Raises:
        ValueError: several ranks but no DDP wrapper, a loader without a batch, or an option that
            is out of range.
    """
    check_wrapped(model)
    check_loader(loader, accumulation_steps)
    amp, world_size = as_precision(precision, device), get_world_size()
    totals = run.totals if run else EpochTotals(device)
    _set_epoch(loader, epoch)  # without it every epoch repeats one shuffle
    batches = until_all_are_done(loader, device) if uneven_inputs else loader
    first, steps = steps_done_and_due(loader, accumulation_steps)
    model.train()
    _wait_for_gpu(device)
    totals.start_clock()
    for step, window in enumerate(micro_batches(batches, accumulation_steps), start=first):
        known = None if uneven_inputs else loader
        terms = terms_on_all_ranks(window, known, loss, step, device)
        parts: list[Tensor] = []  # of this rank's loss
        count = 0
        optimizer.zero_grad()
        for number, (images, labels) in enumerate(window, start=1):
            count += loss.count(labels)
            images = images.to(device, non_blocking=True)
            labels = labels.to(device, non_blocking=True)
            with sync_gradients(model, last=number == len(window)):
                with amp.autocast():
                    part = loss.sum(model(images), labels)
                # DDP divides the sum over the ranks by world_size in here: the mean over all terms
                amp.backward(part / (terms / world_size))
            parts.append(part.detach())
        stepped = amp.step(optimizer, model.parameters(), max_grad_norm)
        if scheduler is not None and stepped:
            scheduler.step()
        loss_sum = functools.reduce(torch.add, parts)
        totals.add(loss_sum, count)
        if progress is not None:
            progress(step + 1, steps, loss_sum / max(count, 1))
        if run is not None:
            run.after_step()
    _wait_for_gpu(device)
    seconds = _slowest(totals.seconds, device)
    mean_loss, samples = totals.over_all_ranks()
    return TrainMetrics(mean_loss, samples, seconds)


def fit(
    model: nn.Module,
    train_loader: DataLoader,
    test_loader: DataLoader,
    optimizer: Optimizer,
    *,
    epochs: int,
    device: torch.device | str,
    start_epoch: int = 0,
    checkpoint_path: str | Path | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    progress: Progress | None = None,
    accumulation_steps: int = 1,
    precision: str | MixedPrecision = "fp32",
    max_grad_norm: float | None = None,
    scheduler: LRScheduler | None = None,
    loss: Loss = CrossEntropy(),  # noqa: B008
    uneven_inputs: bool = False,
    early_stop: EarlyStop | None = None,
    checkpoints: CheckpointFolder | None = None,
    save_every: int | None = None,
) -> list[EpochRecord]:
    """Train from `start_epoch` up to `epochs`, evaluating after each epoch.

    Args:
        epochs: the total, so that a resumed run names the same number as the first.
        start_epoch: the first epoch to train, counted from 0.
        checkpoint_path: written after each epoch, with `model`, `optimizer` and `epoch`, the
            number of finished epochs: the `start_epoch` of a run that goes on from there.
        on_epoch: called with each record, on every rank (look at the rank before you print).
        progress, accumulation_steps, precision, max_grad_norm, scheduler, loss, uneven_inputs:
            as in `train_one_epoch`.
        early_stop: looks at the test loss; if one rank would stop, all do.
        checkpoints: a folder for exact resume. If it holds a checkpoint, the run goes on from
            the newest whole one, in mid-epoch too, and `start_epoch` is not looked at. The
            loader must come from `make_resumable_loader`.
        save_every: also save each so many optimizer steps, not just after each epoch.

    Returns:
        A record for each epoch trained here, and with `checkpoints` also for those trained
        before; the same on every rank, but for the seconds of what a restart cut short.

    Raises:
        ValueError: epochs below 1, start_epoch outside 0 .. epochs, or options that don't fit.
        CheckpointError: see CheckpointFolder.
    """
    check_epochs(epochs, start_epoch, save_every, checkpoints)
    amp, run = as_precision(precision, device), None
    records: list[EpochRecord] = []
    if checkpoints is not None:
        parts = {"model": model, "optimizer": optimizer, "precision": amp}
        parts |= {"scheduler": scheduler, "early_stop": early_stop}
        run = ResumableRun(checkpoints, train_loader, device, save_every=save_every, **parts)
        settle_buckets(model, train_loader, loss, amp, device)
        if run.load():
            start_epoch, records = run.sampler.epoch, list(run.records)
    for epoch in range(start_epoch, epochs):
        if early_stop is not None and any_rank(early_stop.done, device):
            break
        started = time.perf_counter()
        train = train_one_epoch(
            model,
            train_loader,
            optimizer,
            device=device,
            epoch=epoch,
            progress=progress,
            accumulation_steps=accumulation_steps,
            precision=amp,
            max_grad_norm=max_grad_norm,
            scheduler=scheduler,
            loss=loss,
            uneven_inputs=uneven_inputs,
            run=run,
        )
        test = evaluate(model, test_loader, device=device, precision=amp, loss=loss)
        record = EpochRecord(
            epoch=epoch,
            train_loss=train.loss,
            test_loss=test.loss,
            test_accuracy=test.accuracy,
            samples_per_second=train.samples_per_second,
            seconds=_slowest(time.perf_counter() - started, device),
            world_size=get_world_size(),
        )
        records.append(record)
        if early_stop is not None:
            early_stop.update(record.test_loss)
        if checkpoint_path is not None:
            save_checkpoint(checkpoint_path, model=model, optimizer=optimizer, epoch=epoch + 1)
        if run is not None:
            run.after_epoch(record)
        if on_epoch is not None:
            on_epoch(record)
    return records


def _set_epoch(loader: DataLoader, epoch: int) -> None:
    for part in (loader.sampler, loader.batch_sampler, loader.dataset):
        set_epoch = getattr(part, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)


def _slowest(seconds: float, device: torch.device | str) -> float:
    """The largest value over the ranks."""
    if get_world_size() == 1:
        return seconds
    value = torch.tensor(seconds, dtype=torch.float64, device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value.item()


def _wait_for_gpu(device: torch.device | str) -> None:
    """A GPU works behind the CPU's back, so it must be done before the clock is read."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
