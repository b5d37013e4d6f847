"""The form of a rule: an error text or a line of a log, what it means, and real texts of it.

A rule names the error's type and a piece of its message, so that a text which merely mentions
the same words (a label, a comment, a log line of your own) is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from ddp_helpers.diagnosis.raised import LoggedError
from ddp_helpers.words import shown

# types of the errors that torch.distributed, NCCL and CUDA raise; rules name the sets
_DIST = ("RuntimeError", "DistBackendError", "DistNetworkError", "DistStoreError", "DistError")
_CPP = ("runtime_error", "Error")  # std::runtime_error and c10::Error, of an abort
_NCCL = ("RuntimeError", "DistBackendError", "ncclWarning", *_CPP)
_CUDA = ("RuntimeError", "AcceleratorError", "DistBackendError", "ncclWarning", *_CPP)
TYPE_SETS = {"DIST": _DIST, "NCCL": _NCCL, "CUDA": _CUDA}


PROCESSES = re.compile(r"multiprocessing/\w+\.py|torch/utils/data/_utils/|torch/multiprocessing/")


@dataclass(frozen=True)
class Diagnosis:
    """A cause, and what to do about it."""

    kind: str
    """A short stable name, such as `port-taken`."""
    cause: str
    advice: str
    seen: tuple[str, ...] = field(default=(), compare=False)
    """Where a log tells it, by whom, and its words; of a run's own ranks the report says that."""
    comes: str = field(default="", compare=False)
    """When it counts, beside others: see `Rule.comes`."""

    def __str__(self) -> str:
        advice = f"what to do: {self.advice}"
        return f"[{self.kind}] {shown(self.cause)}\n    {shown(advice)}"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What each rule has, of an exception or of another line; errors.toml says what is what."""

    kind: str
    group: str
    cause: str
    advice: str
    examples: tuple[str, ...]
    page_after: str = ""
    comes: str = ""
    """When it counts, beside others. `first`: surer than any error. `after`: it follows from what
    another rank did, and says so. `consequence`: it follows, and says no more. `last`: how the run
    ended, not why. `note`: a warning that counts only if nothing else is wrong.
    """


@dataclass(frozen=True, kw_only=True)
class KnownError(Rule):
    """An error text, `Type: message`, and its meaning; `\\1` is the first group of its piece."""

    types: tuple[str, ...]
    message: tuple[str, ...] = ()
    """Of these pieces one is enough; without any the type says all."""
    only: str = ""
    """Whose error it must be, where the words alone may be anybody's: see `ONLY`."""

    def _find(self, text: str, pieces: Iterable[str]) -> re.Match[str] | None:
        """Whether a text begins with one of the types, and one of these pieces follows."""
        types = "|".join(each for name in self.types for each in TYPE_SETS.get(name, (name,)))
        # a type ends at the colon, or is all: ValueError is not the ValueErrorOfMine of another
        return re.match(rf"(?:{types})(?:: |$)(?s:.*?)(?:{'|'.join(pieces)})", text)

    def is_anothers(self, error: LoggedError) -> bool:
        """True if `error` has the words, and somebody else raised it."""
        told = bool(self.message) and self._find(str(error), self.message)
        return bool(told) and not ONLY[self.only](error)

    def match(self, error: LoggedError | str) -> Diagnosis | None:
        """What `error` means, or None if it is not this one."""
        raised = error if isinstance(error, LoggedError) else parse(error)
        text = str(raised)
        if not self._find(text, self.message) or not ONLY[self.only](raised):
            return None
        # each piece by itself: in one pattern the second one's first group would not be \1
        found = (self._find(text, [piece]) for piece in self.message or ("",))
        hit = min(filter(None, found), key=re.Match.end)
        # a piece that was found without its group says nothing in its place
        cause, advice = (re.sub(r" +", " ", hit.expand(each)) for each in (self.cause, self.advice))
        return Diagnosis(self.kind, cause.strip(), advice.strip(), comes=self.comes)


ONLY: Mapping[str, Callable[[LoggedError], bool]] = {
    "": lambda error: True,
    "torch": lambda error: error.by_torch,
    "ranks": lambda error: error.of_ranks,
    "environ": lambda error: error.from_environ,
    "processes": lambda error: any(PROCESSES.search(place.file) for place in error.places),
    # no traceback shows that a library asked for a key of its own
    "environ-or-bare": lambda error: error.from_environ or not error.in_a_library,
}


def parse(text: str) -> LoggedError:
    """`Type: message` as an error of which no more is known."""
    kind, _, message = text.partition(": ")
    return LoggedError(kind, message)


@dataclass(frozen=True, kw_only=True)
class KnownLine(Rule):
    """Pieces of a log that are no exceptions, and their meaning."""

    line: tuple[str, ...]
    signal: str = ""
    """The name of a signal that, by itself, means the same."""

    @property
    def meaning(self) -> Diagnosis:
        """What it means wherever it is found."""
        return Diagnosis(self.kind, self.cause, self.advice, comes=self.comes)

    def find(self, log: str) -> re.Match[str] | None:
        """The first place in `log` that is this one."""
        return re.search("|".join(self.line), log, re.MULTILINE)

    def match(self, log: str) -> Diagnosis | None:
        """What `log` means, or None if no line of it is this one."""
        return self.meaning if self.find(log) else None


def recognise(error: LoggedError | str, rules: Iterable[KnownError]) -> Diagnosis | None:
    """The meaning of an error; the first rule that knows it wins."""
    return next(filter(None, (rule.match(error) for rule in rules)), None)


def is_of_cleaning_up(known: Diagnosis, error: LoggedError) -> bool:
    """True if it says no more than that a rank's `finally` ran without a process group.

    The error before it in the chain is what went wrong.
    """
    return known.kind == "no-process-group" and error.inner is not None
