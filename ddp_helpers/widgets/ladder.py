"""The ladder of templates: what each rung adds to the one before, side by side."""

from __future__ import annotations

import ast
import html
import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ddp_helpers import templates
from ddp_helpers.plots.colors import GREEN, GREY, SKY, VERMILLION
from ddp_helpers.plots.scene import PAGE, Scene
from ddp_helpers.widgets.controls import Choice, Slider
from ddp_helpers.words import shown as told

if TYPE_CHECKING:
    from ddp_helpers.widgets.base import Explorable, Picture

FOLDER = Path(templates.__file__).parent
SHOWN = ("with 2 lines around", "whole files")
NEW, GONE = "rgba(0,158,115,.28)", "rgba(213,94,0,.28)"  # through them both themes shine


@dataclass(frozen=True)
class Row:
    """One row of the table: a line of each file, or None where one has no such line."""

    number: int | None
    old: str | None
    new_number: int | None
    new: str | None

    @property
    def same(self) -> bool:
        return self.old == self.new


@lru_cache
def rows(before: str, after: str) -> tuple[Row, ...]:
    """Both templates, line by line, beside each other."""
    old, new = _lines(before), _lines(after)
    found: list[Row] = []
    for _, i, i_end, j, j_end in SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        for at in range(max(i_end - i, j_end - j)):
            left, right = i + at, j + at
            found.append(
                Row(
                    left + 1 if left < i_end else None,
                    old[left] if left < i_end else None,
                    right + 1 if right < j_end else None,
                    new[right] if right < j_end else None,
                )
            )
    return tuple(found)


@lru_cache
def counts(before: str, after: str) -> tuple[int, int, int]:
    """How many lines stay, are new, are gone."""
    found = rows(before, after)
    same = sum(row.same for row in found)
    new = sum(row.new is not None and not row.same for row in found)
    gone = sum(row.old is not None and not row.same for row in found)
    return same, new, gone


def _lines(name: str) -> list[str]:
    return (FOLDER / f"{name}.py").read_text(encoding="utf-8").splitlines()


def _find_rungs() -> tuple[tuple[str, str], ...]:
    """(before, after) of each step, the longest way up first; each file's docstring names both."""
    after: dict[str, list[str]] = {}
    for path in sorted(FOLDER.glob("*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        found = re.search(r"differs from (the step before, )?(\w+)\.py", " ".join(text.split()))
        if found and (FOLDER / f"{found[2]}.py").exists():
            after.setdefault(found[2], []).append(path.stem)

    def climb(name: str) -> list[tuple[str, str]]:
        ways = [[(name, follower), *climb(follower)] for follower in after.get(name, ())]
        return [step for way in sorted(ways, key=len, reverse=True) for step in way]

    return tuple(climb("single_process"))


RUNGS = _find_rungs()


def draw(rung: int, shown: str) -> Picture:
    """A bar for each rung, and the two files of one of them."""
    from ddp_helpers.widgets.base import Picture

    before, after = RUNGS[rung - 1]
    same, new, gone = counts(before, after)
    words = (
        f"Rung {rung} of {len(RUNGS)}: {after}.py follows {before}.py. {same} lines stay, "
        f"{new} are new, {gone} are gone."
    )
    return Picture(_scene(rung), words, table(before, after, whole=shown == SHOWN[1]))


def _scene(rung: int) -> Scene:
    left, wide, row = 136, 366, 22
    scene = Scene(PAGE, 30 + row * len(RUNGS) + 40)
    for at, (color, name) in enumerate(((SKY, "stay"), (GREEN, "new"), (VERMILLION, "gone"))):
        scene.box(left + 90 * at, 4, 14, 14, fill=color, hatch=name == "gone")
        scene.text(left + 90 * at + 20, 11, name, anchor="start")
    top = max(sum(counts(*pair)) for pair in RUNGS)
    for at, pair in enumerate(RUNGS):
        y, x = 28 + row * at, float(left)
        chosen = at + 1 == rung
        scene.text(left - 8, y + 8, f"{pair[1]}.py", anchor="end", bold=chosen)
        for count, color in zip(counts(*pair), (SKY, GREEN, VERMILLION), strict=True):
            width, gone = wide * count / top, color == VERMILLION
            scene.box(x, y, width, 16, fill=color, hatch=gone, line=0.5)
            x += width
        text = "{} stay, {} new, {} gone".format(*counts(*pair))
        scene.text(x + 8, y + 8, text, anchor="start")
        if chosen:
            scene.box(left - 132, y - 2, PAGE - 6, 20, edge=GREY, line=2.0)
    scene.axis(left, 30 + row * len(RUNGS), wide, top, "lines")
    return scene


def table(before: str, after: str, *, whole: bool) -> str:
    """Both files side by side; + and - say what the colours say."""
    found = rows(before, after)
    near = _near(found, 2)
    body = []
    for at, row in enumerate(found):
        if whole or near[at]:
            body.append(_row_html(row))
        elif at == 0 or near[at - 1]:
            body.append('<tr><td colspan="4" style="text-align:center">...</td></tr>')
    head = f'<tr><th colspan="2">{before}.py</th><th colspan="2">{after}.py</th></tr>'
    return (
        f'<div tabindex="0" role="region" aria-label="{told("both files, side by side")}" '
        'style="max-height:380px;overflow:auto;border:1px solid #767676;margin-top:6px">'
        '<table style="width:100%;table-layout:fixed;border-collapse:collapse;font-size:11px;'
        'font-family:monospace"><colgroup><col style="width:36px"><col><col style="width:36px">'
        f"<col></colgroup>{head}{''.join(body)}</table></div>"
    )


def _near(found: tuple[Row, ...], lines: int) -> list[bool]:
    changed = [at for at, row in enumerate(found) if not row.same]
    near = [False] * len(found)
    for at in changed:
        for close in range(max(0, at - lines), min(len(found), at + lines + 1)):
            near[close] = True
    return near


def _row_html(row: Row) -> str:
    sides = ((row.number, row.old, GONE, "-"), (row.new_number, row.new, NEW, "+"))
    cells = ""
    for number, text, color, sign in sides:
        mark = "" if row.same or text is None else sign
        ground = f"background:{color};" if mark else ""
        style = f"{ground}text-align:left;white-space:pre-wrap;padding:0 4px;line-height:1.3"
        line = html.escape(text or "")
        cells += (
            f'<td style="text-align:right;padding:0 4px;line-height:1.3">{number or ""}{mark}</td>'
        )
        cells += f'<td style="{style}">{line}</td>'
    return f"<tr>{cells}</tr>"


def explorable(rung: int = 2, shown: str = SHOWN[0]) -> Explorable:
    """Climb from one process to ranks that go on after a kill, one small step at a time."""
    from ddp_helpers.widgets.base import Explorable

    controls = {
        "rung": Slider("rung", min(rung, len(RUNGS)), 1, len(RUNGS)),
        "shown": Choice("show", shown, SHOWN),
    }
    return Explorable("The templates, step by step", controls, draw)
