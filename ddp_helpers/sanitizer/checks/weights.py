"""Weights, gradients and settings of wrapped models: alike on all ranks, or why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch.optim.optimizer import Optimizer

from ddp_helpers.evidence.records import Finding
from ddp_helpers.evidence.sent_calls import tensors_in
from ddp_helpers.sanitizer.checks.causes import Causes
from ddp_helpers.sanitizer.checks.gradients import lost_hooks
from ddp_helpers.sanitizer.compare.callsite import places, user_frames
from ddp_helpers.sanitizer.compare.fingerprint import fingerprint, first_difference, settings
from ddp_helpers.sanitizer.compare.records import (
    BackwardRecord,
    ModelState,
    PassEnd,
    StepCount,
    StepRecord,
)
from ddp_helpers.sanitizer.talk.ledger import Ledger, brief
from ddp_helpers.sanitizer.talk.sequence import QUIET, Calls
from ddp_helpers.sanitizer.talk.session import Session
from ddp_helpers.sanitizer.watch.passes import Pass
from ddp_helpers.sanitizer.watch.training_events import TrainingEvents
from ddp_helpers.sanitizer.watch.wrapped import Registry, Wrapped

OFF = "weights-off"  # a rank's record that its checks of weights have ended
# what parameters that are not DDP's any more lead to
BY_LOST_HOOKS = ("gradients-differ", "forward-skipped-ddp", "weights-differ")
# steps without any average after which a program is not believed to be local SGD, which steps on
# each rank's own gradients and averages the weights now and then
PATIENT_STEPS = 128
Backwards = Mapping[int, BackwardRecord]


class WeightsChecker:
    """Leaves a record of each optimizer step, and compares it with the other ranks'.

    The weights before a backward come with DDP's own calls; see `before_backward`.
    """

    def __init__(self, session: Session, events: TrainingEvents, registry: Registry) -> None:
        self.session = session
        self.events = events
        self.registry = registry
        self.causes = Causes(session)
        self._prepared: list[tuple[Wrapped, int, StepRecord | None]] = []
        self._off = False
        self.ledger = Ledger(session, "step")
        self.ends = Ledger(session, "pass")
        self._held: dict[Wrapped, Finding] = {}
        self._sent = 0  # numbers in the program's own collectives, while something is held

    def call_begins(self, name: str, args: tuple, called: str) -> None:
        """The program makes a collective itself: it may average the weights of local SGD."""
        if not self._held:
            return
        self._sent += sum(t.numel() for t in tensors_in(list(args)) if t.is_floating_point())
        for model in [model for model in self._held if self._sent >= model.size]:
            model.averaged_by_hand = True
            del self._held[model]

    def forget(self) -> None:
        """A new process group starts."""
        self._held.clear()
        self.ledger.forget_all()
        self.ends.forget_all()

    def give_up(self) -> None:
        """The other ranks must not take this check's silence for a difference."""
        self.session.line.publish(OFF, True)

    def _tell(self, finding: Finding | None) -> Finding | None:
        """The finding, if no rank's checks have failed themselves."""
        if finding is None or self._off:
            return None
        everyone, channel = range(self.session.world_size), self.session.line
        off = (channel.read_those_here(name, everyone, bool) for name in (QUIET, OFF))
        self._off = any(off)
        return None if self._off else finding

    # ---- an optimizer's step

    def step_begins(self, optimizer: Optimizer) -> None:
        self._prepared = []
        for model in self.registry.stepped_by(optimizer):
            closely = model.look_closely or model.steps % self.session.options.every == 0
            record = self._record(model, optimizer) if closely else None
            self._prepared.append((model, model.steps, record))

    def _record(self, model: Wrapped, optimizer: Optimizer) -> StepRecord:
        averaged = [
            (place, parameter)
            for place in self.registry.held_by(optimizer).averaged[id(model)]
            if (parameter := model.parameters[place]()) is not None
        ]
        if not model.since.synced:  # no call of DDP's has looked at the weights
            model.note_edits()
        frames, _ = user_frames()
        return StepRecord(
            optimizer=type(optimizer).__name__,
            which=tuple(place for place, _ in averaged),
            grads=fingerprint(p.grad for _, p in averaged),
            settings=tuple(settings(optimizer)),
            synced=model.synced,
            since=len(model.since.synced),
            elsewhere=model.since.elsewhere,
            in_no_sync=model.since.ended_in_no_sync,
            edits=model.edits(),
            stack=places(frames),
            step=self.session.step,
        )

    def step_ends(self, optimizer: Optimizer) -> None:
        for model, number, record in self._prepared:
            if record and not model.is_local_sgd():
                model.weights, model.weights_at = model.fingerprint(), model.steps
                model.look_closely = False
                record = replace(record, after=model.weights)
                name = f"{model.key}/{number}"
                model.last_step = brief(record)
                self.ledger.leave(
                    name, record, model.ranks, self._reporter(model), look=not record.since
                )
        self._prepared = []

    def _reporter(self, model: Wrapped) -> Callable[[Mapping[int, StepRecord]], None]:
        def report(records: Mapping[int, StepRecord]) -> None:
            finding = self._tell(self.causes.of_step(records, model.names))
            if finding is not None and not self._may_be_local_sgd(model, finding):
                self.session.found(_by_lost_hooks(finding, model))

        return report

    def _may_be_local_sgd(self, model: Wrapped, finding: Finding) -> bool:
        """All steps so far were taken inside no_sync(): the finding is kept for later."""
        if finding.kind != "ended-inside-no-sync" or model.synced or model.lost():
            return False
        if model not in self._held:
            self._held[model], self._sent = finding, 0
        if model.steps < PATIENT_STEPS:
            return True
        self.session.found(self._held.pop(model))
        return True

    # ---- before a backward, when all ranks have come

    def before_backward(self, backwards: Backwards, records: Calls) -> Finding | None:
        """What is wrong with the weights that a backward of all ranks is about to use."""
        mine = backwards[self.session.rank]
        for number in mine.models:
            states = {rank: each.models[number] for rank, each in sorted(backwards.items())}
            model = self._model(mine.group, number)
            if model is None:
                continue
            if len({state.last for state in states.values()}) == 1:
                self.ledger.drop(f"{model.key}/{model.steps - 1}")
            self.ledger.look()
            if finding := self._tell(self._compare(model, states, records)):
                return finding
        return None

    def _compare(
        self, model: Wrapped, states: Mapping[int, ModelState], records: Calls
    ) -> Finding | None:
        place = first_difference([state.weights for state in states.values()])
        steps = {(state.steps, state.stepping) for state in states.values()}
        if any(inside for _, inside in steps) and (place is not None or len(steps) > 1):
            return self.causes.within_step(states, records)
        if finding := self.causes.of_steps(states, records):
            return finding
        if place is None:
            return None
        last = model.steps - 1
        looked_at_last = model.weights_at == model.steps
        if last >= 0 and not looked_at_last:
            model.look_closely = True  # the next step tells the cause
            return None
        if last >= 0:
            before = self.ledger.all_of(f"{model.key}/{last}", model.ranks, StepRecord)
            if finding := self.causes.of_step(before, model.names):
                return _by_lost_hooks(finding, model)
        found = self.causes.of_weights(states, records, model.names[place])
        return _by_lost_hooks(found, model)

    def _model(self, group: str, number: int) -> Wrapped | None:
        alike = [m for m in self.registry.models if (m.group, m.number) == (group, number)]
        return alike[0] if alike else None

    # ---- the end

    def pass_ends(self, done: Pass) -> None:
        """Whoever went through its data to train has the same weights as the others then."""
        if not (done.complete and done.steps) or self.events.joining:
            return
        for model in self.registry.models:
            if model.ended_pass == model.steps or model.weights_at != model.steps:
                continue
            model.ended_pass, now = model.steps, model.note_edits()
            if not model.is_local_sgd():
                step = self.session.step
                record = PassEnd(now, model.steps, model.edits(), done.stack, step)
                name = f"{model.key}/{model.steps}"
                self.ends.leave(name, record, model.ranks, self._pass_reporter(model))

    def _pass_reporter(self, model: Wrapped) -> Callable[[Mapping[int, PassEnd]], None]:
        def report(records: Mapping[int, PassEnd]) -> None:
            place = first_difference([record.weights for record in records.values()])
            if place is not None and any(record.edits.edited for record in records.values()):
                name = model.names[place]
                if finding := self._tell(self.causes.of_weights(records, records, name)):
                    self.session.found(finding)

        return report

    def at_end(self) -> None:
        for held in self._held.values():
            self.session.found(held)
        for model in self.registry.models:
            if model.steps and not self.events.joining:
                record = StepCount(model.steps, model.synced, self.session.step)
                self.ledger.leave(f"{model.key}/end", record, model.ranks, self._end_reporter())

    def _end_reporter(self) -> Callable[[Mapping[int, StepCount]], None]:
        def report(records: Mapping[int, StepCount]) -> None:
            if finding := self._tell(self.causes.of_steps(records, records)):
                self.session.found(finding)

        return report


def _by_lost_hooks(finding: Finding, model: Wrapped) -> Finding:
    """The finding, or the one that DDP's hooks are not at the module's parameters any more."""
    names = model.lost() if finding.kind in BY_LOST_HOOKS else []
    if not names:
        return finding
    return lost_hooks(names, "", tuple(model.ranks), finding.step or 0, finding.place)
