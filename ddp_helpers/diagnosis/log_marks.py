"""What launchers, schedulers, loggers and readers put in front of a line, and the rank it names.

`[rank1]: `, `1: `, `[default1]:`, `[1,0]<stderr>:`, times, Kubernetes, Ray, docker, a quote's `> `,
a bar of progress: all of it is taken off, one after the other, until the line itself begins. What
is known of nobody shows itself: the same words in front of a traceback and of its first `File`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ddp_helpers.diagnosis.log_packed import TRACEBACK_BEGINS, unpacked

_TIME = r"\d{4}[-/]\d\d[-/]\d\d[T _]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z| ?[+-]\d\d:?\d\d)?"
# a, b or c is the rank; s names the process, where no rank is told
PREFIXES = tuple(
    re.compile(pattern)
    for pattern in (
        r"\[rank:? ?(?P<a>\d+)\]:? ?|\[default(?P<b>\d+)\]: ?|\[(?P<c>\d{1,3})\]: ?(?![+,<-])",
        r"\[(?P<a>\d+)\]<(?:stdout|stderr)>: ?",  # horovodrun
        r"(?P<s>\[\d{1,3}\]) ?(?![+,<-])",  # a rank, a thread, or an item of a list
        r"\[\d{4,}\] ",  # a paste with its lines counted
        r"E {7}|E$",  # pytest
        r"\[(?:[\w.-]+@)?\d+,(?P<a>\d+)\](?:<(?:stdout|stderr|stddiag)>)?: ?",  # mpirun
        r"\[[A-Za-z_][\w.-]*:(?P<a>\d+)\]:? ?",  # node:rank; torchrun's --role
        r" {0,5}(?P<a>\d{1,5}): ",  # srun -l
        r"\[?(?:[Rr]ank|RANK)[ :=]{0,2}(?P<a>\d+)\]?(?::| \||\s-) ?|\[(?:Rank|RANK) (?P<b>\d+)\] ?",
        rf"{_TIME} (?:stdout|stderr) [FP] ",  # Kubernetes
        rf"\[?{_TIME}\]?(?: UTC)?(?: -)? {{0,2}}",
        r"\[?\d\d:\d\d:\d\d(?:[.,]\d+)?\]? ",
        r"[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d \d{4}(?:: ?|(?=\[)| )",
        r"[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d [\w.-]+ [\w./-]+(?:\[\d+\])?: ",  # the journal
        r"\[ *\d+\.\d{6}\] ",  # the kernel's
        r"(?P<s>\((?:[\w.:<>-]+(?:\([^()]*\))? )?pid=\d+(?:, [^()]*)?\)) ?",  # Ray
        r"(?P<s>\[pod/[^\]\s]+\]) ?",  # kubectl logs --prefix
        r"(?P<s>\(raylet(?:, [^()]*)?\)) ?",
        r"(?P<s>[A-Za-z][\w.-]*?[-_]?\d*) +\| (?!-)",  # docker compose
        r"(?:> ?)+",  # a quote
        r"(?:ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d \[?[\w./-]+\.py:\d+\] ?",  # vLLM
        r"E\d{4} [\d:.]+ +\d+ \S*error_handler\.py:\d+\] ?",  # torchrun, of a recorded error
        r'ErrorMessage "(?=\w+(?:Error|Exception): )',  # SageMaker
        r" {2,}\| {1,2}",  # a group of exceptions
        r"[^\[\]\n]{0,200}?\d+%\|[^|]*\| *[\d.?kMG]+/[\d.?kMG]+ \[[^\]]*\]",  # tqdm's bar
        r"\d+it \[[^\]]*it/s[^\]]*\]",
    )
)
# what loggers add to the message itself; taken off only where an error is looked for
_LEVEL = r"(?:DEBUG|INFO|WARNING|WARN|ERROR|CRITICAL|FATAL)"
LOGGERS = tuple(
    re.compile(pattern)
    for pattern in (
        r"\[?[EWIF](?:\d{3,4} \d\d:\d\d:\d\d[.\d]*)?(?: +\d+)? [^\]\s]*\] ?",  # glog, torchrun
        r"\d\d-\d\d \d\d:\d\d:\d\d ",
        rf"\[?{_LEVEL}\]?(?:\s*[|:-]\s*|\s+)(?:\[[^\]]*\](?:: | - | |$))?",
        rf"{_LEVEL}:[\w.]+:",
        r"[\w.<>]+:[\w.<>]+:\d+ - ",  # loguru
        rf"\[(?:[\w.]+(?:\.py)?(?::\w+)*(?::\d+)?|{_LEVEL})\](?: - |:? )?",
        r"\| ",
    )
)
HOST = re.compile(r'([A-Za-z][\w.-]*): (?:Traceback \(most recent|  File "/)')
LOUD = re.compile(r"\[?(?:ERROR|CRITICAL|FATAL)\b|\| (?:ERROR|CRITICAL|FATAL) ")
_RANKS_LINE = re.compile(r"(?<!^)(?<![(\"'`])(?=\[rank\d+\]:)")
_TRACEBACK = re.compile(
    r"(?<=\S)(?<!Original)(?<!Group) ?(?=\bTraceback \(most recent call last\):)"
)
RAY_REPEATS = re.compile(r" \[repeated \d+x across cluster\].*$")
BARE_NUMBER = re.compile(r"\[(\d+)\]$")
LONGEST_MARK = 120  # characters
WITHIN = 6  # lines: others may write between a traceback's head and its first frame
MOST_TRIES = 300  # of marks that differ in their digits only: pods, or steps
RANK_IN_MARK = re.compile(r"rank[-_:= ]?(\d+)")
DIGITS = re.compile(r"\d+")


@dataclass(frozen=True)
class Line:
    """One line of a log, without what stood in front of it."""

    number: int
    """Its place in its file, counted from 1."""
    text: str
    rank: str = ""
    """The rank that it names, or ""."""
    source: str = ""
    """Lines of one source follow each other: its rank, its process, its file."""
    file: str = ""

    @property
    def where(self) -> str:
        """`rank 1, line 12`."""
        rank = f"rank {self.rank}, " if self.rank else ""
        return f"{rank}{f'{self.file}, ' if self.file else ''}line {self.number}"


def _parted(text: str) -> Iterator[str]:
    """The line; two, if one rank wrote into the line of another."""
    for piece in _RANKS_LINE.split(text) if "[rank" in text else [text]:
        before = _TRACEBACK.split(piece)[0] if "Traceback (most" in piece else piece
        if before != piece and without_logger(take_off(before)[2]).strip():
            yield before
            yield piece[len(before) :].lstrip()
        else:
            yield piece


def take_off(text: str) -> tuple[str, str, str]:
    """`(rank, source, line)`: what stood in front tells the rank, or at least the process."""
    rank = source = ""
    found = True
    while found and text:
        found = False
        for prefix in PREFIXES:
            hit = prefix.match(text)
            if not hit or not hit.end():
                continue
            told = hit.groupdict()
            source = told.pop("s", None) or source
            # the innermost is torch's own and knows best: a task of srun may hold several ranks
            rank = next(filter(None, told.values()), rank)
            text = text[hit.end() :]
            found = True
    if "across cluster]" in text:
        text = RAY_REPEATS.sub("", text)
    return rank, source, text


def without_logger(text: str) -> str:
    """The message alone, without the level and the place that a logger put in front."""
    found = True
    while found:
        found = False
        for prefix in LOGGERS:
            if (hit := prefix.match(text)) and hit.end():
                text, found = text[hit.end() :], True
    return text


def read(numbered: Iterable[tuple[int, str]], file: str = "", rank: str = "") -> list[Line]:
    """The lines of one file, each with its rank.

    Args:
        numbered: numbers and texts of the lines that are worth a look.
        file: its name, if there are several.
        rank: the rank that the file belongs to, if that is known.
    """
    pieces = [
        (number, *take_off(text))
        for number, raw in _without_hosts(list(numbered))
        for text in unpacked(raw)
    ]
    lines = []
    for number, rank_told, process, whole in _without_own_marks(pieces):
        for part in _parted(whole):
            told, source, text = take_off(part)
            if part.strip() and not text.strip() and part is not whole:
                continue  # the mark of a launcher, with the mark of torch behind it
            mine, source = told or rank_told or rank, source or process
            lines.append(Line(number, text, mine, f"{file}|{source}|{mine}", file))
    return _without_margin(_without_loud_logger(lines))


Piece = tuple[int, str, str, str]
"""A line's number, the rank and the process that it names, and its text."""


