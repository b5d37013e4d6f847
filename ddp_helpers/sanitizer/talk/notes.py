"""What is only slow or wasteful is told by one rank, though several found it."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass

from ddp_helpers.sanitizer.talk.channel import Gone
from ddp_helpers.sanitizer.talk.session import PATIENCE_AT_END, Session


@dataclass(frozen=True)
class NotesRecord:
    """The kinds and causes of a rank's notes."""

    notes: tuple[tuple[str, str], ...]
    accepted: dict[str, int]
    """How often findings came that the reader has accepted."""


def tell_notes_once(session: Session) -> None:
    """Let a note that several ranks have be told by the lowest of them."""

    def compare() -> None:
        notes = tuple((f.kind, f.cause) for f in session.findings if not f.serious)
        mine = NotesRecord(notes, dict(session.accepted))
        session.line.publish("notes", mine)
        lower = range(session.rank if notes else 0)
        with contextlib.suppress(Gone):
            session.line.wait("notes", lower, NotesRecord, PATIENCE_AT_END, session.have_ended)
        for told in session.line.read_those_here("notes", lower, NotesRecord).values():
            session.told |= set(told.notes)
        if session.rank == 0:  # which closes with what all of them found
            for others in session.gather("notes", mine).values():
                session.told_elsewhere |= {kind for kind, _ in others.notes}
                session.accepted |= Counter(others.accepted)  # of each kind the most

    session.at_last.append(session.guarded("notes", compare))
