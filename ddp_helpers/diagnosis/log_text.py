"""Errors in the log of any run: torchrun's, mp.spawn's, Slurm's, or a rank's own output.

Logs mix the lines of several ranks and wrap the cause in the errors of the launchers. Here they
become records: type and whole message, the rank, the line of code, and who raised it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import pairwise

from ddp_helpers.diagnosis.log_ignored import by_source
from ddp_helpers.diagnosis.log_marks import Line, read, without_logger
from ddp_helpers.diagnosis.raised import IN_CPP, LoggedError, Place
from ddp_helpers.evidence.records import RankError

_NAMED = r"[A-Z]\w*(?:Error|Exception|Interrupt|Exit)|Stop(?:Async)?Iteration|BdbQuit"
_BARE = r"gaierror|herror|timeout|Error|Empty|Full|Again|TimeoutExpired"
# the whole line is the type, or the type and a colon: a sentence may mention ValueError, too
HEADER = re.compile(
    rf"(?:[A-Za-z_][\w.]*\.)?({_NAMED}|(?<=\.)(?:{_BARE})|gaierror)"
    r"(?:\(\w+\))?(?:: (.*)|:?)$"
)
# below a traceback any name is one: custom exceptions are called what their authors like
ANY_HEADER = re.compile(
    r"(?![A-Z]+_[A-Z_]+:)"  # LSF's TERM_RUNLIMIT
    r"(?:[A-Za-z_][\w.]*\.)?((?<=\.)[a-z_]\w*|[A-Z]\w*(?<!Warning))(?:\([\w.]+\))?(?:: (.*)|:?)$"
)
WARNING_HEADER = re.compile(r"(?:[A-Za-z_][\w.]*\.)?(\w+Warning)(?:: (.*)|:?)$")
# in a box, as rich draws it, are as many dashes as the terminal was wide
TRACEBACK = re.compile(r"(?:[ ╭─]*|.{0,80}?)\bTraceback \(most recent call last\)")
BOX_FRAME = re.compile(r"\s*│ (\S.*?):(\d+) in(?: (\S+))? *│ *$")
BOX_SOURCE = re.compile(r"\s*│ ❱ +\d+ [ │]*(.*?) *│ *$")
FRAME = re.compile(r'(\s*)(?:File "(.+?)"|(cell In ?\[\d+\])), line (\d+)(?:, in (.+))?')
NOTEBOOK_FRAME = re.compile(r"(?:File (\S+?):(\d+), in |Cell In ?\[\d+\], line (\d+))")
# in a paste whose other lines have no margin: with a message, or with its module
INDENTED = re.compile(r"\S+\.\w+: |\w+: \S|(?:\w+\.){2,}\w+$")
METRIC = re.compile(r"\d*\.\d+(?:e-?\d+)?")  # `MeanSquaredError: 0.12` is no error
ABORT = re.compile(r"terminate called after throwing an instance of '((?:\w+::)*)(\w+)'")
WHAT = re.compile(r"\s*what\(\):\s*(.*)")
# with the host, process and GPU in front, or with the time in front and the host behind NCCL
NCCL_WARNING = re.compile(r".*\bNCCL(?: \S+)? WARN (.*)")
WATCHDOG_ENDED = re.compile(r"watchdog thread terminated with exception: (.+)")
CHAIN = re.compile(r"During handling of the above|The above exception was the direct cause")
CHILD = re.compile(r"-- Process (\d+) terminated with the following error")
SUMMARY = re.compile(r"\s*rank\s+: (\d+) \(local_rank: ")  # of torchrun, before a traceback
IN_GROUP = re.compile(r"\s*\+(?:-\+)?-{4,}(?: (\d+|\.\.\.) -{4,})?$")  # between its members
TWICE = re.compile(r"([\w.]+(?:Error|Exception))\1: : (.*)$")  # two ranks, one line
IN_THREAD = re.compile(r"Exception in (thread .+?):$")
CAUGHT = re.compile(r"Caught \w+ in (.+?)\.?$")
NOT_PART = re.compile(
    r"\s*(?:Original )?Traceback \(most recent|Exception raised from|frame #\d|During handling of|"
    r"The above exception was|-- Process \d|\s*File \"|=====|-----|\*\*\*\*\*|terminate called|"
    r"\[?[EWIF]\d{3,4} \d\d:|srun: |slurmstepd: |.*\bNCCL (?:INFO|WARN|VERSION)\b|"
    r"(?:ERROR|INFO|WARNING):[\w.]+:|##\[error\]|\s*\+-{4,}|Fatal Python error|Killed$|Aborted|"
    r"Segmentation fault"
)
# raised by launchers around a rank's own error, which stands in the log itself
WRAPPERS = ("ProcessRaisedException", "ProcessExitedException", "ChildFailedError")
WRAPPING = (
    "RayTaskError",
    "TrainingFailedError",
    "RemoteTraceback",
    "_RemoteTraceback",
    "ExceptionGroup",
    "BaseExceptionGroup",
)
LONGEST_MESSAGE = 12  # lines; NCCL's and load_state_dict's name the reason within them
WHAT_WITHIN = 2  # lines after an abort: what() is the next, if no other thread comes between


def find_errors(text: str) -> list[str]:
    """The errors in a log, as `Type: message`, in order of appearance; no launcher's wrappers."""
    lines = read(enumerate(re.split(r"\r\n|\n|\r", text), 1))
    return list(dict.fromkeys(str(error) for error in read_errors(lines)))