def _without_own_marks(pieces: list[Piece]) -> list[Piece]:
    """Without what a tool that nobody knows put in front of each line: kubectl, stern, grep, ...

    A bare `[1]` is the rank if tracebacks, too, stand behind it; else it may count anything.
    """
    heads = [at for at, piece in enumerate(pieces) if TRACEBACK_BEGINS in piece[3]]
    ranks = {pieces[at][2] for at in heads if BARE_NUMBER.match(pieces[at][2])}
    marks = sorted(_own_marks(pieces, heads), key=len, reverse=True)
    if not marks and not ranks:
        return pieces
    mark = re.compile("|".join(marks) or "(?!)")
    taken = []
    for number, told, source, text in pieces:
        if hit := mark.match(text):
            rank, process, text = take_off(text[hit.end() :])
            named = RANK_IN_MARK.search(hit[0])
            told = rank or told or (named[1] if named else "")
            # of a time or a number that goes on, the lines are one process's
            own = hit[0] if re.escape(hit[0]) in marks else DIGITS.sub("0", hit[0])
            source = process or own.strip() or source
        if not told and source in ranks:
            told = source.strip("[]")
        taken.append((number, told, source, text))
    return taken


def _own_marks(pieces: Sequence[Piece], heads: Sequence[int]) -> set[str]:
    """What stands in front of these tracebacks, as patterns."""
    marks: set[str] = set()
    tries: Counter[str] = Counter()
    for at in heads:
        before = pieces[at][3].split(TRACEBACK_BEGINS)[0]
        alike = DIGITS.sub("0", before)
        tries[alike] += 1
        # a log of nothing but errors must not take for ever
        if before.strip() and len(before) <= LONGEST_MARK and tries[alike] <= MOST_TRIES:
            marks.add(_own_mark(before, [p[3] for p in pieces[at + 1 : at + 1 + WITHIN]]))
    return marks - {""}


