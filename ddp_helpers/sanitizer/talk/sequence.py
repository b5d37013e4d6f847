"""The n-th call of a group must be the same on all its ranks: number it, show it, compare it."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import FrameType

from ddp_helpers.evidence.records import Finding, name_ranks
from ddp_helpers.sanitizer.compare.callsite import innermost
from ddp_helpers.sanitizer.compare.records import CallBefore, CallRecord, Doing, WaitRecord
from ddp_helpers.sanitizer.talk.channel import Gone
from ddp_helpers.sanitizer.talk.session import FAILED, LEFT, Session

ASYNC_PATIENCE = 0.5  # seconds; an asynchronous call must not wait for its peers for long
QUIET = "quiet"  # a rank's record that it announces no calls any more
MOST_TENSORS = 3  # that a line about a call names
SLOW = 1.0  # seconds of waiting after which a rank tells the others what it waits for
Calls = Mapping[int, CallRecord]
ExplainEnd = Callable[[CallRecord, list[int], list[str]], Finding | None]
Compare = Callable[[Calls, Sequence[FrameType]], Finding | None]


@dataclass
class Pending:
    """An asynchronous call that has not been compared yet."""

    group: str
    ranks: list[int]
    number: int
    record: CallRecord
    work: object = None


class CallSequence:
    """Numbers the calls of each group, and compares them between ranks before they are made.

    Args:
        session: this process's session.
        compare: gets the records of one call by rank and this rank's frames; returns what is
            wrong with them, or None.
    """

    def __init__(self, session: Session, compare: Compare) -> None:
        self.session = session
        self.compare = compare
        self.explain_end: ExplainEnd = lambda record, ranks, details: None
        self.doing: Callable[[], Doing] = Doing
        """How far this rank's training is."""
        self.quiet = False
        self.made = 0  # calls in all
        self._before: dict[str, CallBefore] = {}
        self._counts: dict[str, int] = defaultdict(int)
        self._pending: list[Pending] = []

    def event(
        self,
        group: str,
        ranks: Sequence[int],
        record: CallRecord,
        frames: Sequence[FrameType] = (),
        *,
        blocking: bool = True,
    ) -> Pending | None:
        """Number a call, show it to the group's other ranks, and compare it with theirs.

        Args:
            group: a name that is the same on all ranks.
            ranks: the group's members, as ranks of the default group.
            record: what the call is.
            frames: this rank's own frames.
            blocking: the call waits for its peers anyway, so we may.

        Returns:
            What is left to compare later, or None.

        Raises:
            SanitizerError: the ranks' calls do not match, or a rank will never make this one.
        """
        session = self.session
        if session.channel is None or self.quiet or len(ranks) < 2:
            return None
        self.made += 1
        number = self._counts[group]
        self._counts[group] += 1
        record = replace(record, before=self._before.get(group), doing=self.doing())
        self._before[group] = CallBefore(record.op, record.stack)
        pending = Pending(group, list(ranks), number, record)
        session.channel.publish(_name(group, number), record)
        self.look_at_pending()
        if self._verify(pending, frames, None if blocking else ASYNC_PATIENCE):
            return None
        self._pending.append(pending)
        return pending

    def settle(self, work: object) -> None:
        """An asynchronous call is being waited for: compare it now."""
        for pending in [p for p in self._pending if p.work is work]:
            self._pending.remove(pending)
            self._verify(pending, (), None)

    def give_up(self) -> None:
        """Calls can no longer be counted here: no rank must wait for what we would announce."""
        self.quiet = True
        self._pending.clear()
        if self.session.channel is not None:
            self.session.channel.publish(QUIET, True)

    def _verify(self, call: Pending, frames: Sequence[FrameType], patience: float | None) -> bool:
        """Compare one call; False if `patience` (seconds) was over before all ranks had come."""
        session, channel = self.session, self.session.line
        name = _name(call.group, call.number)
        limit = session.timeout if patience is None else patience
        others = [rank for rank in call.ranks if rank != session.rank]
        started = time.monotonic()
        try:
            hopeless = lambda missing: self._hopeless(call, missing, started)
            records = channel.wait(name, others, CallRecord, limit, hopeless)
        except Gone as gone:
            self.quiet = self.quiet or gone.why == QUIET
            if gone.why in ("store", FAILED, QUIET):
                return True  # the run is ending already; its cause is told elsewhere
            if gone.why == "limit" and patience is not None:
                return False
            session.found(self._absence(call, gone))
            return True
        finally:
            if time.monotonic() > started + SLOW:
                channel.forget("waits")
        finding = self.compare(records | {session.rank: call.record}, frames)
        if finding:
            session.found(finding)
        if call.number:  # all have come this far, so nobody needs the one before
            channel.forget(_name(call.group, call.number - 1))
        return True

    def _hopeless(self, call: Pending, missing: list[int], started: float) -> str | None:
        ended = self.session.what_became_of(missing)
        if ended:
            return FAILED if FAILED in ended.values() else LEFT
        if self.session.line.read_those_here(QUIET, missing, bool):
            return QUIET
        if time.monotonic() < started + SLOW:
            return None
        wait = WaitRecord(tuple(missing), call.group, call.number, call.record)
        self.session.line.publish("waits", wait)
        return "deadlock" if self._is_waited_for(missing) else None

    def _is_waited_for(self, missing: Sequence[int]) -> bool:
        """True if a rank that we wait for waits, through whomever, for us."""
        everyone = range(self.session.world_size)
        waits = self.session.line.read_those_here("waits", everyone, WaitRecord)
        seen: set[int] = set()
        ahead = list(missing)
        while ahead:
            rank = ahead.pop()
            if rank == self.session.rank:
                return True
            if rank in seen or rank not in waits or self._has_moved_on(waits[rank]):
                continue
            seen.add(rank)
            ahead += waits[rank].ranks
        return False

    def _has_moved_on(self, wait: WaitRecord) -> bool:
        """True if a rank's wait is over: those that it waited for have come."""
        return self.session.line.here(_name(wait.group, wait.number), wait.ranks)

    def _absence(self, call: Pending, gone: Gone) -> Finding:
        """Some ranks never made this call."""
        session = self.session
        who, what = name_ranks(gone.ranks), describe(session, session.rank, call.record)
        details = [what]
        waits = session.line.read_those_here("waits", gone.ranks, WaitRecord)
        for rank in gone.ranks:
            if rank in waits:
                details.append(describe(session, rank, waits[rank].call))
            elif before := self._call_before(call, rank):
                details.append(f"{describe(session, rank, before)} was its last call in this group")
        if gone.why == LEFT and (finding := self.explain_end(call.record, gone.ranks, details)):
            return finding
        kind, cause = {
            LEFT: ("rank-ended-early", f"{who} ended while others wait for it"),
            "deadlock": (
                "different-collective",
                "the ranks wait for one another in different calls",
            ),
            "limit": ("rank-did-not-come", f"{who} did not come within {session.timeout:g} s"),
        }[gone.why]
        advice = (
            "let every rank make the same calls in the same order: look for one under an "
            "`if rank == ...`, a loop of another length, or an early end"
        )
        if gone.why == "limit":  # it may only be slow
            advice = (
                f"if {who} was at work: prepare data once and before the run, or give the "
                "group a larger timeout=; else look for a call under an `if rank == ...`"
            )
        return Finding(
            kind,
            cause,
            advice,
            tuple(gone.ranks),
            session.step,
            session.frame_of(innermost(call.record.stack)),
            tuple(details),
        )

    def _call_before(self, call: Pending, rank: int) -> CallRecord | None:
        before = [
            _name(call.group, n) for n in range(call.number - 1, max(-1, call.number - 3), -1)
        ]
        found = (self.session.line.read(name, [rank], CallRecord) for name in before)
        return next((records[rank] for records in found if records), None)

    def look_at_pending(self) -> None:
        """Compare what has become comparable, without waiting."""
        for pending in list(self._pending):
            others = [rank for rank in pending.ranks if rank != self.session.rank]
            if self.session.channel and self.session.channel.here(
                _name(pending.group, pending.number), others
            ):
                self._pending.remove(pending)
                self._verify(pending, (), None)

    def forget_all(self) -> None:
        """A new process group starts."""
        self._counts.clear()
        self._before.clear()
        self._pending.clear()


def _name(group: str, number: int) -> str:
    return f"call/{group}/{number}"


def describe(session: Session, rank: int, record: CallRecord) -> str:
    """`rank 1: all_reduce(SUM) of float32 (3,) at cell In[4], line 7, in train`."""
    inside = ", ".join(
        ([record.reduce] if record.reduce else [])
        + ([f"root {record.root}"] if record.root is not None else [])
    )
    what = record.called + (f"({inside})" if inside else "")
    if tensors := record.tensors:
        what += " of " + ", ".join(f"{t.dtype} {t.shape}" for t in tensors[:MOST_TENSORS])
        what += ", ..." if len(tensors) > MOST_TENSORS else ""
    place = f" at {session.frame(record.stack[-1])}" if record.stack else ""
    return f"rank {rank}: {what}{place}"
