"""Real texts of the known errors, as they stand in logs: those of diagnosis's rules, in order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from ddp_helpers.diagnosis.rule_files import known_rules
from ddp_helpers.diagnosis.rules import Rule


@dataclass(frozen=True)
class Example:
    """A text that somebody met, and the kind of `Diagnosis` that it gets."""

    group: str
    kind: str
    text: str


@cache
def read_examples() -> tuple[Example, ...]:
    """All examples, in the order of the page: group by group, the texts of a kind together."""
    rules: dict[str, list[Rule]] = {}
    for rule in known_rules():
        rules.setdefault(rule.kind, []).append(rule)
    groups = list(dict.fromkeys(rule.group for rule in known_rules()))
    return tuple(
        Example(rule.group, kind, text)
        for kind in sorted(_in_order(rules), key=lambda kind: groups.index(rules[kind][0].group))
        for rule in rules[kind]
        for text in rule.examples
    )


def _in_order(rules: Mapping[str, list[Rule]], after: str = "") -> Iterator[str]:
    """The kinds as they come, each followed by those that ask to stand after it."""
    for kind, (first, *_) in rules.items():
        if first.page_after == after:
            yield kind
            yield from _in_order(rules, kind)
