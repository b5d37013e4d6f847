"""Records of steps, compared with those of the lowest rank as soon as they are there."""

from __future__ import annotations

import time
import zlib
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from ddp_helpers.sanitizer.talk.channel import Gone
from ddp_helpers.sanitizer.talk.session import PATIENCE_AT_END, SanitizerError, Session

KEPT = 64  # steps by which a rank may run ahead and still be compared
PATIENCE = 1.0  # seconds to wait for the other ranks' records once two differ


class Entry(Protocol):
    """A record that knows what of it matters."""

    @property
    def alike(self) -> object:
        """What must be the same on all ranks."""


E = TypeVar("E", bound=Entry)


@dataclass(frozen=True)
class _Open(Generic[E]):
    name: str
    ranks: tuple[int, ...]
    record: E
    report: Callable[[dict[int, E]], None]


class Ledger:
    """Leaves a record for each step; every rank compares its own with that of the lowest rank.

    Nothing here waits while the program runs.

    Args:
        session: this process's session.
        topic: a word of its own, in front of every name.
    """

    def __init__(self, session: Session, topic: str) -> None:
        self.session = session
        self.topic = topic
        self._open: deque[_Open] = deque(maxlen=KEPT)
        self._left: deque[str] = deque()

    def leave(
        self,
        name: str,
        record: E,
        ranks: Sequence[int],
        report: Callable[[dict[int, E]], None],
        *,
        look: bool = True,
    ) -> None:
        """Publish this rank's record, and compare whatever is there by now.

        Args:
            name: the same on all these ranks for records that belong together, which are of one
                kind.
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

    def look(self) -> None:
        """Compare what has become comparable."""
        while self._open and (channel := self.session.channel) is not None:
            first = self._open[0]
            name, kind = self._key(first.name), type(first.record)
            lowest = channel.read(name, [min(first.ranks)], kind)
            if lowest is None:
                return
            self._open.popleft()
            self._compare(first, lowest)

    def all_of(
        self, name: str, ranks: Sequence[int], kind: type[E], patience: float = PATIENCE
    ) -> dict[int, E]:
        """The records of all these ranks that come in time."""
        channel, key = self.session.line, self._key(name)
        try:
            return channel.wait(key, ranks, kind, patience, self.session.have_left_all)
        except Gone:
            return channel.read_those_here(key, ranks, kind)

    def finish(self) -> None:
        """Compare what is left, waiting for those that have not come yet, but not for long."""
        until = time.monotonic() + PATIENCE_AT_END
        while self._open and self.session.channel is not None:
            first = self._open.popleft()
            left = max(0.0, until - time.monotonic())
            lowest = self.all_of(first.name, [min(first.ranks)], type(first.record), left)
            self._compare(first, lowest)

    def _compare(self, mine: _Open[E], lowest: Mapping[int, E]) -> None:
        for theirs in lowest.values():
            if repr(theirs.alike) != repr(mine.record.alike):  # a nan is not equal to itself
                self._report(mine)

    def _report(self, mine: _Open[E]) -> None:
        try:
            mine.report(self.all_of(mine.name, mine.ranks, type(mine.record)))
        except SanitizerError:
            self._open.clear()  # what comes after is a consequence
            raise

    def forget_all(self) -> None:
        """A new process group starts."""
        self._open.clear()
        self._left.clear()

    def _key(self, name: str) -> str:
        return f"{self.topic}/{name}"


def brief(record: Entry) -> int:
    """A number that is the same for records that are alike."""
    return zlib.crc32(repr(record.alike).encode())
