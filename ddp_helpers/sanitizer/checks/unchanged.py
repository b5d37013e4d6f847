"""Optimizer steps that change no weight, on all ranks alike: no comparison of ranks shows them."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.optim.optimizer import Optimizer

from ddp_helpers.evidence.records import Finding
from ddp_helpers.sanitizer.compare.callsite import Place, innermost, places, user_frames
from ddp_helpers.sanitizer.talk.session import Session
from ddp_helpers.sanitizer.watch.passes import Pass
from ddp_helpers.sanitizer.watch.wrapped import Registry, Wrapped

KIND = "weights-unchanged"
LEAST = 3  # steps: fewer may be a warm-up
NO_RATE, NO_GRADIENT, ZERO, TOO_SMALL = "no rate", "no gradient", "zero", "too small"
SKIPPED = "skipped"
ROUNDINGS = 8  # so many times a rounding is surely seen in a weight
ADVICE = {
    NO_RATE: "if that is not meant: look at the scheduler, and at what it was told of steps",
    NO_GRADIENT: "clear gradients before backward(), not between backward() and the step; and give "
    "the optimizer the parameters of the model that is trained",
    ZERO: "look for a loss that is multiplied by 0, a detach(), or activations that are all dead",
    TOO_SMALL: "keep the weights in float32 (autocast casts what it needs), or raise the rate",
    SKIPPED: "look for what leaves step() early: one that is overridden or compiled, or a hook",
}


@dataclass
class Still:
    """What steps of one optimizer did to one model."""

    steps: int = 0
    """That were looked at."""
    streak: int = 0
    """The latest of them, that changed nothing."""
    why: str = ""
    words: str = ""
    optimizer: str = ""
    place: Place | None = None
    told: bool = False


class UnchangedChecker:
    """Compares a wrapped model's weights before and after each step that is looked at.

    A step may rightly change nothing: the rate is 0 in a warm-up, or a GradScaler skips it (then no
    step is seen at all). So it is told at the end of a pass over the data or of the run, as a note.
    """

    def __init__(self, session: Session, registry: Registry) -> None:
        self.session = session
        self.registry = registry
        self._still: weakref.WeakKeyDictionary[Optimizer, dict[int, Still]]
        self._still = weakref.WeakKeyDictionary()
        self._all: list[tuple[Wrapped, Still]] = []
        self._went_back = False
        self._fed: set[str] = set()
        self._starved: dict[str, Place | None] = {}

    def forget(self) -> None:
        """A new process group starts."""
        self._still.clear()
        self._all.clear()
        self._fed.clear()
        self._starved.clear()

    def went_back(self, roots: Sequence[torch.Tensor]) -> None:
        """A backward is over."""
        self._went_back = True

    def step_ends(self, optimizer: Optimizer) -> None:
        """Did any weight change, of those that the optimizer holds?"""
        if not self._went_back:
            return
        held = self.registry.held_by(optimizer)
        if not held.models:
            self._note_other(optimizer)
        for model in held.models:
            if model.weights_at == model.steps and model.before_at == model.steps - 1:
                self._look(optimizer, model, held.averaged[id(model)])
        self._went_back = False

    def _look(self, optimizer: Optimizer, model: Wrapped, held: Sequence[int]) -> None:
        if not held:
            return
        of_models = self._still.setdefault(optimizer, {})
        still = of_models.get(id(model))
        if still is None:
            still = of_models[id(model)] = Still(optimizer=type(optimizer).__name__)
            self._all.append((model, still))
        still.steps += 1
        before, after = model.before.split(","), model.weights.split(",")
        if any(before[place] != after[place] for place in held):
            still.streak = 0
            return
        still.streak += 1
        parameters = [p for place in held if (p := model.parameters[place]()) is not None]
        still.why, still.words = _why(optimizer, parameters)
        still.place = still.place or innermost(places(user_frames()[0]))

    def pass_ends(self, done: Pass) -> None:
        """A whole epoch without effect is too long for a warm-up, unless its rate is 0."""
        if done.complete and done.steps:
            for model, still in self._all:
                if still.streak == still.steps and still.why != NO_RATE:
                    self._tell(model, still)

    def at_end(self) -> None:
        """Told where at least the second half of the steps changed nothing."""
        for model, still in self._all:
            if 2 * still.streak >= still.steps:
                self._tell(model, still)
        for model in self.registry.models:
            self._tell_if_unheld(model)

    def _tell(self, model: Wrapped, still: Still) -> None:
        if still.told or still.streak < LEAST:
            return
        still.told = True
        which = "all" if still.streak == still.steps else f"the last {still.streak} of"
        cause = (
            f"{which} {still.steps} steps of {still.optimizer} that were looked at changed no "
            f"weight of the wrapped model: {still.words}"
        )
        self._found(cause, ADVICE[still.why], model, still.place)

    # ---- an optimizer of other parameters

    def _note_other(self, optimizer: Optimizer) -> None:
        name = type(optimizer).__name__
        parameters = (p for group in optimizer.param_groups for p in group["params"])
        if any(p.grad is not None for p in parameters):
            self._fed.add(name)
        elif name not in self._starved:
            self._starved[name] = innermost(places(user_frames()[0]))

    def _tell_if_unheld(self, model: Wrapped) -> None:
        starved = [name for name in self._starved if name not in self._fed]
        waits = not model.steps and model.synced >= LEAST and starved
        if not waits or self._all or model.fingerprint() != model.weights:
            return
        name = starved[0]
        cause = (
            f"{model.synced} backward passes averaged gradients of the wrapped model, and no "
            f"optimizer holds its parameters: those that {name} steps never had a gradient"
        )
        advice = (
            "make the optimizer of the parameters of the model that is trained, after copies "
            "and moves of it: optimizer = SGD(ddp.parameters(), ...)"
        )
        self._found(cause, advice, model, self._starved[name])

    def _found(self, cause: str, advice: str, model: Wrapped, place: Place | None) -> None:
        ranks, step = tuple(model.ranks), self.session.step
        frame = self.session.frame_of(place)
        self.session.found(Finding(KIND, cause, advice, ranks, step, frame, serious=False))


def _why(optimizer: Optimizer, parameters: Sequence[torch.Tensor]) -> tuple[str, str]:
    """What was seen that explains a step without effect, and the words for it."""
    rates = [float(group["lr"]) for group in optimizer.param_groups if "lr" in group]
    if rates and not any(rates):
        return NO_RATE, "the learning rate is 0"
    grads = [p.grad for p in parameters if p.grad is not None]
    if not grads:
        return NO_GRADIENT, "none of its parameters had a gradient, though backward passes came"
    if not any(bool(grad.any()) for grad in grads):
        return ZERO, "all gradients were 0"
    if rates and _would_show(max(rates), parameters):
        return SKIPPED, "gradients and learning rate are large enough to be seen in the weights"
    rate = f"{max(rates):g}" if rates else "unknown"
    dtype = str(parameters[0].dtype).removeprefix("torch.")
    return (
        TOO_SMALL,
        f"with a learning rate of {rate}, the steps are lost in the rounding of {dtype}",
    )


def _would_show(rate: float, parameters: Sequence[torch.Tensor]) -> bool:
    """True if a step of SGD or of Adam along these gradients is far above a rounding."""
    for p, grad in ((p, p.grad) for p in parameters):
        if grad is None:
            continue
        length = rate * grad.detach().abs().clamp(max=1.0)  # Adam's is no longer than the rate
        if bool((length > ROUNDINGS * torch.finfo(p.dtype).eps * p.detach().abs()).any()):
            return True
    return False
