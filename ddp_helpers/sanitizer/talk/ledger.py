"""Records of steps, compared with those of the lowest rank as soon as they are there."""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ddp_helpers.sanitizer.talk.channel import Gone
from ddp_helpers.sanitizer.talk.session import PATIENCE_AT_END, SanitizerError, Session

KEPT = 64  # steps by which a rank may run ahead and still be compared
PATIENCE = 1.0  # seconds to wait for the other ranks' records once two differ
Report = Callable[[dict[int, dict]], None]


@dataclass(frozen=True)
class _Open:
    name: str
    ranks: tuple[int, ...]
    record: dict
    report: Report


class Ledger:
    """Leaves a record for each step; every rank compares its own with that of the lowest rank.

    Nothing here waits while the program runs.

    Args:
        session: this process's session.
        topic: a word of its own, in front of every name.
        digest: what of a record must be alike on all ranks.
    """

    def __init__(self, session: Session, topic: str, digest: Callable[[dict], object]) -> None:
        self.session = session
        self.topic = topic
        self.digest = digest
        self._open: deque[_Open] = deque(maxlen=KEPT)
        self._left: deque[str] = deque()
        session.on_group.append(self._forget_all)
        session.at_last.append(session.guarded(topic, self.finish))

    def leave(
        self,
        name: str,
        record: dict,
        ranks: Sequence[int],
        report: Report,
        *,
        look: bool = True,
    ) -> None:
        """Publish this rank's record, and compare whatever is there by now.

        Args:
            name: the same on all these ranks for records that belong together.
            report: gets the records of all ranks that are there when two differ.
            look: False if somebody will ask for a comparison soon, or `drop` the record.
        """
        channel = self.session.channel
        if channel is None or len(ranks) < 2:
            return
        channel.publish(self._key(name), record)
        self._left.append(name)
        if len(self._left) > KEPT:
            channel.forget(self._key(self._left.popleft()))
        if self.session.rank != min(ranks):
            self._open.append(_Open(name, tuple(ranks), record, report))
        if look:
            self.look()

    def drop(self, name: str) -> None:
        """This record is known to be alike on all ranks."""
        for entry in [entry for entry in self._open if entry.name == name]:
            self._open.remove(entry)

    def brief(self, record: dict) -> int:
        """A number that is the same for records that are alike."""
        return zlib.crc32(repr(self.digest(record)).encode())

    def look(self) -> None:
        """Compare what has become comparable."""
        while self._open and self.session.channel is not None:
            first = self._open[0]
            lowest = self.session.channel.read(self._key(first.name), [min(first.ranks)])
            if lowest is None:
                return
            self._open.popleft()
            self._compare(first, lowest)

    def all_of(self, name: str, ranks: Sequence[int], patience: float = PATIENCE) -> dict:
        """The records of all these ranks that come in time."""
        channel = self.session.channel
        try:
            return channel.wait(self._key(name), ranks, patience, self.session.have_left_all)
        except Gone:
            return channel.read_those_here(self._key(name), ranks)

    def finish(self) -> None:
        """Compare what is left, waiting for those that have not come yet, but not for long."""
        until = time.monotonic() + PATIENCE_AT_END
        while self._open and self.session.channel is not None:
            first = self._open.popleft()
            left = max(0.0, until - time.monotonic())
            self._compare(first, self.all_of(first.name, [min(first.ranks)], left))

    def _compare(self, mine: _Open, lowest: dict[int, dict]) -> None:
        for theirs in lowest.values():
            if repr(self.digest(theirs)) != repr(self.digest(mine.record)):
                self._report(mine)

    def _report(self, mine: _Open) -> None:
        try:
            mine.report(self.all_of(mine.name, mine.ranks))
        except SanitizerError:
            self._open.clear()  # what comes after is a consequence
            raise

    def _forget_all(self) -> None:
        self._open.clear()
        self._left.clear()

    def _key(self, name: str) -> str:
        return f"{self.topic}/{name}"
