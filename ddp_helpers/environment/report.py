"""How the answers of `check_environment()` look: text in a terminal, a table in a notebook, JSON.

A row is a `Check`, all of them an `EnvironmentReport`. What the rows say is in check.py.
"""

from __future__ import annotations

import html
import json
import re
import textwrap
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ddp_helpers.words import columns, filled, shown

Status = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Check:
    """One row of the report. `value` is what was found; `advice` is empty on pass."""

    name: str
    status: Status
    value: str
    advice: str = ""


@dataclass(frozen=True, repr=False)
class EnvironmentReport:
    """The rows of `check_environment()`: print it, show it in a notebook, index it by name."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """True when no row fails; warnings are allowed."""
        return all(check.status != "fail" for check in self.checks)

    @property
    def summary(self) -> str:
        """How many rows there are of each status, for example `13 pass, 2 warn, 0 fail`."""
        count = Counter(check.status for check in self.checks)
        return ", ".join(f"{count[status]} {status}" for status in ("pass", "warn", "fail"))

    def __getitem__(self, name: str) -> Check:
        for check in self.checks:
            if check.name == name:
                return check
        names = ", ".join(check.name for check in self.checks)
        raise KeyError(f"no row is called {name!r}; the rows are: {names}")

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dicts, lists and strings: keys `ok` and `checks`."""
        return {"ok": self.ok, "checks": [asdict(check) for check in self.checks]}

    def to_json(self) -> str:
        """The report as JSON text; names and statuses are codes, the rest is for a reader."""
        told = self.to_dict()
        for row in told["checks"]:
            row |= {key: shown(row[key]) for key in ("value", "advice")}
        return json.dumps(told, indent=2)

    def __str__(self) -> str:
        names = [shown(check.name) for check in self.checks]
        width = max(map(columns, names), default=0)
        lines = []
        for check, name in zip(self.checks, names, strict=True):
            head = f"{check.status}  {name}{' ' * (width - columns(name))}  "
            lines += _wrap(check.value, head, " " * columns(head))
            lines += _wrap(check.advice, "      -> ", "         ") if check.advice else []
        text = "\n".join([*lines, self.summary])
        if any(shown(check.name) != check.name for check in self.checks):
            return text  # who asks for Chinese has a terminal that shows it
        return text.encode("ascii", "backslashreplace").decode()  # some terminals know no more

    __repr__ = __str__  # so that a terminal shows the table too

    def _repr_html_(self) -> str:
        rows = "".join(_html_row(check) for check in self.checks)
        return (
            '<table style="border-collapse:collapse;text-align:left;margin:0">'
            f'<caption style="text-align:left;padding:4px 8px">'
            f"{shown('This machine:')} {self.summary}</caption><tbody>{rows}</tbody></table>"
        )


def _wrap(text: str, first: str, rest: str) -> list[str]:
    told = shown(text)
    if told != text:
        lines = filled(told, 96 - columns(first)).splitlines()
        return [(rest if number else first) + line for number, line in enumerate(lines)]
    # a command in backticks stays on one line, so that it can be copied
    text = re.sub(r"`[^`]+`", lambda command: command[0].replace(" ", "\0"), text)
    wrapper = textwrap.TextWrapper(96, initial_indent=first, subsequent_indent=rest)
    wrapper.break_long_words = wrapper.break_on_hyphens = False
    lines = wrapper.wrap(text) or [first.rstrip()]
    return [line.replace("\0", " ") for line in lines]


# Text takes the page's own colour and there is no background, so light and dark themes both work.
# Each mark has a contrast of 3 or more on white and on #111, and says the same as the word.
MARKS = {
    "pass": ("#1a9850", "&#10003;"),
    "warn": ("#c77700", "&#9650;"),
    "fail": ("#e5484d", "&#10007;"),
}
_CODE = "display:inline-block;max-width:100%"  # a command wraps only where it must
_CELL = "text-align:left;vertical-align:top;padding:4px 8px;border:0;"


def _html_row(check: Check) -> str:
    colour, mark = MARKS[check.status]
    text = _html_text(check.value)
    if check.advice:
        text += f'<div style="margin-top:2px">&rarr; {_html_text(check.advice)}</div>'
    return (
        '<tr style="border-top:1px solid rgba(128,128,128,.35)">'
        f'<td style="{_CELL}white-space:nowrap;border-left:4px solid {colour}">'
        f'<span style="color:{colour};display:inline-block;width:1.3em" aria-hidden="true">'
        f"{mark}</span>{check.status}</td>"
        f'<th scope="row" style="{_CELL}white-space:nowrap">{html.escape(shown(check.name))}</th>'
        f'<td style="{_CELL}white-space:normal;max-width:46em">{text}</td></tr>'
    )


def _html_text(text: str) -> str:
    return re.sub(r"`([^`]+)`", rf'<code style="{_CODE}">\1</code>', html.escape(shown(text)))
