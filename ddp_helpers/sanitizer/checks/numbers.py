"""A loss or a gradient that is not finite, and a rank whose gradients are out of all proportion."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.optim.optimizer import Optimizer

from ddp_helpers.evidence.records import Finding, Frame, name_ranks
from ddp_helpers.sanitizer.compare.callsite import innermost
from ddp_helpers.sanitizer.compare.records import BackwardRecord
from ddp_helpers.sanitizer.talk.sequence import Calls
from ddp_helpers.sanitizer.talk.session import Session
from ddp_helpers.sanitizer.watch.local_gradients import LocalGradients
from ddp_helpers.sanitizer.watch.wrapped import Registry, Wrapped

FAR = 100.0  # times the others' gradients
IN_A_ROW = 8  # steps at the start of a training, where no rank has learnt its own data yet
PATIENCE = 2.0  # seconds; all ranks have the same gradients, so all come
TRY_AGAIN = (
    "look at this rank's batch, and for log(0), 0/0, or an overflow in half precision (GradScaler "
    "skips such steps on all ranks). If the same batch gives finite numbers when it is tried "
    "again, memory or the device may be at fault"
)


@dataclass(frozen=True)
class NumbersRecord:
    """What a rank brought to a step that would spoil the weights."""

    loss: bool
    """Its loss was finite."""
    gradients: bool
    """Its own gradients were, as far as they were looked at."""


class NumbersChecker:
    """Stops a run at the step that would carry numbers that are not finite into the weights.

    Not before: a program may rightly go back from such a loss, and skip the step on all ranks.
    """

    def __init__(self, session: Session, registry: Registry, local: LocalGradients) -> None:
        self.session = session
        self.registry = registry
        self.local = local
        self._strange: dict[int, list[int]] = {}  # by model: ranks whose loss was not finite
        self._far: Counter[tuple[int, int]] = Counter()
        self._looked: Counter[int] = Counter()
        self._frame: Frame | None = None

    def forget(self) -> None:
        """A new process group starts."""
        self._strange.clear()
        self._far.clear()
        self._looked.clear()

    # ---- before a backward, when all ranks have come

    def compare(self, backwards: Mapping[int, BackwardRecord], records: Calls) -> None:
        """Note what each rank brings; a finding is told at the step."""
        mine = records[self.session.rank]
        self._frame = self.session.frame_of(innermost(mine.stack))
        strange = [rank for rank, each in sorted(backwards.items()) if not each.finite]
        for model in self.registry.in_backward:
            if strange:
                self._strange[id(model)] = strange
            states = {r: b.models.get(model.number) for r, b in backwards.items()}
            self._compare_shares(model, {r: s.norms for r, s in states.items() if s is not None})

    # ---- the step

    def step_begins(self, optimizer: Optimizer) -> None:
        """Is anything about to be spoilt?"""
        for model in self.registry.held_by(optimizer).models:
            strange = self._strange.pop(id(model), [])
            if (strange or self._looks_bad(model)) and not _is_skipped(optimizer):
                self._look_closely(model, strange)

    def _looks_bad(self, model: Wrapped) -> bool:
        sample = self.local.of(model)
        if sample is None or (model.synced - 1) % self.session.options.every:
            return False
        # the averaged ones tell of all ranks; what comes from above is in the first and the last
        ends = {*sample.places[:1], *sample.places[-1:]}
        found = [p.grad for place in ends if (p := model.parameters[place]()) is not None]
        plain = [g for g in found if type(g) is torch.Tensor and g.layout is torch.strided]
        return not all(math.isfinite(float(grad.sum())) for grad in plain)

    def _look_closely(self, model: Wrapped, strange: Sequence[int]) -> None:
        spoilt = [
            name
            for name, parameter in zip(model.names, model.alive(), strict=True)
            if parameter is not None
            if parameter.grad is not None and not bool(parameter.grad.isfinite().all())
        ]
        if not spoilt:  # the program has mended them
            return
        own = all(map(math.isfinite, self.local.norms(model)))
        record = NumbersRecord(self.session.rank not in strange, own)
        name = f"numbers/{model.key}/{model.steps}"
        records = self.session.gather(name, record, PATIENCE)
        losses = strange or [rank for rank, each in records.items() if not each.loss]
        ranks = losses or sorted(rank for rank, each in records.items() if not each.gradients)
        what = "the loss" if losses else "a gradient"
        what += " is not finite on " if losses else " became not finite in the backward of "
        who = "all ranks" if len(ranks) == len(records) else name_ranks(ranks)
        if not ranks:
            what, who = "gradients are not finite after they were averaged", ""
        cause = (
            f"{what}{who}, and the optimizer is about to step with it on all ranks: the first "
            f"spoilt gradient is that of `{spoilt[0]}`, one of {len(spoilt)} (optimizer step "
            f"{self.session.step}, counted from 0)"
        )
        kind, step = "not-finite", self.session.step
        told = tuple(ranks) or tuple(model.ranks)
        self.session.found(Finding(kind, cause, TRY_AGAIN, told, step, self._frame))

    # ---- out of proportion

    def _compare_shares(self, model: Wrapped, norms: Mapping[int, tuple[float, ...]]) -> None:
        if len(norms) < 2 or not all(norms.values()):  # not looked at, or not in the step before
            return
        self._looked[id(model)] += 1
        rank = far_rank(norms)
        if rank is None or self._looked[id(model)] > IN_A_ROW:
            return
        self._far[id(model), rank] += 1
        if self._far[id(model), rank] == IN_A_ROW:
            others = [_total(each) for other, each in norms.items() if other != rank]
            self._tell_far(model, rank, _total(norms[rank]) / max(others))

    def _tell_far(self, model: Wrapped, rank: int, times: float) -> None:
        cause = (
            f"the gradients of rank {rank} are far larger than those of the other ranks, by more "
            f"than {FAR:g} times in each of the first {IN_A_ROW} steps that were looked at "
            f"({times:.0f} times in the last): in DDP's average the others hardly count"
        )
        advice = (
            "look at what this rank feeds its model (are its inputs scaled as on the others?), and "
            "at how its loss is weighed"
        )
        kind, step = "gradient-out-of-proportion", self.session.step
        self.session.found(Finding(kind, cause, advice, (rank,), step, self._frame, serious=False))


def far_rank(norms: Mapping[int, tuple[float, ...]]) -> int | None:
    """The rank whose gradients are far larger than all other ranks' together.

    Args:
        norms: of a few gradients, by rank; where all of them are 0, a rank had nothing to learn,
            and tells nothing.
    """
    totals = {rank: _total(each) for rank, each in norms.items()}
    largest = max(totals, key=lambda rank: totals[rank])
    others = [total for rank, total in totals.items() if rank != largest and total > 0]
    if not others or not math.isfinite(totals[largest]):
        return None
    return largest if totals[largest] >= FAR * max(others) else None


def _total(norms: Sequence[float]) -> float:
    return math.sqrt(sum(norm * norm for norm in norms if norm > 0))


def is_finite(roots: Sequence[torch.Tensor]) -> bool:
    """True unless one of these losses, each a single number, is not."""
    single = [root.detach() for root in roots if root.numel() == 1]
    return all(math.isfinite(float(root)) for root in single)


def _is_skipped(optimizer: Optimizer) -> bool:
    """A GradScaler has told a fused optimizer that it must not step."""
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, torch.Tensor) and bool(found.any())
