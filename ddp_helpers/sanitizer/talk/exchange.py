"""Records that ranks leave for one another and compare as soon as all are there, never waiting."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ddp_helpers.sanitizer.talk.channel import Gone
from ddp_helpers.sanitizer.talk.session import PATIENCE_AT_END, Session

KEPT = 8  # records of a rank that stay in the store; older ones are compared or of no use
Compare = Callable[[dict[int, dict]], None]


@dataclass(frozen=True)
class _Open:
    name: str
    ranks: tuple[int, ...]
    compare: Compare


class Exchange:
    """Leaves records; the lowest of their ranks compares them when it finds all of them.

    Args:
        session: this process's session.
        topic: a word of its own, in front of every name.
    """

    def __init__(self, session: Session, topic: str) -> None:
        self.session = session
        self.topic = topic
        self._open: list[_Open] = []
        self._left: deque[str] = deque()
        session.on_group.append(self._forget_all)
        session.at_last.append(session.guarded(topic, self.finish))

    def leave(self, name: str, record: dict, ranks: Sequence[int], compare: Compare) -> None:
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
            records = channel.read(self._key(pending.name), pending.ranks) if channel else None
            if records:
                self._open.remove(pending)
                pending.compare(records)

    def finish(self) -> None:
        """Compare what is left, waiting for those that have not ended yet, but not for long."""
        until = time.monotonic() + PATIENCE_AT_END
        while self._open and self.session.channel is not None:
            pending = self._open.pop(0)
            try:
                records = self.session.channel.wait(
                    self._key(pending.name),
                    pending.ranks,
                    max(0.0, until - time.monotonic()),
                    self.session.have_left_all,
                )
            except Gone:  # the last of them may have come together with the news of their end
                records = self.session.channel.read(self._key(pending.name), pending.ranks)
            if records:
                pending.compare(records)

    def _forget_all(self) -> None:
        self._open.clear()
        self._left.clear()

    def _key(self, name: str) -> str:
        return f"{self.topic}/{name}"
