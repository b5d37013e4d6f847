"""DDP's own communication, which happens in C++: made visible as calls of its process group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import FrameType

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import Optimizer

from ddp_helpers.sanitizer.compare.callsite import Place, places, user_frames
from ddp_helpers.sanitizer.compare.graph import Term, leaves, loss_terms, number_of, reached
from ddp_helpers.sanitizer.compare.records import (
    BackwardRecord,
    CallRecord,
    Doing,
    Edits,
    ModelState,
    ParameterKind,
    dtype_name,
)
from ddp_helpers.sanitizer.talk.sequence import CallSequence
from ddp_helpers.sanitizer.talk.session import Session
from ddp_helpers.sanitizer.watch.passes import PassRecorder
from ddp_helpers.sanitizer.watch.training_events import TrainingEvents
from ddp_helpers.sanitizer.watch.wrapped import Registry, SinceStep, Wrapped
from ddp_helpers.torch_private import FIND_TENSORS

WRAP, BUFFERS, BACKWARD = "ddp_wrap", "ddp_buffers", "ddp_backward"
DOING = "doing"  # the name under which a rank that ends leaves how far it came


class DdpCalls:
    """Announces each wrap, each forward that sends buffers, and each backward that averages.

    The backward is announced before it begins, where a rank has to wait for its peers anyway.
    """

    def __init__(
        self,
        session: Session,
        events: TrainingEvents,
        sequence: CallSequence,
        registry: Registry,
        passes: PassRecorder,
    ) -> None:
        self.session = session
        self.passes = passes
        self.events = events
        self.sequence = sequence
        self.registry = registry
        self._passed_by: list[tuple[Wrapped, object]] = []
        self._tensors_of: Callable | None = None
        self._terms = session.guarded("the loss", self._terms_of)
        self.finite: Callable[[Sequence[torch.Tensor]], bool | None] = lambda roots: True
        self.norms: Callable[[Wrapped], tuple[float, ...] | None] = lambda model: ()
        """Of some gradients of the backward before."""

    # ---- the wrap

    def wrapping(self, module: torch.nn.Module, group: dist.ProcessGroup) -> None:
        record = CallRecord(
            WRAP,
            "DistributedDataParallel(...)",
            places(user_frames()[0]),
            self.session.step,
            model=self.registry.next_number(group.group_name),
            signature=tuple(
                ParameterKind(name, tuple(p.shape), dtype_name(p), p.requires_grad)
                for name, p in module.named_parameters()
            ),
        )
        waits = bool(self.events.wrap_options.get("init_sync", True))
        self._announce(group.group_name, dist.get_process_group_ranks(group), record, waits)

    def wrapped(self, ddp: DistributedDataParallel) -> None:
        self.registry.add(ddp)

    # ---- the forward

    def forward_begins(self, ddp: DistributedDataParallel, args: tuple, kwargs: dict) -> None:
        model = self.registry.of(ddp)
        if model is None or self.events.joining or not ddp.will_sync_module_buffers():
            return
        model.buffer_syncs += 1
        if (model.buffer_syncs - 1) % self.session.options.every == 0:
            record = CallRecord(
                BUFFERS,
                "forward of a DDP model, which sends its buffers,",
                places(user_frames()[0]),
                self.session.step,
                model=model.number,
                mode="training" if ddp.training else "evaluation",
            )
            self._announce(model.group, model.ranks, record)

    def forward_ends(self, ddp: DistributedDataParallel, output: object) -> None:
        model = self.registry.of(ddp)
        if model is None or not torch.is_grad_enabled():
            return
        self._tensors_of = self._tensors_of or FIND_TENSORS.get()
        found = [number_of(tensor) for tensor in self._tensors_of(output)]
        numbers = {number for number in found if number is not None}
        model.outputs |= numbers
        model.trains = ddp.training
        model.opaque = not numbers
        model.since.ended_in_no_sync = not ddp.require_backward_grad_sync
        model.expects = model.expects or ddp.require_backward_grad_sync

    # ---- the backward

    def backward_begins(self, roots: Sequence[torch.Tensor]) -> None:
        models = self.registry.models
        self.registry.in_backward, self._passed_by = [], []
        if not models:
            return
        looks = any(model.synced % self.session.options.every == 0 for model in models)
        frames = user_frames()[0] if looks else []
        stack = places(frames)
        found = reached(roots, set().union(*(model.outputs for model in models)))
        for model in models:
            self._count(model, model.outputs & found, roots, stack)
        groups = {model.group: model.ranks for model in self.registry.in_backward}
        for group, ranks in groups.items():
            averaged = [model for model in self.registry.in_backward if model.group == group]
            self._announce_backward(group, ranks, averaged, roots, stack, frames)

    def _count(
        self,
        model: Wrapped,
        outputs: set[int],
        roots: Sequence[torch.Tensor],
        stack: tuple[Place, ...],
    ) -> None:
        """Note what this backward does to one model."""
        if not self._is_reached(model, outputs, roots):
            self._passed_by.append((model, _mark(model)))
            return
        model.outputs -= outputs
        if not model.expects:
            model.since.local += 1
            return
        model.expects = False
        model.synced += 1
        if not self.events.stepping:  # a closure of LBFGS is called many times in one step
            model.since.synced.append(stack or model.synced)
        self.registry.in_backward.append(model)

    def _is_reached(self, model: Wrapped, outputs: set[int], roots: Sequence[torch.Tensor]) -> bool:
        given = self.events.inputs_given
        if given is not None:  # only these get a gradient
            tensors = [given] if isinstance(given, torch.Tensor) else given
            return bool(outputs) and any(id(tensor) in model.reduced for tensor in tensors)
        return bool(outputs) or (model.opaque and bool(leaves(roots) & model.reduced))

    def _announce_backward(
        self,
        group: str,
        ranks: list[int],
        models: list[Wrapped],
        roots: Sequence[torch.Tensor],
        stack: tuple[Place, ...],
        frames: Sequence[FrameType],
    ) -> None:
        # every rank counts these alike, as none of them ends without its peers
        looked = [m for m in models if (m.synced - 1) % self.session.options.every == 0]
        if not looked or self.events.joining:
            return
        hooked = any(model.has_hook() for model in models)
        backward = BackwardRecord(
            group,
            {model.number: self._state(model) for model in looked},
            None if hooked else self._terms(roots),
            self.finite(roots) is not False,
        )
        called, step = "backward of a DDP model", self.session.step
        record = CallRecord(BACKWARD, called, stack, step, backward=backward)
        self.sequence.event(group, ranks, record, frames)

    def _state(self, model: Wrapped) -> ModelState:
        """What must be alike on all ranks before a backward."""
        now = model.fingerprint() if self.events.stepping else model.note_edits()
        weights = "" if model.is_local_sgd() else now
        edits = model.edits() if model.edited else Edits()
        ddp = model.ddp()
        return ModelState(
            model.steps,
            model.last_step,
            weights,
            edits,
            stepping=self.events.stepper if self.events.stepping else "",
            training=ddp is None or ddp.module.training,
            norms=self.norms(model) or (),
        )

    def _terms_of(self, roots: Sequence[torch.Tensor]) -> tuple[Term, ...]:
        given = self.events.gradients_given
        given = [given] * len(roots) if isinstance(given, torch.Tensor | None) else given
        found: list[Term] = []
        for root, gradient in zip(roots, given, strict=True):
            if gradient is None or gradient.numel() == 1:
                found += loss_terms(root, 1.0 if gradient is None else float(gradient))
        return tuple(found)

    def backward_ends(self, roots: Sequence[torch.Tensor]) -> None:
        for model, before in self._passed_by:
            model.since.elsewhere += _mark(model) != before
        self._passed_by = []

    def stepped(self, optimizer: Optimizer) -> None:
        for model in self.registry.stepped_by(optimizer):
            model.steps += 1
            model.idle = model.idle_forwards()
            model.since = SinceStep()
            model.outputs.clear()
            model.edited, model.edit = [], None

    def joined(self) -> None:
        for model in self.registry.models:
            model.start_anew()

    # ---- records

    def doing(self) -> Doing:
        """How far this rank's training is."""
        passes, models = self.passes, self.registry.models
        wrappers = [ddp for model in models if (ddp := model.ddp()) is not None]
        last = passes.training
        return Doing(
            passes.trainings,
            last.batches if last is not None else 0,
            last is not None and last.complete,
            sum(model.idle_forwards() for model in models),
            bool(wrappers) and not any(ddp.module.training for ddp in wrappers),
        )

    def at_end(self) -> None:
        """What others may ask about a rank that has ended."""
        self.session.line.publish(DOING, self.doing())

    def _announce(
        self, group: str, ranks: list[int], record: CallRecord, blocking: bool = True
    ) -> None:
        frames, _ = user_frames()
        self.sequence.event(group, ranks, record, frames, blocking=blocking)


def _mark(model: Wrapped) -> list:
    """Something that changes when a backward brings gradients to a model."""
    trainable = [p for p in model.alive() if p is not None and p.requires_grad]
    grads = [p.grad for p in (*trainable[:1], *trainable[-1:])]
    return [None if grad is None else (id(grad), grad._version) for grad in grads]
