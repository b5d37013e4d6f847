"""The learning rate for a larger global batch: linear scaling, warm-up, then a decay."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from ddp_helpers.arguments import check_positive, check_whole


def linear_scaled_lr(base_lr: float, global_batch_size: int, base_batch_size: int = 256) -> float:
    """The rate for a global batch that is k times larger: k times the rate.

    Goyal et al. 2017 (arXiv:1706.02677), section 2.1, for SGD with up to about 8,000 images;
    256 is the batch that their rates are for.
    For Adam the square root of k is the more usual choice; for tiny batches neither is needed.

    Raises:
        ValueError: a value is not above zero.
    """
    check_whole("global_batch_size", global_batch_size, least=1)
    check_whole("base_batch_size", base_batch_size, least=1)
    check_positive("base_lr", base_lr)
    return base_lr * global_batch_size / base_batch_size


def warm_up(
    optimizer: Optimizer,
    warmup_steps: int,
    *,
    start_factor: float = 0.0,
    total_steps: int | None = None,
    final_factor: float = 0.0,
) -> LambdaLR:
    """A scheduler to step after each optimizer step: up in a line, then level or down in a cosine.

    Step s (from 0) of the warm-up uses start_factor + (1 - start_factor) * (s + 1) / warmup_steps
    of the optimizer's rate. For Goyal's gradual warm-up (section 2.2) start_factor is
    base_batch_size / global_batch_size: its first rate is one step above the small batch's.

    Args:
        warmup_steps: optimizer steps, not epochs; 0 for none.
        total_steps: from the end of the warm-up to here the rate falls to final_factor in half a
            cosine (Loshchilov and Hutter 2017, arXiv:1608.03983); None keeps it level.

    Raises:
        ValueError: a number of steps or a factor is out of range.
    """
    check_whole("warmup_steps", warmup_steps, least=0)
    if total_steps is not None:
        check_whole("total_steps", total_steps, least=warmup_steps + 1)
    for name, value in (("start_factor", start_factor), ("final_factor", final_factor)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value}: expected a number from 0 to 1")

    def factor(step: int) -> float:
        if step < warmup_steps:
            return start_factor + (1 - start_factor) * (step + 1) / warmup_steps
        if total_steps is None:
            return 1.0
        part = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
        return final_factor + (1 - final_factor) * (1 + math.cos(math.pi * part)) / 2

    return LambdaLR(optimizer, factor)
