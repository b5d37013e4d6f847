"""Errors that Python printed and went on from: no run ends of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from ddp_helpers.diagnosis.log_marks import Line

# what Python could only print, since nobody was there to catch it: no process ends of it
IGNORED = re.compile(
    r"Exception ignored (?:in|on|while)\b|--- Logging error ---$|Error in sys\.excepthook:$|"
    r"Exception in thread QueueFeederThread:$"
)
IGNORED_ENDS = {"--- Logging error ---": re.compile(r"Arguments: ")}
FLUSH_LEFT = re.compile(r"(?!Traceback \(most recent)\S")  # the others end with their exception
LONGEST_IGNORED = 60  # lines


def without_ignored(lines: Sequence[Line]) -> list[Line]:
    """Without the errors that Python printed and went on: in a `__del__`, in a logger."""
    if not any(IGNORED.match(line.text) for line in lines):
        return list(lines)
    dropped = {id(line) for each in by_source(lines) for line in _ignored(each)}
    return [line for line in lines if id(line) not in dropped]


def _ignored(lines: Sequence[Line]) -> Iterator[Line]:
    at = 0
    while at < len(lines):
        head = IGNORED.match(lines[at].text)
        at += 1
        if not head:
            continue
        yield lines[at - 1]
        within = lines[at : at + LONGEST_IGNORED]
        end = IGNORED_ENDS.get(head[0], FLUSH_LEFT)
        found = (n for n, each in enumerate(within) if end.match(each.text))
        last = next(found, 0 if end is FLUSH_LEFT else -1)
        yield from within[: last + 1]
        at += last + 1


def by_source(lines: Sequence[Line]) -> list[list[Line]]:
    """The lines of each rank: they print at the same time, and a message goes on in its next."""
    sources: dict[str, list[Line]] = {}
    for line in lines:
        sources.setdefault(line.source, []).append(line)
    return list(sources.values())
