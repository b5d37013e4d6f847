"""How far a class has come, as text: tables in Markdown, and a board for a terminal."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Iterable, Sequence

from ddp_helpers.classroom.learners import Learner
from ddp_helpers.exercises import names, progress_file, short_title
from ddp_helpers.words import shown

LEARNER = ("learner", "copy", "done", "tried", "hints", "solutions seen", "last")
EXERCISE = ("exercise", "tried by", "done by", "tries each", "hints", "solutions seen")
DONE, OPEN, MANY = "✓", "·", 9
LEGEND = f"{DONE}: done, 1 to {MANY}: tries so far, not done yet, {OPEN}: not tried"


def report(learners: Sequence[Learner]) -> str:
    """A row for each learner, and one for each exercise."""
    states = [learner.state for learner in learners]
    return "\n\n".join(
        [_table(LEARNER, map(_row_of, learners)), _table(EXERCISE, _exercises(states))]
    )


def mark(state: dict, number: str) -> str:
    """How far somebody is with an exercise, in one letter."""
    record = state["exercises"].get(number, {})
    if record.get("passed_at"):
        return DONE
    return str(min(record["tries"], MANY)) if record.get("tries") else OPEN


def chosen(notebooks: Sequence[str] = ()) -> dict[str, list[str]]:
    """The exercises of these notebooks, or of all; by notebook.

    Raises:
        ValueError: a notebook without exercises.
    """
    known: dict[str, list[str]] = {}
    for number in names():
        known.setdefault(number.partition(".")[0], []).append(number)
    for name in notebooks:
        if name.zfill(2) not in known:
            raise ValueError(f"notebook {name!r}: expected one of {', '.join(known)}")
    return {name.zfill(2): known[name.zfill(2)] for name in (notebooks or known)}


def board(learners: Sequence[Learner], notebooks: Sequence[str] = ()) -> str:
    """Learners x exercises: a line for each learner, a letter for each exercise.

    Raises:
        ValueError: a notebook without exercises.
    """
    columns = chosen(notebooks)
    wide = max([8, *(_width(learner.name) for learner in learners)])
    places = [[n.partition(".")[2] for n in numbers] for numbers in columns.values()]
    head = [f"{name} {''.join(each)}" for name, each in zip(columns, places, strict=True)]
    lines = ["  ".join([" " * wide, *head, "done"])]
    for learner in learners:
        marks = ["".join(mark(learner.state, n) for n in each) for each in columns.values()]
        done = sum(each.count(DONE) for each in marks)
        cells = [f"{each:>{len(top)}}" for each, top in zip(marks, head, strict=True)]
        name = learner.name + " " * (wide - _width(learner.name))
        lines.append("  ".join([name, *cells, f"{done:>4}"]))
    title = f"{len(learners)} learners, {time.strftime('%H:%M:%S')}"
    return "\n".join([shown(title), "", *lines, "", shown(LEGEND)])


def _width(text: str) -> int:
    """Columns of a terminal; a Chinese letter takes two."""
    return sum(1 + (unicodedata.east_asian_width(letter) in "WF") for letter in text)


def by_all(learners: Iterable[Learner], number: str) -> int:
    """How many have done an exercise."""
    return sum(mark(learner.state, number) == DONE for learner in learners)


def _row_of(learner: Learner) -> tuple:
    records = learner.state["exercises"].values()
    return (
        learner.name,
        learner.student if learner.copy else "",
        f"{len(progress_file.passed(learner.state))} of {len(names())}",
        sum(each["tries"] > 0 for each in records),
        sum(each.get("hints", 0) for each in records),
        sum(bool(each.get("saw_solution")) for each in records),
        max((each.get("last_at", "") for each in records), default="")[:16],
    )


def _exercises(states: Sequence[dict]) -> list[tuple]:
    rows = []
    for number in names():
        records = [s["exercises"][number] for s in states if number in s["exercises"]]
        tried = [each for each in records if each["tries"]]
        tries = sum(each["tries"] for each in tried) / len(tried) if tried else 0
        rows.append(
            (
                f"{number} {short_title(number)}",
                len(tried),
                sum(bool(each.get("passed_at")) for each in tried),
                f"{tries:.1f}",
                sum(each.get("hints", 0) for each in records),
                sum(bool(each.get("saw_solution")) for each in records),
            )
        )
    return rows


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )
