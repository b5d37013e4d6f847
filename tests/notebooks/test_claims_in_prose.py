"""What was measured is told by the cell that measured it: prose beside it holds no such number.

A sentence of markdown stays as it was written, whatever the next run measures. So after the first
cell that measures, it has no number with a unit of measurement and no "faster" or "slower", unless
it is a question, a source's (it has a link), or one of those below.
"""

import re

import build
import nbformat
import pytest
import steady
from nbformat.v4 import new_code_cell, new_notebook, new_output

LESSONS = ("04_make_it_fast", "06_beyond_one_machine")
MEASURES = re.compile(r"\b(compare|says|middle|measure\w*)\(|\.was\(")
NUMBER = re.compile(
    r"\d\s*(ms|s|seconds|minutes|%|percent|times|[KMG]i?B|[KMG]bit/s|digits/s)(?![\w])"
    r"|\b(faster|slower|quicker)\b"
)
SENTENCE = re.compile(r"(?<=[.!?])\s+|\n\n|\n- |\n\|")
NOT_MEASURED = {
    "wins 12 of 16 rounds": "how the verdict is defined",
    "Torch's default is 25 MiB": "a setting",
    "10 minutes in the templates": "a setting",
    "a cable of 200 Mbit/s": "a setting",
    "S = 2 MB": "of the model that is measured",
    "if the step is faster": "a condition",
}


def prose_with_numbers(notebook) -> list[str]:
    """The sentences that a run could make false."""
    found, measured = [], False
    for cell in notebook.cells:
        if cell.cell_type == "code":
            measured = measured or bool(MEASURES.search(cell.source))
            continue
        text = re.sub(r"<details>.*?</details>|```.*?```|^#.*$", "", cell.source, flags=re.S | re.M)
        if measured and not text.lstrip().startswith("# "):
            found += [one for one in SENTENCE.split(text) if NUMBER.search(one)]
    return [
        one.strip()
        for one in found
        if "](" not in one
        and not one.rstrip().endswith("?")
        and not any(allowed in one for allowed in NOT_MEASURED)
    ]


@pytest.mark.parametrize("name", LESSONS)
def test_numbers_that_can_turn_are_written_by_cells(name):
    notebook = nbformat.read(build.NOTEBOOKS / f"{name}.ipynb", as_version=4)
    assert prose_with_numbers(notebook) == []


@pytest.mark.parametrize("name", LESSONS)
def test_claims_are_committed(name):
    notebook = nbformat.read(build.NOTEBOOKS / f"{name}.ipynb", as_version=4)
    said = steady.sentences(notebook)
    assert len(said) == len({one.key for one in said}), "two of one cell are named alike"
    asked = sum(" = ask(" in cell.source for cell in notebook.cells)
    claims = [one for one in said if "→" in str(notebook.cells[one.cell].outputs)]
    assert asked
    assert claims


def outputs(*pairs, answer='<div class="ddp-was" data-close="0.1" data-was="6">'):
    text = "".join(
        f"→ {about}: {verdict}, in 13 of 16 rounds\n  8 ms\n" for about, verdict in pairs
    )
    shown = {"text/html": answer, "text/plain": "MB a step: it was 6"}
    cell = new_code_cell("x")
    cell.outputs = [new_output("stream", text=text), new_output("display_data", shown)]
    return steady.sentences(new_notebook(cells=[cell]))


def test_what_turns_is_named():
    committed = outputs(("b against a", "faster"), ("it helps", "yes"), ("c against a", "slower"))
    same = outputs(("b against a", "faster"), ("it helps", "can't tell"), ("c against a", "slower"))
    assert steady.compare(committed, [same])[1] == 0
    other = outputs(("b against a", "slower"), ("it helps", "yes"), answer="")
    lines, turned = steady.compare(committed, [same, other])
    assert turned == 3  # slower now; "c against a" and the answer are gone
    assert lines[0] == "turned  cell 0: b against a: faster | faster, slower"
    assert "open    cell 0: it helps: yes | can't tell, yes" in lines


@pytest.mark.parametrize(
    ("close", "now", "fate"),
    [("0.1", "6.5", "holds"), ("0.1", "7", "moved"), ("0", "7", "turned"), ("0", "yes", "turned")],
)
def test_an_answer_that_is_measured_may_move(close, now, fate):
    committed = steady.Said(0, "MB", "6", float(close))
    assert steady.judge(committed, steady.Said(0, "MB", now)) == fate
    assert steady.judge(committed, None) == "turned"


def test_prose_that_repeats_a_measured_number_is_found():
    cells = [
        nbformat.v4.new_markdown_cell("It takes 3 ms."),
        new_code_cell('guess.was("faster")'),
        nbformat.v4.new_markdown_cell(
            "It took 7.5 ms. Why 8 ms? Rated [2 ms](https://a.b). Views are faster."
        ),
    ]
    found = prose_with_numbers(new_notebook(cells=cells))
    assert found == ["It took 7.5 ms.", "Views are faster."]
