"""Train the course's small model on the shipped digits: the loop of this wing, put together."""

from __future__ import annotations

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddp_helpers.checkpoints.file import load_checkpoint
from ddp_helpers.checkpoints.folder import CheckpointFolder
from ddp_helpers.data.digits import load_mnist_5k
from ddp_helpers.data.loaders import make_eval_loader, make_resumable_loader
from ddp_helpers.group.lifetime import get_rank, get_world_size
from ddp_helpers.model import SmallCNN
from ddp_helpers.training.checks import check_shares
from ddp_helpers.training.loop import fit
from ddp_helpers.training.records import EpochRecord
from ddp_helpers.training.report import print_epoch

# a quarter of the 1,000 held-out digits: full batches on one, two and four ranks
_TEST_BATCH = 250


def train_mnist_5k(
    epochs: int = 6,
    global_batch_size: int = 64,
    lr: float = 3e-3,
    seed: int = 0,
    checkpoint_path: str | Path | None = None,
    *,
    resume: bool = False,
    device: torch.device | str | None = None,
    accumulation_steps: int = 1,
    precision: str = "fp32",
    compile: bool = False,
    checkpoints: CheckpointFolder | None = None,
    save_every: int | None = None,
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
        compile: let torch.compile make one faster program of the model; takes a minute once.
        accumulation_steps, precision, checkpoints, save_every: as in `fit`.

    Returns:
        A record for each epoch trained in this call; the same on every rank.

    Raises:
        ValueError: global_batch_size is no multiple of world_size, or a value is out of range.
        FileNotFoundError, DatasetError, CheckpointError: from the files.
    """
    rank, world_size = get_rank(), get_world_size()
    device = torch.device(device) if device is not None else _default_device()
    check_shares(global_batch_size, world_size)
    train_loader = make_resumable_loader(
        load_mnist_5k(),
        global_batch_size,
        rank=rank,
        world_size=world_size,
        seed=seed,
        accumulation_steps=accumulation_steps,
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
    if compile:
        # after the wrap: it then splits the program at DDP's buckets
        model = torch.compile(model)  # type: ignore[assignment]  # of a module it makes a module
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
        on_epoch=lambda record: print_epoch(record, epochs),
        accumulation_steps=accumulation_steps,
        precision=precision,
        checkpoints=checkpoints,
        save_every=save_every,
    )


def _default_device() -> torch.device:
    """This rank's GPU, or the CPU. Outside a rank it is the CPU: a notebook must not touch CUDA."""
    grouped = dist.is_available() and dist.is_initialized()
    if grouped and dist.get_backend() == "nccl":
        return torch.device("cuda", torch.cuda.current_device())  # Slurm sets no LOCAL_RANK
    if grouped or "LOCAL_RANK" not in os.environ or not torch.cuda.is_available():
        return torch.device("cpu")
    # where each rank sees one GPU alone, that is number 0, whatever the rank
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
