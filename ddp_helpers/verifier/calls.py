"""Calls of torch's functions that tell why a step parts: losses, clipping, collectives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ddp_helpers.evidence.patches import Patches
from ddp_helpers.verifier.door import Door
from ddp_helpers.verifier.neutral import as_float64
from ddp_helpers.verifier.records import LossCall, Plan, RankRecord

_LOSSES = (
    "cross_entropy nll_loss binary_cross_entropy binary_cross_entropy_with_logits mse_loss l1_loss "
    "smooth_l1_loss huber_loss kl_div"
).split()
_CUTTING = "all_gather all_gather_into_tensor all_reduce reduce_scatter_tensor all_to_all".split()


class Calls:
    """Notes what was called since it was last taken."""

    def __init__(self, plan: Plan, record: RankRecord, door: Door) -> None:
        self.plan, self.record, self.door = plan, record, door
        self.losses: list[LossCall] = []
        self.clipped: list[float] = []

    def put_patches(self, patches: Patches) -> None:
        """Stand in for these functions."""
        for owner in (nn.utils, nn.utils.clip_grad):
            patches.put(owner, "clip_grad_norm_", self._clipping)
            patches.put(owner, "clip_grad_value_", self._clipping)
        for name in _LOSSES:
            patches.put(nn.functional, name, self._losing)
        for name in _CUTTING:
            patches.put(dist, name, self._gathering)

    def take_losses(self) -> list[LossCall]:
        """Of one backward."""
        taken, self.losses = self.losses, []
        return taken

    def take_clipped(self) -> list[float]:
        """Of one step."""
        taken, self.clipped = self.clipped, []
        return taken

    def _losing(self, own: Callable) -> Callable:
        def loss(input: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            if torch.is_grad_enabled() and input.requires_grad:
                target = self.door.target(target)
            target = as_float64(target) if self.plan.float64 else target
            found = own(input, target, *args, **kwargs)
            if torch.is_grad_enabled() and found.requires_grad:
                self._note_loss(own.__name__, found, input, target, args, kwargs)
            return found

        return loss

    def _note_loss(
        self, name: str, found: Tensor, input: Tensor, target: Tensor, args: tuple, kwargs: dict
    ) -> None:
        reduction = kwargs.get("reduction", "none" if found.ndim else "mean")
        count = float(target.numel())
        if name in ("cross_entropy", "nll_loss") and not target.is_floating_point():
            kept = target != kwargs.get("ignore_index", args[2] if len(args) > 2 else -100)
            weight = kwargs.get("weight", args[0] if args else None)
            count = float((weight[target[kept]] if weight is not None else kept).sum())
        value = float(found.detach()) if not found.ndim else None
        self.losses.append(LossCall(reduction, count, value))

    def _gathering(self, own: Callable) -> Callable:
        def gather(*args: Any, **kwargs: Any) -> Any:
            given = [*args, *kwargs.values()]
            carrying = [a for a in given if isinstance(a, Tensor) and a.grad_fn is not None]
            if not carrying or not torch.is_grad_enabled():
                return own(*args, **kwargs)
            if own.__name__ not in self.record.cut:
                self.record.cut.append(own.__name__)
            work = own(*args, **kwargs)
            if self.plan.follows and "all_gather" in own.__name__:
                # one process has no need to gather: what it computes with carries its gradient
                if work is not None:
                    work.wait()
                found = given[0][0] if isinstance(given[0], list) else given[0]
                found.copy_(carrying[0].view_as(found))
            return work

        return gather

    def _clipping(self, own: Callable) -> Callable:
        def clip(parameters: Any, *args: Any, **kwargs: Any) -> Any:
            if isinstance(parameters, Tensor):
                parameters = [parameters]
            parameters = list(parameters)
            norms = [float(p.grad.detach().norm()) for p in parameters if p.grad is not None]
            self.clipped.append(sum(norm * norm for norm in norms) ** 0.5)
            return own(parameters, *args, **kwargs)

        return clip
