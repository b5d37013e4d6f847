"""Models that an optimizer steps though nothing keeps the ranks' copies alike."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch.optim.optimizer import Optimizer

from ddp_helpers.evidence.collective_methods import POINT_TO_POINT
from ddp_helpers.evidence.records import Finding
from ddp_helpers.evidence.sent_calls import tensors_in
from ddp_helpers.sanitizer.compare.callsite import Place, innermost, places, user_frames
from ddp_helpers.sanitizer.compare.fingerprint import fingerprint, first_difference
from ddp_helpers.sanitizer.talk.ledger import Ledger
from ddp_helpers.sanitizer.talk.session import Session
from ddp_helpers.sanitizer.watch.passes import PassRecorder
from ddp_helpers.sanitizer.watch.training_events import TrainingEvents
from ddp_helpers.sanitizer.watch.wrapped import Registry, Wrapped

PATIENT_STEPS = 8  # a program may average weights now and then; at the end it is told in any case
LOOKED_AT = 4  # steps in which a collective's tensors are compared with the gradients
SMALL = 16  # elements: a tensor below counts only if it has the shape of a parameter


@dataclass(frozen=True)
class LooseRecord:
    """Loose parameters of one optimizer on one rank."""

    optimizer: str
    shapes: tuple[tuple[int, ...], ...]
    first: str
    """Their fingerprint before the first step."""
    now: str
    seen: str
    """Their fingerprint when the record before was left."""
    gone: bool
    """They are deleted."""
    steps: int
    synchronised: bool
    """The program has sent as many numbers between two steps."""
    alone: bool
    """There is no other sign of ranks that work together: no wrapper, no shards, no messages."""
    stack: tuple[Place, ...]
    step: int
    dealt: bool = False
    """The data was dealt by a sampler that knows several ranks."""
    late: bool = False
    """Its gradients went through collectives only after each step, not before."""
    few: tuple[int, ...] | None = ()
    """A few samples of the last whole training pass; None if there is no loader."""

    @property
    def alike(self) -> object:
        """What must be the same on all ranks."""
        return self.now, self.shapes


Records = Mapping[int, LooseRecord]


class Loose:
    """What one optimizer steps that no wrapper averages."""

    def __init__(self, number: int, optimizer: str, parameters: list[torch.Tensor]) -> None:
        self.number = number
        self.optimizer = optimizer
        self.parameters = [weakref.ref(p) for p in parameters]
        self.shapes = tuple(tuple(p.shape) for p in parameters)
        self.size = sum(p.numel() for p in parameters)
        self.first = ""
        self.stack: tuple[Place, ...] = ()
        self.steps = 0
        self.settled = False
        self.synchronised = False
        self.seen = ""
        self.sent_late = self.sent_in_time = 0  # gradients, after a step and before one

    def are_gone(self) -> bool:
        return any(reference() is None for reference in self.parameters)

    def fingerprint(self) -> str:
        return fingerprint([reference() for reference in self.parameters])


class UnwrappedChecker:
    """Compares loose parameters between ranks; what the program sends itself speaks for it."""

    def __init__(
        self,
        session: Session,
        events: TrainingEvents,
        registry: Registry,
        passes: PassRecorder,
    ) -> None:
        self.session = session
        self.passes = passes
        self.events = events
        self.registry = registry
        self.sharded = False  # FSDP keeps its own order
        self.sends = False
        self._sent = 0
        self._stepped = False  # since the last backward
        self._gradients: dict[int, Loose] | None = None  # by the address of their data
        self._of: weakref.WeakKeyDictionary[Optimizer, Loose] = weakref.WeakKeyDictionary()
        self._loose: list[Loose] = []  # also those whose optimizer is gone
        self.ledger = Ledger(session, "loose")

    def put_patches(self) -> None:
        """Stand in for what sends a message."""
        for name in POINT_TO_POINT:
            self.session.patches.put(dist.ProcessGroup, name, self._sending)

    def call_begins(self, name: str, args: tuple, called: str) -> None:
        """The program makes a collective, or sends something, itself."""
        shapes = [shape for loose in self._loose for shape in loose.shapes if shape]
        for tensor in tensors_in(list(args)):
            is_large = tensor.numel() >= SMALL or tuple(tensor.shape) in shapes
            if is_large and (tensor.is_floating_point() or tensor.is_complex()):
                self._sent += tensor.numel()
                self.sends = True
                self._note_gradient(tensor)

    def went_back(self, roots: Sequence[torch.Tensor]) -> None:
        """A backward is over: there are new gradients."""
        self._stepped, self._gradients = False, None

    def step_ends(self, optimizer: Optimizer) -> None:
        """From here on a gradient that is averaged comes too late."""
        self._stepped, self._gradients = True, None

    def _note_gradient(self, tensor: torch.Tensor) -> None:
        """Does a collective get the gradient of a loose parameter? Asked in the first steps."""
        if self._gradients is None:
            self._gradients = {
                p.grad.data_ptr(): loose
                for loose in self._loose
                if loose.steps <= LOOKED_AT
                for p in (reference() for reference in loose.parameters)
                if p is not None and p.grad is not None
            }
        if self._gradients and (found := self._gradients.get(tensor.data_ptr())) is not None:
            found.sent_late += self._stepped
            found.sent_in_time += not self._stepped

    def _sending(self, original: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            self.sends = True
            return original(*args, **kwargs)

        return call

    def step_begins(self, optimizer: Optimizer) -> None:
        loose = self._of.get(optimizer)
        if loose is None:
            loose = Loose(len(self._loose), type(optimizer).__name__, self._find(optimizer))
            self._of[optimizer] = loose
            self._loose.append(loose)
        if not loose.size or loose.settled or self._is_wrapped_now(loose):
            return
        loose.synchronised |= loose.steps > 0 and self._sent >= loose.size
        self._sent = 0
        if loose.steps % self.session.options.every == 0 and not self.events.joining:
            self._leave(loose, str(loose.steps))
        loose.steps += 1

    def _leave(self, loose: Loose, name: str, last: bool = False) -> None:
        gone = loose.are_gone()
        now = loose.seen if gone else loose.fingerprint()
        loose.stack = loose.stack if last else places(user_frames()[0])
        loose.first = loose.first or now
        record = LooseRecord(
            loose.optimizer,
            loose.shapes,
            loose.first,
            now,
            loose.seen,
            gone,
            loose.steps,
            loose.synchronised,
            alone=not self.are_together(),
            stack=loose.stack,
            step=self.session.step,
            dealt=self.passes.dealt,
            late=loose.sent_late > 0 and not loose.sent_in_time,
            few=None if self.passes.current is None else self.passes.few,
        )
        everyone = range(self.session.world_size)
        loose.seen = now
        judge = lambda records: self._judge(loose, records, last)
        self.ledger.leave(f"{loose.number}/{name}", record, everyone, judge)

    def _find(self, optimizer: Optimizer) -> list[torch.Tensor]:
        wrapped = {
            id(p)
            for ddp in (model.ddp() for model in self._shared_models())
            for p in (ddp.module.parameters() if ddp is not None else ())
        }
        found = []
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            if is_sharded(p):
                self.sharded = True
            elif p.requires_grad and id(p) not in wrapped and not self._is_shared(p):
                found.append(p)
        return found

    def are_together(self) -> bool:
        """True if something was seen that keeps the ranks' models alike."""
        return bool(self._shared_models()) or self.sharded or self.sends

    def _shared_models(self) -> list[Wrapped]:
        """Without those whose process group is one rank: DDP averages nothing there."""
        return [model for model in self.registry.models if len(model.ranks) > 1]

    def _is_shared(self, parameter: torch.Tensor) -> bool:
        found = self.registry.find(parameter)
        return found is not None and len(found[0].ranks) > 1

    def _is_wrapped_now(self, loose: Loose) -> bool:
        first = loose.parameters[0]()
        loose.settled = first is None or self._is_shared(first)
        return loose.settled

    # ---- judging

    def _judge(self, loose: Loose, records: Records, last: bool = False) -> None:
        """Loose parameters differ between ranks: is it meant to be so?"""
        records = dict(sorted(records.items()))
        if any(record.gone for record in records.values()):  # compare what the last step found
            records = {rank: replace(record, now=record.seen) for rank, record in records.items()}
            if len({record.now for record in records.values()}) == 1:
                return
        if len(records) < 2 or loose.settled:
            return
        if len({record.shapes for record in records.values()}) > 1:
            loose.settled = True  # each rank has a model of its own
            return
        if all(record.late for record in records.values()):
            loose.settled = True
            self._tell_late(records)
            return
        if any(record.synchronised for record in records.values()):
            loose.settled = True
            return
        steps = min(record.steps for record in records.values())
        if not last and steps < PATIENT_STEPS:
            return
        drifted = len({record.first for record in records.values()}) == 1
        sure = are_one_training(records, drifted)
        if not sure and not last:
            return  # what they trained on may tell
        if (drifted or all(record.alone for record in records.values())) and sure is not False:
            self._tell(loose, records, drifted, sure is True)
        loose.settled = True

    def _tell(self, loose: Loose, records: Records, drifted: bool, sure: bool) -> None:
        place = first_difference([record.now for record in records.values()])
        name = _name_of(loose.parameters[place]()) if place is not None else "?"
        record = records[min(records)]
        since = "drift apart" if drifted else "were never alike, and are kept so by nothing"
        cause = (
            f"{record.optimizer} steps parameters that no DDP wrapper of several ranks and no "
            f"collective averages, and the ranks' copies {since}; the first that differs is {name}"
        )
        advice = (
            "wrap the model and use what comes back: `model = DistributedDataParallel(model)`; or "
            "average the gradients yourself before each step"
        )
        if not sure:
            advice = f"if each rank trains a model of its own, all is well; if not: {advice}"
        frame = self.session.frame_of(innermost(record.stack))
        kind, ranks = "unwrapped-model", tuple(records)
        found = Finding(kind, cause, advice, ranks, record.step, frame, serious=sure)
        self.session.found(found)

    def _tell_late(self, records: Records) -> None:
        record = records[min(records)]
        cause = (
            f"the gradients of what {record.optimizer} steps are averaged after the step, so each "
            "rank steps with its own, and the ranks' weights differ"
        )
        advice = "average the gradients between backward() and the optimizer's step"
        frame = self.session.frame_of(innermost(record.stack))
        kind, ranks = "averaged-after-step", tuple(records)
        self.session.found(Finding(kind, cause, advice, ranks, record.step, frame))

    def at_end(self) -> None:
        for loose in self._loose:
            if loose.size and loose.steps and not loose.settled:
                loose.synchronised |= self._sent >= loose.size
                self._leave(loose, "end", last=True)


