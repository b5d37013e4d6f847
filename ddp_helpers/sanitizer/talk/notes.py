"""What is only slow or wasteful is told by one rank, though several found it."""

from __future__ import annotations

import contextlib

from ddp_helpers.sanitizer.talk.channel import Gone
from ddp_helpers.sanitizer.talk.session import PATIENCE_AT_END, Session


def tell_notes_once(session: Session) -> None:
    """Let a note that several ranks have be told by the lowest of them."""

    def compare() -> None:
        notes = [[f.kind, f.cause] for f in session.findings if not f.serious]
        session.channel.publish("notes", notes)
        lower = range(session.rank if notes else 0)
        with contextlib.suppress(Gone):
            session.channel.wait("notes", lower, PATIENCE_AT_END, session.have_ended)
        for told in session.channel.read_those_here("notes", lower).values():
            session.told |= {tuple(note) for note in told}

    session.at_last.append(session.guarded("notes", compare))
