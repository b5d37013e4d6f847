"""Training in evaluation mode: dropout is off, BatchNorm's statistics stand still."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ddp_helpers.evidence.records import Finding, name_ranks
from ddp_helpers.sanitizer.compare.callsite import innermost, places, user_frames
from ddp_helpers.sanitizer.compare.records import BackwardRecord
from ddp_helpers.sanitizer.talk.sequence import Calls
from ddp_helpers.sanitizer.talk.session import Session
from ddp_helpers.sanitizer.watch.wrapped import Registry, Wrapped

KIND = "eval-left-on"
ADVICE = "call model.train() before each pass over the training data, after every evaluation"


class ModeChecker:
    """Compares the mode in which ranks train, and notes one that changed during the training.

    A model that trains in evaluation mode from the start on all ranks does so on purpose.
    """

    def __init__(self, session: Session, registry: Registry) -> None:
        self.session = session
        self.registry = registry
        self._trained: set[int] = set()  # models that went back in training mode
        self._told: set[int] = set()

    def forget(self) -> None:
        """A new process group starts."""
        self._trained.clear()
        self._told.clear()

    def compare(self, backwards: Mapping[int, BackwardRecord], records: Calls) -> Finding | None:
        """Ranks that train one model in different modes."""
        for number in backwards[self.session.rank].models:
            modes = {rank: each.models[number].training for rank, each in backwards.items()}
            odd = sorted(rank for rank, training in modes.items() if not training)
            if odd and len(odd) < len(modes):
                record = records[odd[0]]
                cause = (
                    f"{name_ranks(odd)} trains with the model in evaluation mode, the others in "
                    "training mode: dropout is off there, and BatchNorm's statistics stand still"
                )
                frame = self.session.frame_of(innermost(record.stack))
                return Finding(KIND, cause, ADVICE, tuple(odd), record.step, frame)
        return None

    def backward_begins(self, roots: Sequence[torch.Tensor]) -> None:
        """Note the mode, and where it changed."""
        for model in self.registry.in_backward:
            ddp = model.ddp()
            if ddp is None:
                continue
            if ddp.module.training:
                self._trained.add(id(model))
            elif id(model) in self._trained and id(model) not in self._told:
                self._told.add(id(model))
                self._tell(model)

    def _tell(self, model: Wrapped) -> None:
        cause = (
            "the model began to train in training mode, and now trains in evaluation mode on all "
            "ranks: dropout is off, and BatchNorm's statistics stand still"
        )
        advice = f"if that is not meant: {ADVICE}"
        frame = self.session.frame_of(innermost(places(user_frames()[0])))
        ranks, step = tuple(model.ranks), self.session.step
        self.session.found(Finding(KIND, cause, advice, ranks, step, frame, serious=False))
