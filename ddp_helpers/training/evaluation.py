"""Evaluation on any number of ranks: each sample counts once, and all ranks get the same."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from ddp_helpers.checkpoints.file import unwrap
from ddp_helpers.data.batches import to_device
from ddp_helpers.group.lifetime import get_world_size
from ddp_helpers.training.losses import CrossEntropy
from ddp_helpers.training.objective import AnyLoss, Metrics, as_objective, metric_sums
from ddp_helpers.training.precision import MixedPrecision, as_precision
from ddp_helpers.training.records import EvalMetrics
from ddp_helpers.training.steps import whole

Sums = dict[str, tuple[float, float]]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loader: DataLoader,
    *,
    device: torch.device | str,
    precision: str | MixedPrecision = "fp32",
    loss: AnyLoss = CrossEntropy(),  # noqa: B008
    metrics: Metrics | None = None,
) -> EvalMetrics:
    """Loss, accuracy and metrics over the samples of all ranks; every rank gets the same numbers.

    Sums of losses and counts go through one all_reduce and are divided after it: a mean of the
    ranks' means would be wrong wherever their shares differ. So the result is that of one
    process, for every size, even if a rank has no sample. The unwrapped module is used, because
    a forward through DDP may communicate and ranks may have different numbers of batches.
    Buffers (BatchNorm's averages) are taken from rank 0 first: each rank has its own by now, and
    those of rank 0 are the ones that a checkpoint holds.

    Args:
        model: bare or wrapped; each part is left in the mode (train or eval) it came in.
        loader: this rank's batches, for instance from `make_eval_loader`.
        precision, loss: as in `train_one_epoch`.
        metrics: metrics(model, batch) -> {name: (sum, count)} of a batch that is on the device;
            here, too, the sums of all ranks are divided by all their counts.

    Raises:
        ValueError: no rank has a sample, the loader's sampler repeats some, or what `loss` or
            `metrics` returned has another form.
    """
    _check_once_each(loader)
    module, amp, objective = unwrap(model), as_precision(precision, device), as_objective(loss)
    modes = [(part, part.training) for part in module.modules()]
    totals = torch.zeros(4, dtype=torch.float64, device=device)  # loss, its count, right, judged
    sums: dict[str, torch.Tensor] = {}
    module.eval()
    share_buffers(module)
    for batch in loader:
        batch = to_device(batch, device)
        with amp.autocast():
            terms = objective(module, batch, judge=True)
            found = metric_sums(metrics, module, batch) if metrics is not None else {}
        totals[0] += terms.sum
        totals[1] += terms.count
        if terms.right is not None:
            totals[2] += terms.right
            totals[3] += terms.judged
        for name, pair in found.items():
            mine = sums.setdefault(name, torch.zeros(2, dtype=torch.float64, device=device))
            mine[0] += pair[0]
            mine[1] += pair[1]
    for part, mode in modes:  # part by part: a frozen layer stays frozen
        part.training = mode
    if get_world_size() > 1:
        dist.all_reduce(totals)  # after the loop, once on every rank; within it ranks may differ
    loss_sum, count, right, judged = totals.tolist()
    if count == 0:
        raise ValueError("nothing to evaluate: no rank's loader has a sample that counts")
    return EvalMetrics(
        loss=loss_sum / count,
        correct=int(right) if judged else None,
        samples=whole(judged or count),
        metrics={} if metrics is None else _means(sums),
    )


def share_buffers(module: nn.Module) -> None:
    """Give all ranks the buffers of rank 0, as DDP does before a forward that trains."""
    if get_world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def _means(sums: dict[str, torch.Tensor]) -> dict[str, float]:
    """By name, over all ranks; a rank that had no batch knows no names."""
    ranks: list[Any] = [{name: tuple(pair.tolist()) for name, pair in sums.items()}]
    if get_world_size() > 1:
        (mine,), ranks = ranks, [None] * get_world_size()
        dist.all_gather_object(ranks, mine)
    joined: Sums = {}
    for name, (value, count) in (item for each in ranks for item in each.items()):
        before = joined.get(name, (0.0, 0.0))
        joined[name] = before[0] + value, before[1] + count
    for name, (_, count) in joined.items():
        if not count > 0:
            raise ValueError(
                f'metrics["{name}"] counted {count:g} on all ranks together: expected more than 0, '
                "what the sum is to be divided by; leave the name out where there is nothing"
            )
    return {name: value / count for name, (value, count) in joined.items()}


def _check_once_each(loader: DataLoader) -> None:
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, DistributedSampler) or sampler.drop_last:
        return
    twice = sampler.total_size - len(sampler.dataset)  # type: ignore[arg-type]  # it asked, too
    if twice > 0:
        raise ValueError(
            f"the held-out loader's DistributedSampler repeats {twice} of "
            f"{len(sampler.dataset)} samples, to give all ranks equally many, and they would "  # type: ignore[arg-type]
            "count twice: make the loader with make_eval_loader"
        )
