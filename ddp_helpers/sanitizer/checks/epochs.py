"""A shuffle must not repeat from one training pass to the next."""

from __future__ import annotations

import weakref
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch.optim import Optimizer
from torch.utils.data import DistributedSampler

from ddp_helpers.evidence.records import Finding
from ddp_helpers.sanitizer.compare.shares import FEW
from ddp_helpers.sanitizer.talk.session import Session
from ddp_helpers.sanitizer.watch.passes import Pass, PassRecorder, shuffles

KEPT = 8  # training passes that later ones are compared with
MEANT = 2  # passes of one epoch number that a program may well want
MOST = 1 << 16  # indices of a pass that are kept; so many in one order are no chance


@dataclass(frozen=True)
class _Order:
    """The order of a training pass that is over."""

    loop: str
    sampler: Callable[[], object]
    optimizers: weakref.WeakSet
    epoch: object
    indices: array


class EpochChecker:
    """Compares each training pass with the one before it, on each rank for itself.

    They belong together if one optimizer steps in both, and they use one sampler or are passes of
    one loop: the loader may be made anew in each epoch, and a second training may begin again.
    """

    def __init__(self, session: Session, passes: PassRecorder) -> None:
        self.session = session
        self.passes = passes
        self._before: deque[_Order] = deque(maxlen=KEPT)
        self._set: weakref.WeakSet[DistributedSampler] = weakref.WeakSet()

    def put_patches(self) -> None:
        """Stand in for DistributedSampler.set_epoch."""
        self.session.patches.put(DistributedSampler, "set_epoch", self._setting)

    def _setting(self, original: Callable) -> Callable:
        def set_epoch(sampler: DistributedSampler, epoch: int) -> None:
            self._set.add(sampler)
            original(sampler, epoch)

        return set_epoch

    def forget(self) -> None:
        """A new process group starts."""
        self._before.clear()

    def stepping(self, optimizer: Optimizer) -> None:
        """Tell at the first step of a pass rather than at its end, where the cause is sure."""
        current = self.passes.current
        if current is not None and not current.steps and current.epoch is not None:
            self._compare(current, [optimizer])

    def ended(self, ended: Pass) -> None:
        """Compare a whole pass, and keep it."""
        if not ended.steps or not shuffles(ended.sampler) or ended.consumed is None:
            return
        self._compare(ended, list(ended.optimizers))
        self._before.append(
            _Order(
                ended.loop,
                _reference(ended.sampler),
                ended.optimizers,
                ended.epoch,
                ended.consumed[:MOST],
            )
        )

    def _compare(self, current: Pass, optimizers: Sequence[Optimizer]) -> None:
        if current.consumed is None or not shuffles(current.sampler):
            return
        for before in reversed(self._before):
            together = any(optimizer in before.optimizers for optimizer in optimizers)
            if together and (before.sampler() is current.sampler or before.loop == current.loop):
                same = _same_epoch(current, before.epoch)
                if repeats(before.indices, current.consumed[:MOST], same):
                    self._tell(current, before)
                return

    def _tell(self, current: Pass, before: _Order) -> None:
        """Two passes for one set_epoch may be meant; three in a row hardly are."""
        sampler = current.sampler
        if before.sampler() is sampler and (current.epoch or sampler in self._set):
            last = [order for order in self._before if order.sampler() is sampler][-MEANT:]
            if len(last) < MEANT or len({order.epoch for order in last} | {current.epoch}) > 1:
                return
            self.session.found(replace(self._finding(current), serious=False))
            return
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
        place = self.session.frame_of(current.place)
        ranks = tuple(range(self.session.world_size))
        return Finding("epoch-not-advanced", cause, advice, ranks, self.session.step, place)


def _reference(sampler: object) -> Callable[[], object]:
    """A weak one, where its class allows that."""
    try:
        return weakref.ref(sampler)
    except TypeError:
        return lambda: None


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
