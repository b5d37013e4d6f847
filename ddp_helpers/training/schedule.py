"""The learning rate for a larger global batch: linear scaling, warm-up, then a decay."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from ddp_helpers.arguments import check_positive, check_whole

# what a scheduler's length depends on, by the names that torch gives it
_LENGTHS = ("T_max", "T_0", "total_steps", "total_iters", "step_size", "milestones")


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


def check_schedule(state: Mapping[str, Any], scheduler: LRScheduler | None, name: str) -> None:
    """Refuse to go on with a schedule of another shape: its learning rate would jump.

    torch takes the saved numbers of a scheduler for the new ones without a word (T_max), and saves
    no functions (LambdaLR), so that a longer decay begins high up again.

    Args:
        state: the checkpoint, of which `optimizer` and `scheduler` are looked at.
        scheduler: of this run, as it was made.
        name: of the checkpoint, for the error.

    Raises:
        ValueError: another length, or another rate at the saved step.
    """
    if scheduler is None or not isinstance(saved := state["scheduler"], Mapping):
        return
    way_out = (
        "expected the schedule of the run that is resumed, else the learning rate jumps; make it "
        "as before, or start anew in another folder from these weights"
    )
    for field, before, now in _lengths(saved, scheduler.state_dict()):
        if before != now:
            raise ValueError(
                f"the scheduler of {name} had {field}={before}, but this one has {now}: {way_out}"
            )
    if type(scheduler) is not LambdaLR:
        return
    saved_groups = state.get("optimizer", {}).get("param_groups", [])
    groups = zip(saved["base_lrs"], scheduler.lr_lambdas, saved_groups, strict=False)
    for base, factor, group in groups:
        rate = base * factor(saved["last_epoch"])
        if not math.isclose(rate, group["lr"], rel_tol=1e-6, abs_tol=1e-12):
            raise ValueError(
                f"the run saved in {name} was at the learning rate {group['lr']:.3g} after "
                f"{saved['last_epoch']} steps, but this schedule has {rate:.3g} there: {way_out}"
            )


def _lengths(saved: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    for field in _LENGTHS:
        if field in saved and field in now:
            yield field, saved[field], now[field]
    for before, after in zip(
        saved.get("_schedulers", []), now.get("_schedulers", []), strict=False
    ):
        yield from _lengths(before, after)
    if "_milestones" in saved and "_milestones" in now:  # of a SequentialLR
        yield "milestones", saved["_milestones"], now["_milestones"]
