"""What launchers, schedulers, loggers and readers put in front of a line, and the rank it names.

`[rank1]: `, `1: `, `[default1]:`, `[1,0]<stderr>:`, times, Kubernetes, Ray, docker, a quote's `> `,
a bar of progress: all of it is taken off, one after the other, until the line itself begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

COLOUR = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\))|\x08")
_TIME = r"\d{4}[-/]\d\d[-/]\d\d[T _]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z| ?[+-]\d\d:?\d\d)?"
# a, b or c is the rank; s names the process, where no rank is told
PREFIXES = tuple(
    re.compile(pattern)
    for pattern in (
        r"\[rank:? ?(?P<a>\d+)\]:? ?|\[default(?P<b>\d+)\]: ?|\[(?P<c>\d{1,3})\]:? ?(?![+,<-])",
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
        r"(?P<s>\(raylet(?:, [^()]*)?\)) ?",
        r"(?P<s>[A-Za-z][\w.-]*?[-_]?\d*) +\| (?!-)",  # docker compose
        r"(?:> ?)+",  # a quote
        r"(?:ERROR|CRITICAL) \d\d-\d\d \d\d:\d\d:\d\d \[?[\w./-]+\.py:\d+\] ?",  # vLLM
        r"E\d{4} [\d:.]+ +\d+ \S*error_handler\.py:\d+\] ?",  # torchrun, of a recorded error
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
DOCKER_JSON = re.compile(r'\{"log":"')


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


def split_lines(number: int, raw: str) -> Iterator[tuple[int, str]]:
    """The line; two, if one rank wrote into the line of another."""
    if raw.startswith('{"log":"') and DOCKER_JSON.match(raw):
        raw = _from_json(raw)
    raw = COLOUR.sub("", raw)
    for piece in _RANKS_LINE.split(raw) if "[rank" in raw else [raw]:
        before = _TRACEBACK.split(piece)[0] if "Traceback (most" in piece else piece
        if before != piece and without_logger(take_off(before)[2]).strip():
            yield number, before
            yield number, piece[len(before) :].lstrip()
        else:
            yield number, piece


def _from_json(raw: str) -> str:
    import json

    try:
        return str(json.loads(raw)["log"]).rstrip("\n")
    except (ValueError, KeyError):
        return raw


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
    lines = []
    for number, raw in _without_hosts(list(numbered)):
        for _, piece in split_lines(number, raw):
            told, source, text = take_off(piece)
            if piece.strip() and not text.strip() and piece is not raw:
                continue  # the mark of a launcher, with the mark of torch behind it
            mine = told or rank
            lines.append(Line(number, text, mine, f"{file}|{source}|{mine}", file))
    return _without_margin(_without_loud_logger(lines))


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
