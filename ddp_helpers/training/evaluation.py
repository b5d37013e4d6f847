"""Evaluation on any number of ranks: each sample counts once, and all ranks get the same."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader

from ddp_helpers.checkpoints.file import unwrap
from ddp_helpers.group.lifetime import get_world_size
from ddp_helpers.training.losses import CrossEntropy, Loss
from ddp_helpers.training.precision import MixedPrecision, as_precision
from ddp_helpers.training.records import EvalMetrics


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: DataLoader,
    *,
    device: torch.device | str,
    precision: str | MixedPrecision = "fp32",
    loss: Loss = CrossEntropy(),  # noqa: B008
) -> EvalMetrics:
    """Loss and accuracy over the samples of all ranks; every rank gets the same numbers.

    Sums of losses and counts go through one all_reduce and are divided after it: a mean of the
    ranks' means would be wrong wherever their shares differ. So the result is that of one
    process, for every size, even if a rank has no sample. The unwrapped module is used, because
    a forward through DDP may communicate and ranks may have different numbers of batches.
    Buffers (BatchNorm's averages) are taken from rank 0 first: each rank has its own by now, and
    those of rank 0 are the ones that a checkpoint holds.

    Args:
        model: bare or wrapped; each part is left in the mode (train or eval) it came in.
        loader: this rank's (images, labels), for instance from `make_eval_loader`.
        precision, loss: as in `train_one_epoch`.

    Raises:
        ValueError: no rank has a sample.
    """
    module, amp = unwrap(model), as_precision(precision, device)
    modes = [(part, part.training) for part in module.modules()]
    totals = torch.zeros(3, dtype=torch.float64, device=device)  # loss sum, correct, samples
    module.eval()
    share_buffers(module)
    for images, labels in loader:
        totals[2] += loss.count(labels)
        images, labels = images.to(device), labels.to(device)
        with amp.autocast():
            outputs = module(images)
            totals[0] += loss.sum(outputs, labels)
        totals[1] += loss.correct(outputs, labels)
    for part, mode in modes:  # part by part: a frozen layer stays frozen
        part.training = mode
    if get_world_size() > 1:
        dist.all_reduce(totals)  # after the loop, once on every rank; within it ranks may differ
    loss_sum, correct, samples = totals.tolist()
    if samples == 0:
        raise ValueError("nothing to evaluate: no rank's loader has a sample")
    return EvalMetrics(loss_sum / samples, int(correct), int(samples))


def share_buffers(module: nn.Module) -> None:
    """Give all ranks the buffers of rank 0, as DDP does before a forward that trains."""
    if get_world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)
