"""Sharded parameters (FSDP) that an optimizer steps without any gradient."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch.optim.optimizer import Optimizer

from ddp_helpers.evidence.records import Finding
from ddp_helpers.sanitizer.checks.unwrapped import is_sharded
from ddp_helpers.sanitizer.compare.callsite import innermost, places, user_frames
from ddp_helpers.sanitizer.talk.session import Session


class ShardedChecker:
    """Asks at each step whether sharded parameters have a gradient at all.

    FSDP puts it there when it has summed up the ranks' gradients. While that is switched off, for
    accumulation, each rank keeps its gradients elsewhere, and a step moves nothing.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._backwards = 0  # since the last step
        self._of: weakref.WeakKeyDictionary[Optimizer, list[weakref.ref[torch.Tensor]]]
        self._of = weakref.WeakKeyDictionary()

    def went_back(self, roots: Sequence[torch.Tensor]) -> None:
        """A backward is over."""
        self._backwards += 1

    def step_begins(self, optimizer: Optimizer) -> None:
        """Look at the gradients; one of them is enough."""
        backwards, self._backwards = self._backwards, 0
        sharded = self._of.get(optimizer)
        if sharded is None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            sharded = [weakref.ref(p) for p in parameters if p.requires_grad and is_sharded(p)]
            self._of[optimizer] = sharded
        alive = [p for reference in sharded if (p := reference()) is not None]
        if not backwards or not alive or any(p.grad is not None for p in alive):
            return
        cause = (
            f"{type(optimizer).__name__} steps {len(alive)} sharded parameters, and none of them "
            f"has a gradient, though {backwards} backward passes came before: FSDP has not summed "
            "the ranks' gradients up, as where its gradient sync is off"
        )
        advice = (
            "switch the sync on before the last backward of each step: "
            "model.set_requires_gradient_sync(True), or leave no_sync()"
        )
        place = self.session.frame_of(innermost(places(user_frames()[0])))
        kind, step = "sharded-without-gradients", self.session.step
        self.session.found(Finding(kind, cause, advice, (self.session.rank,), step, place))
