"""A shuffle must not repeat from one training pass to the next."""

from __future__ import annotations

import weakref
from array import array

from torch.utils.data import DataLoader

from ddp_helpers.records import Finding
from ddp_helpers.sanitizer.passes import Pass, PassRecorder, shuffles
from ddp_helpers.sanitizer.session import Session
from ddp_helpers.sanitizer.shares import FEW
from ddp_helpers.sanitizer.training_events import TrainingEvents


class EpochChecker:
    """Compares the order of each training pass with the one before, on each rank for itself."""

    def __init__(self, session: Session, events: TrainingEvents, passes: PassRecorder) -> None:
        self.session = session
        self.passes = passes
        self._before: weakref.WeakKeyDictionary[DataLoader, tuple] = weakref.WeakKeyDictionary()
        passes.on_end.append(session.guarded("shuffles", self._ended))
        events.before_step.append(session.guarded("shuffles", self._stepping))

    def _stepping(self, optimizer: object) -> None:
        """Tell at the first step of a pass rather than at its end, where the cause is sure."""
        current = self.passes.current
        if current is not None and not current.steps and current.epoch is not None:
            self._compare(current)

    def _ended(self, ended: Pass) -> None:
        if not ended.steps or not shuffles(ended.sampler):
            return
        self._compare(ended)
        loader, consumed = ended.loader(), ended.consumed
        if loader is not None and consumed is not None:
            self._before[loader] = (ended.epoch, consumed)

    def _compare(self, current: Pass) -> None:
        loader, consumed = current.loader(), current.consumed
        before = self._before.get(loader) if loader is not None else None
        if before is None or consumed is None or not shuffles(current.sampler):
            return
        epoch, order = before
        if repeats(order, consumed, same_epoch=_same_epoch(current, epoch)):
            self.session.found(self._finding(current))

    def _finding(self, current: Pass) -> Finding:
        name = type(current.sampler).__name__
        if current.epoch is None:
            cause = f"{name} gives the same order in every training pass"
            advice = "seed its generator once, before the first epoch, not in each epoch"
        else:
            cause = (
                f"{name} gives the same order in every training pass: its epoch stayed "
                f"{current.epoch}"
            )
            advice = "call sampler.set_epoch(epoch) with a new number before each epoch"
        place = self.session.frame(current.place) if current.place else None
        ranks = tuple(range(self.session.world_size))
        return Finding("epoch-not-advanced", cause, advice, ranks, self.session.step, place)


def _same_epoch(current: Pass, epoch: object) -> bool | None:
    """Whether the sampler's own number stayed; None for a sampler without one."""
    return None if current.epoch is None else current.epoch == epoch


def repeats(before: array, now: array, same_epoch: bool | None) -> bool:
    """True if the order of a pass, as far as it got, is surely the one of the pass before.

    Args:
        before, now: indices in order.
        same_epoch: of the sampler's own number in both passes; None if it has none.
    """
    common = min(len(before), len(now))
    if same_epoch is False or not common or before[:common] != now[:common]:
        return False  # a few samples may come in one order twice by chance
    return same_epoch is True or (common >= FEW and len(before) == len(now))