def read_errors(lines: Sequence[Line]) -> list[LoggedError]:
    """The errors in a log, in order of appearance; no launcher's wrappers."""
    found = [error for each in by_source(lines) for error in _Reader(each).errors()]
    order = {id(line): at for at, line in enumerate(lines)}  # of several files, one after another
    return sorted(found, key=lambda error: order[id(error.line)])


def read_cut_off(lines: Sequence[Line]) -> tuple[Line, Place] | None:
    """The first traceback that ends before its exception: its first line, and where it stood."""
    for each in by_source(lines):
        reader = _Reader(each)
        list(reader.errors())
        if reader.open and reader.places and reader.head:
            return reader.head, reader.places[-1]
    return None


@lru_cache(maxsize=512)  # a report asks again and again
def chain_of_rank(error: RankError) -> list[LoggedError]:
    """The error of a rank of launch() after those that led to it, the first one first."""
    lines = read(enumerate(error.traceback.splitlines(), 1))
    printed = read_errors(lines)
    chain = [each for each in printed if each.places or each.inner]
    if error.type_name in WRAPPING:
        chain = printed or [_whole(error, None)]
    elif not (chain and chain[-1].worker):
        chain = [*chain[:-1], _whole(error, chain[-1] if chain else None)]
    for inner, outer in pairwise(chain):
        inner.led_to, outer.inner = outer, inner
    for each in chain:
        each.of_ranks = True
    return chain


def _whole(error: RankError, printed: LoggedError | None) -> LoggedError:
    """The record's message is whole; its traceback has the notes, and the C++ file in front."""
    places = [Place(each.filename, each.line, each.function, each.source) for each in error.frames]
    message, told = error.message, False
    if printed and printed.kind == error.type_name:
        told = bool(IN_CPP.match(printed.message))
        if printed.message.startswith(message):
            message = printed.message
    return LoggedError(error.type_name, message, places=places, torch_told=told)


