"""All rules, read from the .toml files beside this one: a rule and its real texts in one record.

A run that goes well never needs them, so they are read at the first failure, once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar

from ddp_helpers.diagnosis.rules import KnownError, KnownLine, Rule

FOLDER = Path(__file__).parent
AnyRule = TypeVar("AnyRule", bound=Rule)


@cache
def known_errors() -> tuple[KnownError, ...]:
    """The rules for exceptions that can be the cause of a failure; the first that knows wins."""
    names = ("errors.toml", "errors_gpu.toml", "errors_tools.toml")
    return tuple(rule for name in names for rule in _read(name, KnownError))


@cache
def known_lines() -> tuple[KnownLine, ...]:
    """The rules for other lines of a log, the surest first."""
    return _read("lines.toml", KnownLine)


@cache
def consequences() -> tuple[KnownError, ...]:
    """The rules for exceptions that say only that another rank is gone."""
    return _read("consequences.toml", KnownError)


def peer_is_gone() -> tuple[str, ...]:
    """Pieces of what is printed on a rank whose peer ended."""
    return next(
        rule.message for rule in consequences() if (rule.kind, rule.only) == ("peer-gone", "torch")
    )


def known_rules() -> tuple[Rule, ...]:
    """All of them, in the order in which the page of all troubles begins its groups."""
    return (*known_errors(), *known_lines(), *consequences())


def _read(name: str, form: Callable[..., AnyRule]) -> tuple[AnyRule, ...]:
    import tomllib  # some milliseconds that only a failure has to pay

    with (FOLDER / name).open("rb") as file:
        records = tomllib.load(file)["rule"]
    return tuple(form(**{key: _frozen(value) for key, value in each.items()}) for each in records)


def _frozen(value: str | list[str]) -> str | tuple[str, ...]:
    if isinstance(value, str):
        return value
    # the lines of quotes around a long text are no part of it
    return tuple(text.strip("\n") for text in value)
