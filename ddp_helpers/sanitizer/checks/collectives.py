"""The collectives that a program calls itself: the n-th of a group must be alike on all ranks."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import FrameType

import torch.distributed as dist

from ddp_helpers.evidence.collective_methods import INPUTS, is_asynchronous, options_in
from ddp_helpers.evidence.records import Finding, name_ranks
from ddp_helpers.evidence.sent_calls import tensors_in
from ddp_helpers.sanitizer.compare.callsite import (
    CLEAN_UP,
    Place,
    crossed,
    innermost,
    places,
    user_frames,
)
from ddp_helpers.sanitizer.compare.records import CallRecord, TensorKind
from ddp_helpers.sanitizer.talk.sequence import (
    Calls,
    CallSequence,
    Compare,
    ExplainEnd,
    Pending,
    describe,
)
from ddp_helpers.sanitizer.talk.session import Session

# calls that send to each rank what is meant for it, and which argument that is: where no sizes are
# given (after the two tensors), each rank sends equally much to each, and all must agree
SENT = {"alltoall_base": 1, "all_to_all_single": 1}
SAME_ORDER = (
    "let every rank make the same calls in the same order: look for one under an "
    "`if rank == ...`, in a loop of another length, or after an early end"
)


@dataclass(frozen=True)
class Rule:
    """Something that must be alike on all ranks that make one call."""

    of: Callable[[CallRecord], object]
    kind: str
    cause: str
    advice: str = SAME_ORDER


MUST_AGREE = (
    Rule(lambda call: call.op, "different-collective", "the ranks call different collectives"),
    Rule(
        lambda call: call.root,
        "different-source",
        "the ranks name different roots in one {called}",
        "give the same src= or dst= on every rank",
    ),
    Rule(
        lambda call: call.reduce,
        "different-reduce-op",
        "the ranks reduce with different operations in one {called}",
        "give the same op= on every rank",
    ),
    Rule(
        lambda call: [tensor.dtype for tensor in call.tensors],
        "different-dtype",
        "the ranks bring different dtypes to one {called}",
        "convert to one dtype before the call, with tensor.to(...)",
    ),
    Rule(
        lambda call: [tensor.shape for tensor in call.tensors],
        "different-shape",
        "the ranks bring different shapes to one {called}",
        "give tensors of one shape: pad them, or send the sizes first; or a call is missing before",
    ),
    Rule(lambda call: call.model, "different-collective", "the ranks are at different models"),
    Rule(
        lambda call: call.mode, "different-collective", "the ranks run one model in different modes"
    ),
    Rule(lambda call: call.ranks, "different-collective", "the ranks ask for different groups"),
)
# asked last, and told only where one rank comes by the other's line
SITE = Rule(
    lambda call: innermost(call.stack),
    "different-call-site",
    "the ranks are at different {called} calls, one of them is too many",
)


@dataclass(frozen=True)
class Suspect:
    """Equal calls of two ranks at different places, both of which a rank seems to come by."""

    mine: Place | None
    other: Place | None
    finding: Finding


class CollectiveChecker:
    """Compares the collectives that the program calls; DDP's own are the weights checker's."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.sequence = CallSequence(session, self.compare)
        self.explain: list[Compare] = []
        """Asked first about the records of one call; the first finding counts."""
        self.listeners: list[Callable[[str, tuple, str], None]] = []
        """Told before each call: the method, its arguments, torch's function that was called."""
        self.joining: Callable[[], bool] = lambda: False
        """True within `with Join(...)`, where ranks call unalike on purpose."""
        self.explain_ddp: ExplainEnd = lambda record, ranks, details: None
        """Asked why ranks ended before a call."""
        self._suspects: list[Suspect] = []
        self._inside = threading.local()
        self._announce = session.guarded("collectives", self._show)

    def put_patches(self) -> None:
        """Stand in for each method that a function of torch.distributed ends in."""
        put = self.session.patches.put
        for name in INPUTS:
            put(dist.ProcessGroup, name, self._watched(name))
        put(dist.Work, "wait", self._waiting)
        for module in (dist, dist.distributed_c10d):
            put(module, "new_group", self._new_group)

    def _watched(self, name: str) -> Callable[[Callable], Callable]:
        def make(original: Callable) -> Callable:
            def call(group: dist.ProcessGroup, *args: object, **kwargs: object) -> object:
                if self.session.channel is None or getattr(self._inside, "on", False):
                    return original(group, *args, **kwargs)
                self._inside.on = True
                try:
                    pending = self._announce(name, group, args, kwargs)
                    work = original(group, *args, **kwargs)
                finally:
                    self._inside.on = False
                if pending:
                    pending.work = work
                return work

            return call

        return make

    def _show(
        self, name: str, group: dist.ProcessGroup, args: tuple, kwargs: Mapping
    ) -> Pending | None:
        frames, called = user_frames()
        for listener in self.listeners:
            listener(name, args, called or name)
        if self.joining():
            return None  # Join makes calls for ranks that have no data left
        options = options_in((*args, *kwargs.values()))
        record = self._record(name, called or name, args, options, frames)
        return self.sequence.event(
            group.group_name,
            dist.get_process_group_ranks(group),
            record,
            frames,
            blocking=not is_asynchronous(options),
        )

    def _record(
        self, name: str, called: str, args: tuple, options: object, frames: Sequence[FrameType]
    ) -> CallRecord:
        position = SENT.get(name) if not any(args[2:4]) else None
        position = INPUTS[name] if position is None else position
        tensors = list(tensors_in(args[position])) if position is not None else []
        reduce_op = getattr(options, "reduceOp", None)
        return CallRecord(
            name,
            called,
            places(frames),
            self.session.step,
            reduce=_reduce_name(reduce_op) if "reduce" in name else None,
            root=getattr(options, "rootRank", None),
            tensors=tuple(TensorKind.of(tensor) for tensor in tensors),
        )

    def _waiting(self, original: Callable) -> Callable:
        def wait(work: object, *args: object, **kwargs: object) -> object:
            if self.session.channel is not None:
                self.sequence.settle(work)
            return original(work, *args, **kwargs)

        return wait

    def _new_group(self, original: Callable) -> Callable:
        def new_group(ranks: Sequence[int] | None = None, *args: object, **kwargs: object):
            everyone = list(range(self.session.world_size))
            frames, _ = user_frames(2)
            asked = tuple(sorted(ranks) if ranks is not None else everyone)
            stack, step = places(frames), self.session.step
            record = CallRecord("new_group", "new_group", stack, step, ranks=asked)
            local = kwargs.get("use_local_synchronization")  # then only members call
            if not getattr(self._inside, "on", False) and not local:
                self.sequence.event("new_group", everyone, record, frames)
            return original(ranks, *args, **kwargs)

        return new_group

    # ---- comparison

    def compare(self, records: Calls, frames: Sequence[FrameType]) -> Finding | None:
        """What is wrong with one call of all ranks, or None."""
        for explain in self.explain:
            if finding := explain(records, frames):
                return finding
        for rule in MUST_AGREE:
            if _differ(map(rule.of, records.values())):
                return self._finding(rule, records)
        if finding := self._shifted(records):
            return finding
        self._suspect(records, frames)
        return None

    # ---- equal calls at places of which one rank passes both

    def _suspect(self, records: Calls, frames: Sequence[FrameType]) -> None:
        """The code reads as if a call were too many: no evidence yet, so nothing is told."""
        mine = records[self.session.rank].stack
        for rank, record in records.items():
            if rank != self.session.rank and crossed(frames, mine, record.stack):
                found = self._finding(SITE, records)
                self._suspects.append(Suspect(innermost(mine), innermost(record.stack), found))
                return

    def _shifted(self, records: Calls) -> Finding | None:
        """This rank has come to the place where another one was a call before: that is evidence."""
        mine = innermost(records[self.session.rank].stack)
        places_now = {innermost(record.stack) for record in records.values()}
        suspects, self._suspects = self._suspects, []
        for suspect in suspects:
            if mine == suspect.other and suspect.mine not in places_now:
                return suspect.finding
            if mine != suspect.other and suspect.other not in places_now:
                self._suspects.append(suspect)  # as it was; if ranks change places, all is well
        return None

    def explain_end(
        self, record: CallRecord, ranks: list[int], details: list[str]
    ) -> Finding | None:
        """Some ranks ended before a call that this one makes."""
        here = innermost(record.stack)
        for suspect in self._suspects:
            if here == suspect.other:
                return suspect.finding
        return self.explain_ddp(record, ranks, details)

    def at_end(self) -> None:
        """What stayed a suspicion is told as such, by one rank."""
        for suspect in self._suspects[:1]:
            if self.session.rank == 0:
                advice = f"if other numbers come out than expected: {SITE.advice}"
                self.session.found(replace(suspect.finding, serious=False, advice=advice))

    def forget_all(self) -> None:
        """A new process group starts."""
        self._suspects.clear()
        self.sequence.forget_all()

    def _finding(self, rule: Rule, records: Calls) -> Finding:
        values = {rank: repr(rule.of(record)) for rank, record in sorted(records.items())}
        common = Counter(values.values()).most_common(1)[0][0]
        odd = tuple(rank for rank, value in values.items() if value != common)
        called = [record.called for record in records.values() if record.called != CLEAN_UP]
        culprit = odd[0] if odd else self.session.rank
        return Finding(
            rule.kind,
            rule.cause.format(called=called[0] if called else "call"),
            rule.advice,
            odd or tuple(records),
            self.session.step,
            self.session.frame_of(innermost(records[culprit].stack)),
            _details(self.session, records),
        )


def _details(session: Session, records: Calls) -> tuple[str, ...]:
    """A line for each way to call, with the ranks that did so."""
    lines: dict[str, list[int]] = {}
    for rank, record in sorted(records.items()):
        lines.setdefault(describe(session, 0, record).partition(": ")[2], []).append(rank)
    return tuple(f"{name_ranks(ranks)}: {line}" for line, ranks in lines.items())


def _differ(values: Iterable[object]) -> bool:
    return len({repr(value) for value in values}) > 1


def _reduce_name(op: object) -> str | None:
    return None if op is None else str(getattr(op, "op", op)).rpartition(".")[2]
