"""Answers as learners write them in a cell, right and wrong, each judged on real ranks.

`answers/NN_N.py` holds those of an exercise. A comment above each says what is expected: `# right`,
or `# wrong: ` and a piece of what the check must say.
"""

import linecache
import re
from pathlib import Path

import pytest

from ddp_helpers.exercises import check, core

pytestmark = pytest.mark.usefixtures("no_process_left")
FOLDER = Path(__file__).parent / "answers"
SHORT = 1.5  # seconds for what is meant to hang


def answers() -> list:
    found = []
    for path in sorted(FOLDER.glob("[0-9]*.py")):
        number = path.stem.replace("_", ".", 1)
        head, *parts = re.split(r"^# (?=right$|right:|wrong:)", path.read_text(), flags=re.M)
        for count, part in enumerate(parts):
            verdict, code = part.split("\n", 1)
            case = pytest.param(number, verdict, head + code, id=f"{number}-{count}-{verdict[:50]}")
            found.append(case)
    return found


def as_in_a_cell(code: str, name: str, place: str):
    """The function, with its source where a traceback looks for it."""
    file = f"/tmp/ipykernel_1/{place}.py"
    linecache.cache[file] = (len(code), None, code.splitlines(keepends=True), file)
    space = {"__name__": "__main__"}
    exec(compile(code, file, "exec"), space)
    return space[name]


@pytest.fixture(autouse=True)
def own_progress(tmp_path, monkeypatch):
    monkeypatch.setenv("DDP_HELPERS_PROGRESS", str(tmp_path / "progress.json"))


@pytest.mark.parametrize(("number", "verdict", "code"), answers())
def test_it_is_judged_rightly(number, verdict, code):
    answer = as_in_a_cell(code, core.load(number).EXERCISE.name, str(abs(hash(code))))
    kind, _, says = verdict.partition(": ")
    assert bool(says) == (kind == "wrong"), "a wrong answer's comment names what the check must say"
    done = check(number, answer, seconds=SHORT if "did not end" in says else 20.0)
    assert done.passed == (kind == "right"), done.message
    assert says in done.message or kind == "right", done.message
    assert "ddp_helpers/exercises" not in done.message, done.message


def test_there_are_enough():
    assert {case.values[0] for case in answers()} == set(core.files())
    assert len(answers()) >= 200