def _own_mark(before: str, following: Sequence[str]) -> str:
    """The pattern of what stands before this traceback, if it stands before its frame, too."""
    starts = range(1, len(before) + 1)
    own = re.escape(before[: next(i for i in starts if not take_off(before[i:])[2])])
    # with a time or a number that goes on, its digits differ
    for pattern in (own, DIGITS.sub(r"\\d+", own)):
        for text in following:
            hit = re.match(pattern, text)
            if hit and take_off(text[hit.end() :])[2].startswith('  File "'):
                return pattern
    return ""


def _without_hosts(numbered: list[tuple[int, str]]) -> list[tuple[int, str]]:
    """pdsh and DeepSpeed put the host in front: a name before a traceback can be nothing else."""
    hosts = {hit[1] for _, raw in numbered if (hit := HOST.match(raw))}
    if not hosts:
        return numbered
    return [
        (number, raw.removeprefix(f"{host}: ") if (host := raw.split(": ")[0]) in hosts else raw)
        for number, raw in numbered
    ]


def _without_loud_logger(lines: list[Line]) -> list[Line]:
    """Where a logger wrote each line of an error, it is taken off each; `INFO` is no error."""
    plain: dict[str, list[str]] = {}
    for line in lines:
        plain.setdefault(line.source, []).append(line.text)
    loud = {
        source
        for source, texts in plain.items()
        if all(LOUD.match(text) for text in texts if text.strip())
    }
    return [
        replace(line, text=without_logger(line.text)) if line.source in loud else line
        for line in lines
    ]


def _without_margin(lines: list[Line]) -> list[Line]:
    """A paste is indented as a whole: each line loses what all of its source have in front."""
    margins: dict[str, int] = {}
    for line in lines:
        if line.text.strip():
            width = len(line.text) - len(line.text.lstrip(" \t"))
            margins[line.source] = min(width, margins.get(line.source, width))
    if not any(margins.values()):
        return lines
    return [
        replace(line, text=line.text[cut:]) if (cut := margins.get(line.source)) else line
        for line in lines
    ]
