"""Errors in the log of any run: torchrun's, mp.spawn's, Slurm's, or a rank's own output.

Logs mix the lines of several ranks, with marks in front (`[rank0]:`, `1: `, `[default1]:`), and
wrap the cause in the errors of the launchers. Here they become plain texts `Type: message`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

MARK = re.compile(r"(?:\[(?:rank ?|default|\w[\w.-]*:)?(\d+)\]:? ?|(\d+): )")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# the whole line is the type, or the type and a colon: a sentence may mention ValueError, too
HEADER = re.compile(
    r"(?:[A-Za-z_][\w.]*\.)?([A-Z]\w*(?:Error|Exception|Interrupt|Exit)|gaierror)(?:: (.*)|:?)$"
)
ABORT = re.compile(r"terminate called after throwing an instance of '(?:\w+::)*(\w+)'")
WHAT = re.compile(r"\s*what\(\):\s*(.*)")
# with the host, process and GPU in front, or with the time in front and the host behind NCCL
NCCL_WARNING = re.compile(r".*\] (?:NCCL WARN|NCCL.* WARN) (.*)|.*NCCL WARN (.*)")
NOT_PART = re.compile(
    r"Traceback \(most recent|Exception raised from|frame #\d|During handling of the above|"
    r"The above exception was|-- Process \d|\s*File \"|=====|-----|terminate called"
)
# raised by launchers around a rank's own error, which stands in the log itself
WRAPPERS = ("ProcessRaisedException", "ProcessExitedException", "ChildFailedError")
LONGEST_MESSAGE = 12  # lines; NCCL's and load_state_dict's name the reason within them
WHAT_WITHIN = 2  # lines after an abort: what() is the next, if no other thread comes between


def read_lines(text: str) -> list[tuple[str, str]]:
    """`(rank, line)` of each line without colours and marks; rank is "" where none is told."""
    lines = []
    for line in COLOUR.sub("", text).splitlines():
        mark = MARK.match(line)
        rank = (mark[1] or mark[2]) if mark else ""
        lines.append((rank, line[mark.end() :] if mark else line))
    return lines


def plain_text(text: str) -> str:
    """The log without colours and marks."""
    return "\n".join(line for _, line in read_lines(text))


def find_errors(text: str) -> list[str]:
    """The errors in a log, as `Type: message`, in order of appearance; no launcher's wrappers."""
    # ranks print at the same time: a message goes on in the next line of the same rank
    by_rank: dict[str, list[tuple[int, str]]] = {}
    for number, (rank, line) in enumerate(read_lines(text)):
        by_rank.setdefault(rank, []).append((number, line))
    found = [error for lines in by_rank.values() for error in _errors(lines)]
    return list(dict.fromkeys(error for _, error in sorted(found)))


def _errors(lines: list[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    for index, (number, line) in enumerate(lines):
        following = [text for _, text in lines[index + 1 : index + 1 + LONGEST_MESSAGE]]
        if (header := HEADER.match(line)) and header[1] not in WRAPPERS:
            yield number, _join(header[1], header[2] or "", following)
        elif abort := ABORT.search(line):
            what = next(filter(None, map(WHAT.match, following[:WHAT_WITHIN])), None)
            yield number, f"{abort[1]}: {what[1] if what else ''}"
        elif warning := NCCL_WARNING.match(line):
            yield number, f"ncclWarning: [WARN] {warning[1] or warning[2]}"


def _join(kind: str, first: str, following: list[str]) -> str:
    """A message with its further lines, up to the next error or traceback."""
    lines = [first]
    for line in following:
        if NOT_PART.match(line) or HEADER.match(line):
            break
        lines.append(line)
    message = "\n".join(lines).strip()
    return f"{kind}: {message}" if message else kind
