"""The form of a rule: an error text, and what it means.

A rule names the error's type and a piece of its message, so that a text which merely mentions
the same words (a label, a comment, a log line of your own) is left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Diagnosis:
    """A cause, and what to do about it."""

    kind: str
    """A short stable name, such as `port-taken`."""
    cause: str
    advice: str


@dataclass(frozen=True)
class KnownError:
    """An error text, `Type: message`, and its meaning; `\\1` is the pattern's first group."""

    kind: str
    types: str
    message: str
    cause: str
    advice: str

    def match(self, error: str) -> Diagnosis | None:
        """What `error` means, or None if it is not this one."""
        hit = re.match(rf"(?:{self.types})(?:: |$)(?s:.*?)(?:{self.message})", error)
        return (
            Diagnosis(self.kind, hit.expand(self.cause), hit.expand(self.advice)) if hit else None
        )


# types of the errors that torch.distributed, NCCL and CUDA raise
DIST = "RuntimeError|DistBackendError|DistNetworkError|DistStoreError|DistError"
NCCL = "RuntimeError|DistBackendError|ncclWarning"
CUDA = "RuntimeError|AcceleratorError|DistBackendError|ncclWarning"


def recognise(error: str, rules: Iterable[KnownError]) -> Diagnosis | None:
    """The meaning of an error text `Type: message`; the first rule that knows it wins."""
    return next(filter(None, (rule.match(error) for rule in rules)), None)
