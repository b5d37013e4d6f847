"""Training and evaluation on any number of ranks. Nothing here starts a process.

Call these on every rank inside a running process group, or in one process without a group.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from ddp_helpers.checkpoint import load_checkpoint, save_checkpoint, unwrap
from ddp_helpers.data import load_mnist_5k, make_eval_loader, make_train_loader
from ddp_helpers.model import SmallCNN

_TEST_BATCH = 250

Progress = Callable[[int, int, Tensor], None]


@dataclass(frozen=True)
class TrainMetrics:
    """One epoch of training, over all ranks."""

    loss: float
    """Mean over the samples, measured as the weights changed."""
    samples: int
    seconds: float
    """Of the slowest rank."""

    @property
    def samples_per_second(self) -> float:
        """All ranks together."""
        return self.samples / self.seconds


@dataclass(frozen=True)
class EvalMetrics:
    """One evaluation, over all ranks: each sample counted as often as the loaders gave it."""

    loss: float
    correct: int
    samples: int

    @property
    def accuracy(self) -> float:
        """From 0 to 1."""
        return self.correct / self.samples


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch gave; the same on every rank."""

    epoch: int
    """Counted from 0."""
    train_loss: float
    test_loss: float
    test_accuracy: float
    """From 0 to 1."""
    samples_per_second: float
    """In training, all ranks together."""
    seconds: float
    """Of training and evaluation."""
    world_size: int


def train_one_epoch(
    model: nn.Module,
    loader: DataLoader,
    optimizer: Optimizer,
    *,
    device: torch.device | str,
    epoch: int,
    progress: Progress | None = None,
) -> TrainMetrics:
    """Train `model` on each batch of `loader` once.

    Args:
        model: bare, or in DistributedDataParallel if there is more than one rank.
        loader: (images, labels) batches, equally many on all ranks.
        epoch: decides the order of the samples; counted from 0.
        progress: called as progress(step, steps, loss) after each batch, step from 1, loss this
            rank's own, still on its device (`.item()` makes the CPU wait for the GPU).

    Raises:
        ValueError: several ranks but no DDP wrapper, or a loader without a batch.
    """
    _check_wrapped(model)
    if len(loader) == 0:
        raise ValueError("the training loader has no batch: use a smaller batch_size_per_rank")
    if hasattr(loader.sampler, "set_epoch"):
        loader.sampler.set_epoch(epoch)  # without it every epoch repeats one shuffle
    criterion = nn.CrossEntropyLoss()
    totals = torch.zeros(2, dtype=torch.float64, device=device)  # loss sum, samples
    model.train()
    started = _clock(device)
    for step, (images, labels) in enumerate(loader, start=1):
        images = images.to(device, non_blocking=True)
        labels = labels.to(device, non_blocking=True)
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()  # DDP averages the gradients over the ranks in here
        optimizer.step()
        totals[0] += loss.detach() * len(labels)
        totals[1] += len(labels)
        if progress is not None:
            progress(step, len(loader), loss.detach())
    seconds = _slowest(_clock(device) - started, device)
    if _rank_and_world_size()[1] > 1:
        dist.all_reduce(totals)
    loss_sum, samples = totals.tolist()
    return TrainMetrics(loss_sum / samples, int(samples), seconds)


@torch.no_grad()
def evaluate(model: nn.Module, loader: DataLoader, *, device: torch.device | str) -> EvalMetrics:
    """Loss and accuracy over the samples of all ranks; every rank gets the same numbers.

    Sums of losses and counts go through one all_reduce and are divided after it: a mean of the
    ranks' means would be wrong wherever their shares differ. So the result is that of one
    process, for every size, even if a rank has no sample. The unwrapped module is used, because
    a forward through DDP may communicate and ranks may have different numbers of batches.

    Args:
        model: bare or wrapped; each part is left in the mode (train or eval) it came in.
        loader: this rank's (images, labels), for instance from `make_eval_loader`.

    Raises:
        ValueError: no rank has a sample.
    """
    module = unwrap(model)
    modes = [(part, part.training) for part in module.modules()]
    totals = torch.zeros(3, dtype=torch.float64, device=device)  # loss sum, correct, samples
    module.eval()
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        logits = module(images)
        totals[0] += F.cross_entropy(logits, labels, reduction="none").double().sum()
        totals[1] += (logits.argmax(dim=1) == labels).sum()
        totals[2] += len(labels)
    for part, mode in modes:  # part by part: a frozen layer stays frozen
        part.training = mode
    if _rank_and_world_size()[1] > 1:
        dist.all_reduce(totals)  # the only collective: after the loop, once on every rank
    loss_sum, correct, samples = totals.tolist()
    if samples == 0:
        raise ValueError("nothing to evaluate: no rank's loader has a sample")
    return EvalMetrics(loss_sum / samples, int(correct), int(samples))


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
) -> list[EpochRecord]:
    """Train from `start_epoch` up to `epochs`, evaluating after each epoch.

    Args:
        epochs: the total, so that a resumed run names the same number as the first.
        start_epoch: the first epoch to train, counted from 0.
        checkpoint_path: written after each epoch, with `model`, `optimizer` and `epoch`, the
            number of finished epochs: the `start_epoch` of a run that goes on from there.
        on_epoch: called with each record, on every rank (look at the rank before you print).

    Returns:
        A record for each epoch trained here; the same on every rank.

    Raises:
        ValueError: epochs below 1, or start_epoch outside 0 .. epochs.
    """
    if epochs < 1 or not 0 <= start_epoch <= epochs:
        raise ValueError(
            f"epochs={epochs}, start_epoch={start_epoch}: expected epochs of at least 1 and "
            "start_epoch from 0 to epochs"
        )
    records = []
    for epoch in range(start_epoch, epochs):
        started = _clock(device)
        train = train_one_epoch(model, train_loader, optimizer, device=device, epoch=epoch)
        test = evaluate(model, test_loader, device=device)
        seconds = _slowest(_clock(device) - started, device)
        record = EpochRecord(
            epoch=epoch,
            train_loss=train.loss,
            test_loss=test.loss,
            test_accuracy=test.accuracy,
            samples_per_second=train.samples_per_second,
            seconds=seconds,
            world_size=_rank_and_world_size()[1],
        )
        records.append(record)
        if checkpoint_path is not None:
            save_checkpoint(checkpoint_path, model=model, optimizer=optimizer, epoch=epoch + 1)
        if on_epoch is not None:
            on_epoch(record)
    return records