def are_one_training(records: Records, drifted: bool) -> bool | None:
    """True if the ranks were meant to train one model, False if each trains its own; else None.

    Args:
        records: by rank.
        drifted: their weights began alike.
    """
    if any(record.dealt for record in records.values()):
        return True
    few = [set(record.few) if record.few is not None else None for record in records.values()]
    known = [samples for samples in few if samples is not None]
    if not known:
        return True if drifted else None
    if len(known) < len(few) or not all(known):
        return None
    common = set.intersection(*known)
    if not common:
        return True if drifted else None  # a split by hand
    return None if all(samples == known[0] for samples in known) else False  # folds


def is_sharded(parameter: torch.Tensor) -> bool:
    """True for a parameter of FSDP (DTensor, or a flat one), which keeps ranks in order itself."""
    flat = getattr(parameter, "_fsdp_flattened", False)
    return hasattr(parameter, "placements") or flat or "Flat" in type(parameter).__name__


def _name_of(parameter: torch.Tensor | None) -> str:
    """Its name in the smallest module that holds it; only asked for when something is told."""
    for module in gc.get_objects():
        # one whose __init__ has not run, or failed, has no parameters to ask for
        if isinstance(module, torch.nn.Module) and "_parameters" in vars(module):
            for name, other in module.named_parameters(recurse=False):
                if other is parameter:
                    return f"`{name}` of a {type(module).__name__}"
    return "a tensor" if parameter is None else f"one of shape {tuple(parameter.shape)}"
