"""The teacher's key to a lesson: minutes of each section, predictions, exercises, the extras.

It is read from the notebook that is taught, so it says what that says: a prediction's answer is
what the next cell printed when it was last run, and how the text after it begins.
"""

from __future__ import annotations

import functools
import html
import json
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from ddp_helpers.exercises import core, names

# how long a room takes, as parts of the notebook's own total: weights, not measurements
WORDS_A_MINUTE, LINES_A_MINUTE, MINUTES_A_PREDICTION = 140, 14, 0.75
TOTAL = re.compile(r"\*\*Time:\*\*\D*(\d+)")
PREDICT = re.compile(r"\*\*Predict\b[^*]*\*\*")
IT_WAS = re.compile(r": (?:you: .*, )?it was (.+?)(?: ✓)?$")
ALT = re.compile(r'alt="([^"]*)"')
EXTRAS = re.compile(r"^\d+\. (.+?)(?=\n\s*<details>|\n\d+\. |\n\n|\Z)", re.M | re.S)
AFTER = ("Exercises", "What next")  # they have minutes of their own, or take none
TRY_OUT = "ome to try out"
LONGEST = 4  # lines of an output


@dataclass
class Section:
    """A part of a notebook under one heading."""

    title: str
    words: int = 0
    lines: int = 0
    predictions: list[tuple[str, str]] = field(default_factory=list)
    """What is asked, and what came out."""
    minutes: int = 0

    @property
    def weight(self) -> float:
        """How long it takes beside the others."""
        asked = len(self.predictions) * MINUTES_A_PREDICTION
        return self.words / WORDS_A_MINUTE + self.lines / LINES_A_MINUTE + asked


def key(notebook: Path) -> str:
    """The key as Markdown."""
    number = notebook.name.partition("_")[0]
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    parts = sections(cells)
    total = TOTAL.search(_source(cells[0]))
    share_out(parts, int(total[1]) if total else 0)
    lines = [_source(cells[0]).splitlines()[0], ""]
    lines += ["| section | min | predictions |", "| --- | --- | --- |"]
    lines += [f"| {p.title} | {p.minutes} | {len(p.predictions)} |" for p in parts]
    for part in (part for part in parts if part.predictions):
        lines += ["", f"## {part.title}", ""]
        for asked, answer in part.predictions:
            lines += [
                f"- **{asked[0].upper()}{asked[1:]}**",
                *(f"  {line}" for line in answer.splitlines()),
            ]
    lines += exercises(number)
    if asked_last := extras(cells):
        lines += ["", "## Some to try out", ""]
        for place, (asked, answer) in enumerate(
            zip(asked_last, answers_to_extras(number), strict=False), start=1
        ):
            lines += [f"{place}. {asked}", f"   {answer}"]
    return "\n".join([*lines, ""])


def sections(cells: list[dict]) -> list[Section]:
    """The parts of a notebook, in order, without the exercises (they name their own minutes)."""
    found = [Section("the beginning")]
    for place, cell in enumerate(cells):
        text = _source(cell)
        if cell["cell_type"] != "markdown":
            found[-1].lines += text.count("\n") + 1
            continue
        before, *headed = re.split(r"^#{1,2} ", text, flags=re.M)
        for index, piece in enumerate([before, *headed]):
            if index:
                title, _, piece = piece.partition("\n")
                if place:  # the notebook's own title is no part
                    found.append(Section(title))
            found[-1].words += len(re.findall(r"\w+", piece))
            # where one cell asks twice, the code answers the last
            for asked in asked_in(piece):
                found[-1].predictions.append((asked, answer_to(cells, place)))
    return [part for part in found if part.weight > 0 and not part.title.startswith(AFTER)]


def exercises(notebook: str) -> list[str]:
    """Each exercise of a notebook: its minutes, and a right answer; nobody's progress notes it."""
    lines = ["", "## Exercises", "", "One right answer of several:"] if names(notebook) else []
    for number in names(notebook):
        module = core.load(number)
        exercise = module.EXERCISE
        lines += ["", f"### {number} {exercise.title} ({exercise.minutes} min)", ""]
        lines += ["```python", core.solution_of(module), "```", "", exercise.lesson]
    return lines


def share_out(parts: list[Section], total: int) -> None:
    """Give each section its minutes, so that together they are the notebook's own."""
    whole = sum(part.weight for part in parts)
    passed = given = 0.0
    for part in parts:
        passed += part.weight
        part.minutes = round(total * passed / whole - given)
        given += part.minutes


def asked_in(text: str) -> list[str]:
    """The questions of a text, each to the end of its paragraph."""
    return [
        re.sub(r"\s+", " ", text[found.end() :].split("\n\n")[0]).strip()
        for found in PREDICT.finditer(text)
    ]


def answer_to(cells: list[dict], place: int) -> str:
    """What the cell after this text printed, and how the next text begins."""
    said: list[str] = []
    text = ""
    for cell in cells[place + 1 :]:
        if cell["cell_type"] == "markdown":
            text = PREDICT.split(_source(cell).split("\n\n")[0])[0].strip()
            break
        said = shown_by(cell.get("outputs", [])) or said
    if text and not text.startswith("#"):
        said.append(re.sub(r"\s+", " ", text))
    return "\n".join(said) or "see the cell"


def shown_by(outputs: list[dict]) -> list[str]:
    """What a cell showed, in a few lines: the verdict where it has one, else what it printed."""
    printed: list[str] = []
    for output in outputs:
        data = output.get("data", {})
        plain = "".join(data.get("text/plain", ""))
        if verdict := IT_WAS.search(plain):
            return [f"Answer: {verdict[1]}."]
        if "image/png" in data:
            printed += [
                html.unescape(alt) for alt in ALT.findall("".join(data.get("text/html", "")))
            ]
        text = "".join(output.get("text", "")) or "".join(output.get("evalue", ""))
        printed += [f"`{line.strip()}`" for line in text.splitlines() if line.strip()]
    more = ["..."] if len(printed) > LONGEST else []
    return printed[:LONGEST] + more


def extras(cells: list[dict]) -> list[str]:
    """The questions under "some to try out"."""
    for cell in cells:
        _, found, text = _source(cell).partition(TRY_OUT)
        if found and cell["cell_type"] == "markdown":
            return [re.sub(r"\s+", " ", each).strip() for each in EXTRAS.findall(text)]
    return []


@functools.cache
def _all_answers() -> dict[str, list[str]]:
    with Path(__file__).with_name("extras.toml").open("rb") as file:
        return tomllib.load(file)["answers"]


def answers_to_extras(number: str) -> list[str]:
    """What comes out, in the order of the questions."""
    return _all_answers().get(number, [])


def _source(cell: dict) -> str:
    return "".join(cell["source"])
