"""Parameters that get no gradient, or one that nobody averages; gradients averaged too often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.optim.optimizer import Optimizer

from ddp_helpers.evidence.records import Finding, Frame, name_ranks
from ddp_helpers.sanitizer.compare.callsite import innermost
from ddp_helpers.sanitizer.compare.graph import leaves
from ddp_helpers.sanitizer.talk.session import Session
from ddp_helpers.sanitizer.watch.training_events import TrainingEvents
from ddp_helpers.sanitizer.watch.wrapped import Registry, Wrapped

WASTED_STEPS = 2  # steps after which a repeated backward is no exception any more
MOST_NAMES = 6
PATIENCE = 0.3  # seconds to ask the other ranks; those that use all parameters may not answer


@dataclass(frozen=True)
class UnusedRecord:
    """Names of the parameters that a rank's backward did not reach."""

    names: tuple[str, ...]


def lost_hooks(
    names: Sequence[str], what: str, ranks: tuple[int, ...], step: int, place: Frame | None
) -> Finding:
    """Some parameters of a module are not those any more at which DDP put its hooks."""
    how = f" by {what}" if what else ""
    cause = (
        f"{len(names)} parameters of the wrapped model were replaced, moved or cast after the "
        f"wrap{how}, so DDP averages none of their gradients: {_listed(names)}"
    )
    advice = (
        "load, move and cast the module first, and wrap it last; load_state_dict without "
        "assign=True copies into the parameters that DDP knows"
    )
    return Finding("parameters-replaced", cause, advice, ranks, step, place)


class GradientChecker:
    """Looks at which parameters a backward reaches, and at what an optimizer steps."""

    def __init__(self, session: Session, events: TrainingEvents, registry: Registry) -> None:
        self.session = session
        self.events = events
        self.registry = registry
        self._before: list[tuple[Wrapped, list]] = []
        self._wasted: Counter[int] = Counter()
        self._judged: dict[int, bool] = {}

    # ---- parameters that are not DDP's any more

    def _tell_lost(self, model: Wrapped, what: str = "") -> None:
        if names := model.lost():
            frame = self.session.here()
            ranks = tuple(model.ranks)
            self.session.found(lost_hooks(names, what, ranks, self.session.step, frame))

    # ---- unused

    def backward_begins(self, roots: Sequence[torch.Tensor]) -> None:
        for model in self.registry.in_backward:
            if what := model.suspect:
                model.suspect = ""
                self._tell_lost(model, what)
        looked = [m for m in self.registry.in_backward if self._needs_all(m)]
        self._before = [(model, _grads(model)) for model in looked]

    def _needs_all(self, model: Wrapped) -> bool:
        """True if DDP waits for a gradient of each parameter, and this step is looked at."""
        ddp = model.ddp()
        if ddp is None or (model.synced - 1) % self.session.options.every:
            return False
        lenient = ddp.find_unused_parameters or ddp.static_graph or ddp._use_python_reducer
        return not (lenient or ddp._delay_all_reduce_params or self.events.inputs_given)

    def backward_ends(self, roots: Sequence[torch.Tensor]) -> None:
        for model, before in self._before:
            # then all gradients change as one
            shared = getattr(model.ddp(), "gradient_as_bucket_view", False)
            unused = [
                place
                for place, (then, now) in enumerate(zip(before, _grads(model), strict=True))
                if now is None or (then == now or shared)
            ]
            if confirmed := self._confirmed(model, unused, roots):
                self._tell_lost(model)
                self._tell_unused([model.names[place] for place in confirmed])

    def _confirmed(
        self, model: Wrapped, suspects: list[int], roots: Sequence[torch.Tensor]
    ) -> list[int]:
        """Those that are really not in the graph; a gradient may be undefined, too."""
        suspects = [p for p in suspects if id(model.parameters[p]()) in model.reduced]
        if not suspects:
            return []
        used = leaves(roots)
        return [place for place in suspects if id(model.parameters[place]()) not in used]

    def _tell_unused(self, names: list[str]) -> None:
        unused = self.session.gather("unused", UnusedRecord(tuple(names)), PATIENCE)
        ranks = sorted(unused)
        cause = (
            f"{len(names)} parameters of the wrapped model took no part in the loss on "
            f"{name_ranks(ranks)}: {_listed(names)}; DDP waits for a gradient of each"
        )
        advice = (
            "use every parameter in forward, freeze those that are not meant to be trained, or "
            "pass find_unused_parameters=True"
        )
        self._found("unused-parameters", cause, advice, tuple(ranks))

    # ---- accumulation

    def accumulation(self, optimizer: Optimizer) -> None:
        for model in self.registry.stepped_by(optimizer):
            if len(model.since.synced) < 2:
                continue
            common = Counter(model.since.synced).most_common(1)
            if common[0][1] < 2:
                continue
            where, times = common[0]
            stack = () if isinstance(where, int) else where
            self._wasted[id(model)] += 1
            if self._wasted[id(model)] == WASTED_STEPS:
                cause = (
                    f"each of {times} backward passes before one optimizer step averages the "
                    f"gradients, though only the last one must"
                )
                advice = "run all but the last forward and backward inside `with ddp.no_sync():`"
                place = self.session.frame_of(innermost(stack))
                kind = "accumulation-without-no-sync"
                self.session.found(
                    Finding(kind, cause, advice, (), self.session.step, place, serious=False)
                )

    # ---- parameters that DDP does not know

    def late_parameters(self, optimizer: Optimizer) -> None:
        if self.session.step % self.session.options.every:
            return
        others = [reference() for reference in self.registry.held_by(optimizer).others]
        late = [p for p in others if p is not None and p.grad is not None and self._is_late(p)]
        if not late:
            return
        for model in self.registry.models:
            self._tell_lost(model)
        names = [self._name(p) for p in late]
        cause = (
            f"the optimizer steps {len(names)} parameters that became trainable, or were added, "
            f"after the wrap, so DDP does not average their gradients: {_listed(names)}"
        )
        advice = "unfreeze and add parameters first, then wrap the model (again)"
        self._found("trainable-after-wrap", cause, advice, ())

    def _is_late(self, parameter: torch.Tensor) -> bool:
        if found := self.registry.find(parameter):
            return id(parameter) not in found[0].reduced
        if id(parameter) not in self._judged:
            self._judged[id(parameter)] = self._name(parameter) != ""
        return self._judged[id(parameter)]

    def _name(self, parameter: torch.Tensor) -> str:
        """Its name in a wrapped model, or an empty text."""
        for model in self.registry.models:
            ddp = model.ddp()
            if ddp is None:
                continue
            for name, other in ddp.module.named_parameters():
                if other is parameter and name not in ddp.parameters_to_ignore:
                    return name
        return ""

    def _found(self, kind: str, cause: str, advice: str, ranks: tuple[int, ...]) -> None:
        place = self.session.here()
        self.session.found(Finding(kind, cause, advice, ranks, self.session.step, place))


def _grads(model: Wrapped) -> list[tuple[int, int] | None]:
    """For each parameter what tells whether its gradient changed; None where there is none."""
    grads = [None if p is None else p.grad for p in model.alive()]
    return [None if grad is None else (id(grad), grad._version) for grad in grads]


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(f"`{name}`" for name in names[:MOST_NAMES]) + more
