"""Real texts of the known errors, as they stand in logs; read from examples.txt."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILE = Path(__file__).with_suffix(".txt")
HEAD = re.compile(r"^(?:== (?P<group>.+)|\[(?P<kind>[a-z0-9-]+)\]|# .*)$\n?", re.MULTILINE)


@dataclass(frozen=True)
class Example:
    """A text that somebody met, and the kind of `Diagnosis` that it gets."""

    group: str
    kind: str
    text: str


@cache
def read_examples() -> tuple[Example, ...]:
    """All examples, in the order of the file: group by group, the texts of a kind together."""
    content = FILE.read_text(encoding="utf-8")
    heads = list(HEAD.finditer(content))
    ends = [head.start() for head in heads[1:]] + [len(content)]
    found, group = [], ""
    for head, end in zip(heads, ends, strict=True):
        group = head["group"] or group
        if head["kind"]:
            found.append(Example(group, head["kind"], content[head.end() : end].strip("\n")))
    return tuple(found)