def train_mnist_5k(
    epochs: int = 6,
    global_batch_size: int = 64,
    lr: float = 3e-3,
    seed: int = 0,
    checkpoint_path: str | Path | None = None,
    *,
    resume: bool = False,
    device: torch.device | str | None = None,
) -> list[EpochRecord]:
    """Train SmallCNN on the 4,000 digits, on every rank of the running process group.

    Weights and the order of the samples follow from `seed`, and the ranks share the global
    batch, so any number of ranks follows the curve of one, up to rounding. Rank 0 prints a line
    an epoch.

    Args:
        epochs: in all, those of a resumed run included.
        global_batch_size: samples in one step over all ranks; each rank takes an equal part.
        lr: Adam's learning rate.
        checkpoint_path: where to save after each epoch; nowhere by default.
        resume: go on from checkpoint_path if that file exists.
        device: by default this rank's GPU under nccl, otherwise the CPU.

    Returns:
        A record for each epoch trained in this call; the same on every rank.

    Raises:
        ValueError: global_batch_size is no multiple of world_size, or a value is out of range.
        FileNotFoundError, DatasetError, CheckpointError: from the files.
    """
    rank, world_size = _rank_and_world_size()
    device = torch.device(device) if device is not None else _default_device()
    batch_size_per_rank = _share(global_batch_size, world_size)
    train_loader = make_train_loader(
        load_mnist_5k(), batch_size_per_rank, rank=rank, world_size=world_size, seed=seed
    )
    test_loader = make_eval_loader(
        load_mnist_5k(train=False), _TEST_BATCH, rank=rank, world_size=world_size
    )

    torch.manual_seed(seed)  # the same first weights, however many ranks there are
    model: nn.Module = SmallCNN().to(device)
    start_epoch, optimizer_state = 0, None
    if resume and checkpoint_path is not None and Path(checkpoint_path).exists():
        checkpoint = load_checkpoint(checkpoint_path)
        model.load_state_dict(checkpoint["model"])  # before the wrap: DDP compares and copies once
        start_epoch, optimizer_state = checkpoint["epoch"], checkpoint["optimizer"]
    if world_size > 1:
        model = DistributedDataParallel(
            model, device_ids=[device.index] if device.type == "cuda" else None
        )
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    if optimizer_state is not None:
        optimizer.load_state_dict(optimizer_state)
    return fit(
        model,
        train_loader,
        test_loader,
        optimizer,
        epochs=epochs,
        device=device,
        start_epoch=start_epoch,
        checkpoint_path=checkpoint_path,
        on_epoch=lambda record: _print_epoch(record, epochs) if rank == 0 else None,
    )


def _share(global_batch_size: int, world_size: int) -> int:
    if isinstance(global_batch_size, bool) or not isinstance(global_batch_size, int):
        raise ValueError(f"global_batch_size={global_batch_size!r}: expected a whole number")
    share, rest = divmod(global_batch_size, world_size)
    if share < 1 or rest:
        raise ValueError(
            f"global_batch_size={global_batch_size} can't be shared equally by {world_size} "
            f"ranks: use a multiple of {world_size}, for instance {max(share, 1) * world_size}"
        )
    return share


def _print_epoch(record: EpochRecord, epochs: int) -> None:
    ranks = f"{record.world_size} rank{'s' if record.world_size > 1 else ''}"
    print(
        f"epoch {record.epoch + 1}/{epochs}  train loss {record.train_loss:.3f}  "
        f"test loss {record.test_loss:.3f}  test accuracy {record.test_accuracy:.1%}  "
        f"{record.seconds:.1f} s  {record.samples_per_second:,.0f} samples/s  ({ranks})",
        flush=True,
    )


def _rank_and_world_size() -> tuple[int, int]:
    """(0, 1) where no process group is running."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def _slowest(seconds: float, device: torch.device | str) -> float:
    """The largest value over the ranks."""
    if _rank_and_world_size()[1] == 1:
        return seconds
    value = torch.tensor(seconds, dtype=torch.float64, device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value.item()


def _clock(device: torch.device | str) -> float:
    """Seconds. A GPU works behind the CPU's back, so it must be done before the clock counts."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _check_wrapped(model: nn.Module) -> None:
    """A wrapper of one's own (with `.module`) and FSDP are welcome too."""
    world_size = _rank_and_world_size()[1]
    bare = unwrap(model) is model and not hasattr(model, "module")
    if world_size > 1 and bare and not type(model).__name__.startswith("FSDP"):
        raise ValueError(
            f"the model is bare, but {world_size} ranks are training: each would go its own way; "
            "wrap it with DistributedDataParallel(model)"
        )


def _default_device() -> torch.device:
    """This rank's GPU, or the CPU. Outside a rank it is the CPU: a notebook must not touch CUDA."""
    grouped = dist.is_available() and dist.is_initialized()
    use_gpu = dist.get_backend() == "nccl" if grouped else "LOCAL_RANK" in os.environ
    if not (use_gpu and torch.cuda.is_available()):
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