def _once(twice: re.Match[str]) -> str:
    half = twice[2][: len(twice[2]) // 2]
    return f"{twice[1]}: {half}" if twice[2] == half * 2 else twice[0]


class _Reader:
    """Reads the lines of one source, one after the other."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self.lines = lines
        self.places: list[Place] = []
        self.base = -1  # the margin of the traceback that is being read
        self.open = False  # until the first line behind it, which is the exception
        self.rank = ""
        self.worker = ""
        self.chained = False
        self.head: Line | None = None  # of the traceback that is being read
        self.member = 0  # of a group of exceptions

    def errors(self) -> Iterator[LoggedError]:
        """What was raised, thrown or warned of."""
        previous: LoggedError | None = None
        for at, line in enumerate(self.lines):
            if self._is_around_an_error(at, line.text):
                continue
            error = self._error(at, line)
            if error is None:
                continue
            if self.chained and previous:
                error.inner, previous.led_to = previous, error
            self.chained, self.places, self.base = False, [], -1
            error.beside = self.member > 1
            if error.kind in (*WRAPPERS, *WRAPPING) or self._is_of_a_child(at, error):
                continue
            caught = CAUGHT.match(error.message.split("\n")[0])
            if caught and self._goes_on_with_the_original(at):
                self.worker = caught[1]
                continue
            error.worker, self.worker = self.worker, ""
            previous = error
            yield error

    def _is_of_a_child(self, at: int, error: LoggedError) -> bool:
        """True for the bare `Exception:` in which mp.spawn wrapped a rank's error in torch 1."""
        following = self.lines[at + 1 : at + 4]
        return str(error) == "Exception" and any(CHILD.match(line.text) for line in following)

    def _goes_on_with_the_original(self, at: int) -> bool:
        return any("Original Traceback" in line.text for line in self.lines[at + 1 : at + 4])

    def _is_around_an_error(self, at: int, text: str) -> bool:
        """True for the lines of a traceback, and those between two."""
        if "raceback (most recent" in text and TRACEBACK.match(text):
            self.places, self.base, self.open = [], len(text) - len(text.lstrip()), True
            self.head = self.lines[at]
        elif "│" in text and self._is_in_a_box(text):
            pass
        elif member := IN_GROUP.match(text):
            self.member = int(member[1]) if (member[1] or "").isdigit() else 0
        elif frame := FRAME.match(text):
            source = self.lines[at + 1].text.strip() if at + 1 < len(self.lines) else ""
            file = frame[2] or frame[3]
            self.places.append(Place(file, int(frame[4]), frame[5] or "", source))
            self.base, self.open = max(len(frame[1]) - 2, 0), True
        elif frame := NOTEBOOK_FRAME.match(text):
            file, line = frame[1] or "the notebook", frame[2] or frame[3]
            self.places.append(Place(file, int(line), "", ""))
        elif CHAIN.match(text.strip()):
            self.chained = True
        elif thread := IN_THREAD.match(text):
            self.worker = thread[1]
        elif child := CHILD.match(text) or SUMMARY.match(text):
            self.rank = child[1]
        else:
            return False
        return True

    def _is_in_a_box(self, text: str) -> bool:
        """True for a line of a traceback as rich draws it; what it tells of the place is kept."""
        if frame := BOX_FRAME.match(text):
            self.places.append(Place(frame[1], int(frame[2]), frame[3] or "", ""))
        elif (code := BOX_SOURCE.match(text)) and self.places:
            self.places[-1] = replace(self.places[-1], source=code[1])
        return self.open

    def _error(self, at: int, line: Line) -> LoggedError | None:
        text = line.text
        if abort := ABORT.search(text):
            following = [each.text for each in self.lines[at + 1 : at + 1 + WHAT_WITHIN]]
            what = next(filter(None, map(WHAT.match, following)), None)
            return self._record(line, abort[2], what[1] if what else "", thrown_by=abort[1])
        if "NCCL" in text and (warning := NCCL_WARNING.match(text)):
            return self._record(line, "ncclWarning", f"[WARN] {warning[1]}", thrown_by="NCCL")
        if "watchdog thread" in text and (ended := WATCHDOG_ENDED.search(text)):
            return self._record(line, "DistBackendError", ended[1], thrown_by="c10d")
        if ": : " in text and (twice := TWICE.match(text)):
            text = _once(twice)
        header = self._header(text)
        if header is None:
            return None
        kind, first = header
        return self._record(line, kind, "" if first is None else self._join(at, first))

    def _header(self, text: str) -> tuple[str, str | None] | None:
        """Type and first line of the message; None as the message of a type that stands alone."""
        margin = len(text) - len(text.lstrip(" \t"))
        if self.places and margin > max(self.base, 0):
            return None  # a line of code
        hit = self._header_match(text[margin:], margin)
        if not text.strip() or margin <= max(self.base, 0):
            self.open = False
        if hit is None:
            return None
        alone = hit[2] is None and not hit[0].endswith(":")
        return hit[1], None if alone else hit[2] or ""

    def _header_match(self, plain: str, margin: int) -> re.Match[str] | None:
        hit = HEADER.match(plain)
        if hit and not self.places and (METRIC.fullmatch(hit[2] or "") or margin > 8):
            return None
        if hit and margin and not self.places and not INDENTED.match(plain):
            return None
        if not hit and self.open and margin <= max(self.base, 0):
            hit = ANY_HEADER.match(plain) or self._warning(plain)
        if hit:
            return hit
        bare = without_logger(plain)
        logged = plain[: len(plain) - len(bare)]
        quiet = re.search(r"\b(?:DEBUG|INFO|WARN)", logged) and not self.places
        return HEADER.match(bare) if logged and not quiet else None

    def _warning(self, plain: str) -> re.Match[str] | None:
        """A warning that was turned into an error: its traceback ends where it was given."""
        raised = self.places and re.match(
            r"(?:_?warnings\.)?warn\b|raise\b", self.places[-1].source
        )
        return WARNING_HEADER.match(plain) if raised else None

    def _record(self, line: Line, kind: str, message: str, thrown_by: str = "") -> LoggedError:
        return LoggedError(
            kind, message, line, line.rank or self.rank, tuple(self.places), thrown_by
        )

    def _join(self, at: int, first: str) -> str:
        """A message with its further lines, up to the next error or traceback."""
        lines = [first.rstrip()]
        following = [line.text for line in self.lines[at + 1 : at + 1 + LONGEST_MESSAGE]]
        for line, after in zip(following, [*following[1:], ""], strict=False):
            if len(lines) == 1 and first.endswith(" raised:") and HEADER.match(line):
                lines.append(line)  # torch.compile's own error tells only whose it is
                continue
            if NOT_PART.match(line) or HEADER.match(line):
                break
            if not line.strip() and not after.startswith((" ", "\t", "(")):
                break
            lines.append(line)
        return "\n".join(lines).strip()
