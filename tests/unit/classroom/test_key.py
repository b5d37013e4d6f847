"""The teacher's key: every prediction of every lesson has an answer, every extra one of ours."""

import json
import re

import pytest

from ddp_helpers import cli
from ddp_helpers.classroom import teachers_key
from ddp_helpers.classroom.lessons import lessons
from ddp_helpers.exercises import names, progress_file

TIME = re.compile(r"\*\*Time:\*\* about (\d+) minutes")


@pytest.mark.parametrize("path", lessons(), ids=lambda path: path.stem)
def test_every_prediction_and_every_extra_is_answered(path):
    cells = json.loads(path.read_text())["cells"]
    text = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    parts = teachers_key.sections(cells)
    answers = [answer for part in parts for _, answer in part.predictions]
    assert len(answers) == text.count("**Predict")
    assert "see the cell" not in answers
    teachers_key.share_out(parts, total := int(TIME.search(text)[1]))
    assert sum(part.minutes for part in parts) == total
    assert min(part.minutes for part in parts) >= 0
    extras = teachers_key.extras(cells)
    assert len(extras) == len(teachers_key.answers_to_extras(path.name[:2]))
    assert bool(extras) == ("ome to try out" in text)


def test_a_verdict_is_the_answer_wherever_its_cell_is():
    say = lambda text: {"output_type": "display_data", "data": {"text/plain": text}}
    cells = [
        markdown("# Title\n\n**Time:** about 10 minutes"),
        markdown("## Part\n\n**Predict:** how\nmany?\n\nMore."),
        {"cell_type": "code", "source": ["def f(): ..."], "outputs": []},
        {"cell_type": "code", "source": ["f()"], "outputs": [say("many: you: 3, it was 4")]},
        markdown("Four, and *why*.\n\nAnd so on."),
        markdown("## Exercises\n\nAnd some to try out:\n\n1. Do it.\n   <details>Hint</details>\n"),
    ]
    first, part = teachers_key.sections(cells)
    assert (first.title, part.title) == ("the beginning", "Part")
    assert part.predictions == [("how many?", "Answer: 4.\nFour, and *why*.")]
    assert teachers_key.extras(cells) == ["Do it."]


def markdown(text):
    return {"cell_type": "markdown", "source": [text]}


def test_on_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(progress_file.VARIABLE, str(tmp_path / "progress.json"))
    assert cli.main(["classroom", "key", "01"]) == 0
    printed = capsys.readouterr().out
    assert "| section | min | predictions |" in printed
    assert "Answer: 4." in printed
    for number in names("01"):
        assert f"\n### {number} " in printed
    assert "def my_all_reduce(tensor):\n" in printed
    assert progress_file.current()["exercises"] == {}  # to read a key is not to ask for solutions
    assert "## Some to try out" in printed
    assert cli.main(["classroom", "key", "17"]) == 2
    assert "expected one of 00, 01, 02" in capsys.readouterr().err
    assert cli.main(["classroom", "key", "x*"]) == 2
    assert "expected its number" in capsys.readouterr().err
