"""Records that ranks leave for one another and compare as soon as all are there, never waiting."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ddp_helpers.sanitizer.talk.channel import Gone
from ddp_helpers.sanitizer.talk.session import PATIENCE_AT_END, Session

KEPT = 8  # records of a rank that stay in the store; older ones are compared or of no use
R = TypeVar("R")


@dataclass(frozen=True)
class _Open(Generic[R]):
    name: str
    ranks: tuple[int, ...]
    compare: Callable[[dict[int, R]], None]


class Exchange(Generic[R]):
    """Leaves records; the lowest of their ranks compares them when it finds all of them.

    Args:
        session: this process's session.
        topic: a word of its own, in front of every name.
        kind: of the records.
    """

    def __init__(self, session: Session, topic: str, kind: type[R]) -> None:
        self.session = session
        self.topic = topic
        self.kind = kind
        self._open: list[_Open[R]] = []
        self._left: deque[str] = deque()

    def leave(
        self,
        name: str,
        record: R,
        ranks: Sequence[int],
        compare: Callable[[dict[int, R]], None],
    ) -> None:
        """Publish this rank's record, and compare whatever is there by now.

        Args:
            name: the same on all these ranks for records that belong together.
            ranks: who leaves such a record.
            compare: gets the records by rank, on the lowest of these ranks only.
        """
        channel = self.session.channel
        if channel is None or len(ranks) < 2 or self.session.rank not in ranks:
            return
        channel.publish(self._key(name), record)
        self._left.append(name)
        while len(self._left) > KEPT:
            channel.forget(self._key(self._left.popleft()))
        if self.session.rank == min(ranks):
            self._open = [*self._open[-KEPT:], _Open(name, tuple(ranks), compare)]
        self.look()

    def look(self) -> None:
        """Compare what has become comparable."""
        for pending in list(self._open):
            channel = self.session.channel
            if channel is None:
                return
            if records := channel.read(self._key(pending.name), pending.ranks, self.kind):
                self._open.remove(pending)
                pending.compare(records)

    def finish(self) -> None:
        """Compare what is left, waiting for those that have not ended yet, but not for long."""
        until = time.monotonic() + PATIENCE_AT_END
        while self._open and (channel := self.session.channel) is not None:
            pending = self._open.pop(0)
            name, ranks = self._key(pending.name), pending.ranks
            left = max(0.0, until - time.monotonic())
            try:
                found = channel.wait(name, ranks, self.kind, left, self.session.have_left_all)
            except Gone:  # the last of them may have come together with the news of their end
                found = channel.read(name, ranks, self.kind) or {}
            if found:
                pending.compare(found)

    def forget_all(self) -> None:
        """A new process group starts."""
        self._open.clear()
        self._left.clear()

    def _key(self, name: str) -> str:
        return f"{self.topic}/{name}"
