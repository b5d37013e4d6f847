"""Sharded parameters (FSDP): stepped without a gradient, not stepped at all, clipped wrongly."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence

import torch
from torch.nn.utils import clip_grad
from torch.optim.optimizer import Optimizer

from ddp_helpers.evidence.records import Finding
from ddp_helpers.sanitizer.checks.unwrapped import is_sharded
from ddp_helpers.sanitizer.compare.callsite import innermost, places, user_frames
from ddp_helpers.sanitizer.talk.session import Session
from ddp_helpers.torch_private import TOTAL_NORM


class ShardedChecker:
    """Asks at each step whether sharded parameters have a gradient, and an optimizer that has them.

    FSDP puts a gradient there when it has summed up the ranks' own. While that is switched off, for
    accumulation, each rank keeps its gradients elsewhere, and a step moves nothing. Nor does it
    move anything if the optimizer has the parameters in whose place fully_shard has put shards.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._backwards = 0  # since the last step
        self._went_back = False
        self._of: weakref.WeakKeyDictionary[Optimizer, list[weakref.ref[torch.Tensor]]]
        self._of = weakref.WeakKeyDictionary()
        self._asked: weakref.WeakSet[Optimizer] = weakref.WeakSet()

    def put_patches(self) -> None:
        """Stand in for what clip_grad_norm_ takes its norm with."""
        TOTAL_NORM.get()
        self.session.patches.put(clip_grad, TOTAL_NORM.path, self._taking_a_norm)

    def went_back(self, roots: Sequence[torch.Tensor]) -> None:
        """A backward is over."""
        self._backwards += 1
        self._went_back = True

    def step_begins(self, optimizer: Optimizer) -> None:
        """Look at the gradients; one of them is enough."""
        backwards, self._backwards = self._backwards, 0
        sharded = self._of.get(optimizer)
        if sharded is None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            sharded = [weakref.ref(p) for p in parameters if p.requires_grad and is_sharded(p)]
            self._of[optimizer] = sharded
        alive = [p for reference in sharded if (p := reference()) is not None]
        if self._went_back and not alive:
            self._look_for_left_behind(optimizer)
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
        self._tell("sharded-without-gradients", cause, advice)

    def _tell(self, kind: str, cause: str, advice: str) -> None:
        place = self.session.frame_of(innermost(places(user_frames()[0])))
        ranks = (self.session.rank,)
        self.session.found(Finding(kind, cause, advice, ranks, self.session.step, place))

    def _look_for_left_behind(self, optimizer: Optimizer) -> None:
        """Does it step what no module has any more, though shards of such shapes are there?"""
        given = [p for group in optimizer.param_groups for p in group["params"]]
        if optimizer in self._asked or any(p.grad is not None for p in given):
            return
        self._asked.add(optimizer)  # to look through all modules takes a while
        now = list(_parameters_of_modules())
        theirs, shards = {id(p) for p in now}, {tuple(p.shape) for p in now if is_sharded(p)}
        if any(id(p) in theirs or tuple(p.shape) not in shards for p in given):
            return
        cause = (
            f"{type(optimizer).__name__} steps {len(given)} parameters that no module has now: "
            "fully_shard has put shards in their place, so the model is not trained"
        )
        advice = (
            "make the optimizer after fully_shard(model), of what model.parameters() gives then"
        )
        self._tell("parameters-replaced", cause, advice)

    def _taking_a_norm(self, original: Callable) -> Callable:
        look = self.session.guarded("clipping", self._look_at_clipped)

        def total_norm(tensors: object, *args: object, **kwargs: object) -> object:
            given = [tensors] if isinstance(tensors, torch.Tensor) else list(tensors)  # type: ignore[call-overload]  # of torch's
            look(given)
            return original(given, *args, **kwargs)

        return total_norm

    def _look_at_clipped(self, given: Sequence[torch.Tensor]) -> None:
        """Are these this rank's pieces of sharded gradients, without what says so?"""
        plain = {t.data_ptr() for t in given if not is_sharded(t) and t.numel()}
        mine = plain & set(self._addresses_of_shares()) if plain else set()
        if not mine or self.session.world_size < 2:
            return
        cause = (
            f"clip_grad_norm_ gets {len(mine)} tensors that are this rank's shares of sharded "
            "gradients, so each rank clips by the norm of its own share"
        )
        advice = (
            "call clip_grad_norm_(model.parameters(), ...) without to_local(): of sharded "
            "parameters it takes the norm over all ranks"
        )
        self._tell("clipped-by-own-norm", cause, advice)

    def _addresses_of_shares(self) -> Iterator[int]:
        for reference in (each for known in self._of.values() for each in known):
            p = reference()
            if p is None or p.grad is None or not hasattr(p.grad, "to_local"):
                continue
            if any(placement.is_shard() for placement in getattr(p.grad, "placements", ())):
                yield p.grad.to_local().data_ptr()


def _parameters_of_modules() -> Iterator[torch.Tensor]:
    for module in gc.get_objects():
        # one whose __init__ has not run, or failed, has no parameters to ask for
        if isinstance(module, torch.nn.Module) and "_parameters" in vars(module):
            yield from (p for p in module.parameters(recurse=False) if p is not None)
