"""The form of a rule: an error text or a line of a log, what it means, and real texts of it.

A rule names the error's type and a piece of its message, so that a text which merely mentions
the same words (a label, a comment, a log line of your own) is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

# types of the errors that torch.distributed, NCCL and CUDA raise; rules name the sets
_DIST = ("RuntimeError", "DistBackendError", "DistNetworkError", "DistStoreError", "DistError")
_NCCL = ("RuntimeError", "DistBackendError", "ncclWarning")
_CUDA = ("RuntimeError", "AcceleratorError", "DistBackendError", "ncclWarning")
TYPE_SETS = {"DIST": _DIST, "NCCL": _NCCL, "CUDA": _CUDA}


@dataclass(frozen=True)
class Diagnosis:
    """A cause, and what to do about it."""

    kind: str
    """A short stable name, such as `port-taken`."""
    cause: str
    advice: str


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What each rule has, of an exception or of another line; errors.toml says what is what."""

    kind: str
    group: str
    cause: str
    advice: str
    examples: tuple[str, ...]
    page_after: str = ""


@dataclass(frozen=True, kw_only=True)
class KnownError(Rule):
    """An error text, `Type: message`, and its meaning; `\\1` is the pattern's first group."""

    types: tuple[str, ...]
    message: tuple[str, ...] = ()
    """Of these pieces one is enough; without any the type says all."""

    @property
    def pattern(self) -> str:
        """The regular expression that the beginning of an error text must match."""
        types = "|".join(each for name in self.types for each in TYPE_SETS.get(name, (name,)))
        # a type ends at the colon, or is all: ValueError is not the ValueErrorOfMine of another
        return rf"(?:{types})(?:: |$)(?s:.*?)(?:{'|'.join(self.message)})"

    def match(self, error: str) -> Diagnosis | None:
        """What `error` means, or None if it is not this one."""
        hit = re.match(self.pattern, error)
        return (
            Diagnosis(self.kind, hit.expand(self.cause), hit.expand(self.advice)) if hit else None
        )


@dataclass(frozen=True, kw_only=True)
class KnownLine(Rule):
    """Pieces of a log that are no exceptions, and their meaning."""

    line: tuple[str, ...]
    signal: str = ""
    """The name of a signal that, by itself, means the same."""

    @property
    def meaning(self) -> Diagnosis:
        """What it means wherever it is found."""
        return Diagnosis(self.kind, self.cause, self.advice)

    def match(self, log: str) -> Diagnosis | None:
        """What `log` means, or None if no line of it is this one."""
        return self.meaning if re.search("|".join(self.line), log, re.MULTILINE) else None


def recognise(error: str, rules: Iterable[KnownError]) -> Diagnosis | None:
    """The meaning of an error text `Type: message`; the first rule that knows it wins."""
    return next(filter(None, (rule.match(error) for rule in rules)), None)
