"""Training and evaluation on any number of ranks. Nothing here starts a process.

Call these on every rank inside a running process group, or in one process without a group.
"""

from __future__ import annotations

import functools
import math
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
from ddp_helpers.data.batches import to_device
from ddp_helpers.group.lifetime import get_world_size
from ddp_helpers.training.best import check_rule
from ddp_helpers.training.checks import check_epochs, check_loader, check_wrapped
from ddp_helpers.training.early_stop import EarlyStop
from ddp_helpers.training.evaluation import evaluate
from ddp_helpers.training.finite import FiniteWatch
from ddp_helpers.training.losses import CrossEntropy
from ddp_helpers.training.objective import AnyLoss, Metrics, as_objective, check_gradient
from ddp_helpers.training.precision import MixedPrecision, as_precision
from ddp_helpers.training.records import EpochRecord, TrainMetrics
from ddp_helpers.training.resume import ResumableRun, settle_buckets
from ddp_helpers.training.steps import (
    EpochTotals,
    StepCount,
    any_rank,
    count_on_all_ranks,
    micro_batches,
    steps_done_and_due,
    sync_gradients,
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
    loss: AnyLoss = CrossEntropy(),  # noqa: B008 (it is frozen)
    uneven_inputs: bool = False,
    run: ResumableRun | None = None,
) -> TrainMetrics:
    """Train `model` on each batch of `loader` once.

    The gradient of each step is that of the sum over all samples of the global batch, divided by
    the sum of all counts (of samples, tokens, weights), whatever the shares of the ranks and
    micro-batches.

    Args:
        model: bare, or in DistributedDataParallel if there is more than one rank.
        loader: batches, equally many on all ranks: (inputs, targets), or whatever `loss` takes.
            Tuples, dicts and dataclasses of tensors, at any depth, are moved to the device whole.
        epoch: decides the order of the samples; counted from 0.
        progress: called as progress(step, steps, loss) after each step, step from 1, loss this
            rank's own, still on its device (`.item()` makes the CPU wait for the GPU).
        accumulation_steps: batches of `loader` in one optimizer step.
        precision: "fp32", "bf16", "fp16" (GPU only), or a MixedPrecision that outlives the epoch.
        max_grad_norm: clip the averaged gradient to this norm.
        scheduler: stepped after each optimizer step.
        loss: a loss of torch.nn such as `nn.MSELoss()`, or `CrossEntropy(ignore_index=...)`; or
            f(outputs, targets), which gives the loss of each sample, or their mean; or
            f(model, batch) -> (sum, count), for any batch and any number of inputs and outputs:
            the sum is what has the gradient, the count what the sum of all ranks is divided by.
            The last one is told by the names of its parameters, `model` or `batch`.
        uneven_inputs: allow ranks to have different numbers of batches.
        run: what `fit` saves in mid-epoch; its loader is `loader`.

    Raises:
        ValueError: several ranks but no DDP wrapper, a loader without a batch, an option that
            is out of range, or a batch or a loss of another form.
        FloatingPointError: a loss or a gradient that is not finite; on all ranks.
    """
    check_wrapped(model)
    check_loader(loader, accumulation_steps)
    amp, objective = as_precision(precision, device), as_objective(loss)
    watch = FiniteWatch(epoch, device)
    totals = run.totals if run else EpochTotals(device)
    _set_epoch(loader, epoch)  # without it every epoch repeats one shuffle
    batches = until_all_are_done(loader, device) if uneven_inputs else loader
    first, steps = steps_done_and_due(loader, accumulation_steps)
    model.train()
    _wait_for_gpu(device)
    totals.start_clock()
    for step, window in enumerate(micro_batches(batches, accumulation_steps), start=first):
        known = None if uneven_inputs else loader
        total = count_on_all_ranks(window, known, objective, step, device)
        counted = StepCount(total, len(window), device)
        parts: list[Tensor] = []  # of this rank's loss
        optimizer.zero_grad()
        for number, batch in enumerate(window, start=1):
            batch = to_device(batch, device)
            with sync_gradients(model, last=number == len(window)):
                with amp.autocast():
                    terms = objective(model, batch)
                check_gradient(terms.sum)
                amp.backward(counted.mean_part(terms.sum, terms.count))
            parts.append(terms.sum.detach())
        counted.settle(model.parameters())
        size = amp.step(optimizer, model.parameters(), max_grad_norm)
        if scheduler is not None and size is not None:
            scheduler.step()
        loss_sum = functools.reduce(torch.add, parts)
        mean = counted.mean_of(loss_sum)
        totals.add(loss_sum, counted.mine)
        watch.note(step + 1, mean, size, counted.total if objective.nothing_is_an_error else None)
        if progress is not None:
            progress(step + 1, steps, mean)
        if run is not None:
            run.after_step(before_save=lambda: watch.look(model.parameters()))
    watch.look(model.parameters())
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
    loss: AnyLoss = CrossEntropy(),  # noqa: B008
    metrics: Metrics | None = None,
    uneven_inputs: bool = False,
    early_stop: EarlyStop | None = None,
    checkpoints: CheckpointFolder | None = None,
    save_every: int | None = None,
    best: str = "min loss",
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
        metrics: as in `evaluate`, of the test loader; what they give is in the records.
        early_stop: looks at the test loss; if one rank would stop, all do.
        checkpoints: a folder for exact resume. If it holds a checkpoint, the run goes on from
            the newest whole one, in mid-epoch too, and `start_epoch` is not looked at. The
            loader must come from `make_resumable_loader`.
        save_every: also save each so many optimizer steps, not just after each epoch.
        best: with `checkpoints`, the epoch that has the least (or the largest) of this so far is
            kept as well, whatever the folder's `keep`: "min loss" and "max accuracy", of the
            test loader, or the name of a metric, such as "max recall". `checkpoints.load_best()`.

    Returns:
        A record for each epoch trained here, and with `checkpoints` also for those trained
        before; the same on every rank, but for the seconds of what a restart cut short.

    Raises:
        ValueError: epochs below 1, start_epoch outside 0 .. epochs, options that don't fit, or
            a resumed run whose learning rate would jump.
        FloatingPointError: a loss or a gradient that is not finite; on all ranks, and before it
            is in any checkpoint.
        CheckpointError: see CheckpointFolder.
    """
    check_epochs(epochs, start_epoch, save_every, checkpoints)
    check_rule(best)
    loss = as_objective(loss)  # what is wrong with it is said before anything is loaded
    amp, run = as_precision(precision, device), None
    records: list[EpochRecord] = []
    if checkpoints is not None:
        parts = {"model": model, "optimizer": optimizer, "precision": amp}
        parts |= {"scheduler": scheduler, "early_stop": early_stop}
        run = ResumableRun(
            checkpoints,
            train_loader,
            device,
            save_every=save_every,
            keep_best=best,
            epochs=epochs,
            **parts,
        )
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
        test = evaluate(
            model, test_loader, device=device, precision=amp, loss=loss, metrics=metrics
        )
        if not math.isfinite(test.loss):  # the same number on all ranks
            raise FloatingPointError(
                f"epoch {epoch + 1}: the loss on the test loader is {test.loss}: expected a finite "
                "number; look for samples that give such a loss, or lower the learning rate; all "
                "ranks stop here, and no checkpoint was written after this epoch"
            )
        record = EpochRecord(
            epoch=epoch,
            train_loss=train.loss,
            test_loss=test.loss,
            test_accuracy=test.accuracy,
            samples_per_second=train.samples_per_second,
            seconds=_slowest(time.perf_counter() - started, device),
            world_size=get_world_size(),
            metrics=test.metrics,
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
    for name in ("sampler", "batch_sampler", "dataset"):
        set_epoch = getattr(getattr(loader, name, None), "set_epoch", None)
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
