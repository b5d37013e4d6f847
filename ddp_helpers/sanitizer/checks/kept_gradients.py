"""Gradients that nobody clears: each step goes along the sum of all gradients so far."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.optim.optimizer import Optimizer

from ddp_helpers.evidence.records import Finding
from ddp_helpers.sanitizer.compare.callsite import innermost, places, user_frames
from ddp_helpers.sanitizer.compare.fingerprint import fingerprint
from ddp_helpers.sanitizer.talk.session import Session

LOOKED_AT = 8  # parameters of an optimizer among which one is chosen to be followed
STEPS = 3  # in a row; two optimizers may now and then meet each other's gradients
CALM, SELDOM = 4, 16  # who cleared them so often will do so again: look at each 16th step only


@dataclass
class Followed:
    """One gradient, from a step of its optimizer to the next."""

    parameter: weakref.ref[torch.Tensor]
    before: str
    """Its checksum after the step."""
    mark: tuple[int, int] = (0, 0)
    kept: bool = False
    """The first backward since then found it as the step had left it."""
    cleared: bool = False
    grown: bool = False
    """A backward has added to it."""


class KeptGradientChecker:
    """Follows one gradient of each optimizer from step to step.

    Gradients may be kept through as many backward passes as the program likes (accumulation), but
    not through a step. It is enough that they are cleared before any backward up to the next step:
    a GAN's discriminator gets gradients in the generator's turn, and clears them in its own.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._followed: weakref.WeakKeyDictionary[Optimizer, Followed]
        self._followed = weakref.WeakKeyDictionary()
        self._counts: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._cleared: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()

    def forget(self) -> None:
        """A new process group starts."""
        self._followed.clear()
        self._counts.clear()
        self._cleared.clear()

    def step_ends(self, optimizer: Optimizer) -> None:
        """Begin to follow one of its gradients."""
        step, every = self.session.step, self.session.options.every
        calm = self._cleared.get(optimizer, 0) >= CALM
        if step % (SELDOM * every if calm else every) or self._count(optimizer) >= STEPS:
            return
        parameter = _smallest(optimizer)
        grad = None if parameter is None else parameter.grad
        if parameter is not None and grad is not None and bool(grad.any()):
            self._followed[optimizer] = Followed(weakref.ref(parameter), fingerprint([grad]))

    def backward_begins(self, roots: Sequence[torch.Tensor]) -> None:
        """Is the gradient still there?"""
        if not self._followed:
            return
        for followed in self._followed.values():
            parameter = followed.parameter()
            grad = None if parameter is None else parameter.grad
            if grad is None or followed.cleared:
                followed.cleared = True
            elif followed.kept:  # a backward before this one may have added to it
                followed.cleared = not bool(grad.any())
            elif fingerprint([grad]) == followed.before:
                followed.kept = True
            else:  # cleared, or the program works with it
                followed.cleared = True
            followed.mark = (id(grad), grad._version) if grad is not None else (0, 0)

    def went_back(self, roots: Sequence[torch.Tensor]) -> None:
        """Has the backward added to it?"""
        if not self._followed:
            return
        for followed in self._followed.values():
            parameter = followed.parameter()
            grad = None if parameter is None else parameter.grad
            if grad is not None and followed.kept and not followed.cleared:
                followed.grown |= (id(grad), grad._version) != followed.mark

    def step_begins(self, optimizer: Optimizer) -> None:
        """The next step: was it cleared meanwhile?"""
        followed = self._followed.pop(optimizer, None)
        if followed is None:
            return
        if followed.cleared or not followed.kept:
            self._counts[optimizer] = 0
            self._cleared[optimizer] = self._cleared.get(optimizer, 0) + 1
        elif followed.grown:
            self._counts[optimizer] = self._count(optimizer) + 1
            self._cleared[optimizer] = 0
            if self._count(optimizer) == STEPS:
                self._tell(optimizer)

    def _count(self, optimizer: Optimizer) -> int:
        return self._counts.get(optimizer, 0)

    def _tell(self, optimizer: Optimizer) -> None:
        cause = (
            f"{type(optimizer).__name__} steps with gradients that were not cleared since the step "
            f"before, {STEPS} times in a row, and to which each backward adds: it goes along the "
            "sum of all gradients so far"
        )
        advice = (
            "call optimizer.zero_grad() once for each step, before its first backward(); if "
            "gradients are kept on purpose, all is well"
        )
        place = self.session.frame_of(innermost(places(user_frames()[0])))
        kind, ranks = "gradients-not-cleared", tuple(range(self.session.world_size))
        step = self.session.step
        self.session.found(Finding(kind, cause, advice, ranks, step, place, serious=False))


def _smallest(optimizer: Optimizer) -> torch.Tensor | None:
    """The one with the fewest elements, of the first few that have a plain gradient."""
    found: list[torch.Tensor] = []
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        grad = parameter.grad
        if grad is not None and type(grad) is torch.Tensor and grad.layout is torch.strided:
            found.append(parameter)
        if len(found) == LOOKED_AT:
            break
    return min(found, key=torch.Tensor.numel, default=None)
