"""A class of eight, from the first copy to the last report: they really answer, on real ranks."""

import csv
import json
import subprocess
import sys

import pytest

from ddp_helpers import cli
from ddp_helpers.exercises import check, core, hint, names, progress_file

CLASS = ("Ada", "Bob", "Chi", "Dan", "Eve", "Fay", "Gus", "Zoë 李")
RIGHT = core.load("01.1").solution
WRONG = core.load("01.1").WRONG[1]


@pytest.fixture
def room(tmp_path, monkeypatch):
    """Handed out to eight, of whom seven tell their names."""
    monkeypatch.delenv(progress_file.VARIABLE, raising=False)
    assert cli.main(["classroom", "hand-out", str(tmp_path / "room"), "--learners", "8"]) == 0
    return tmp_path / "room"


def seat(room, number):
    return room / f"learner-{number:02}"


def answers(room, monkeypatch):
    """Odd seats are right, even ones wrong; seat 2 mends its answer, and seat 8 asks for hints."""
    for number, name in enumerate(CLASS, start=1):
        monkeypatch.chdir(seat(room, number) / "notebooks")
        if name != "Gus":
            assert cli.main(["classroom", "name", name]) == 0
        if number < 8:
            assert check("01.1", RIGHT if number % 2 else WRONG.answer).passed == bool(number % 2)
    monkeypatch.chdir(seat(room, 2))
    assert check("01.1", core.load("01.1").ALSO_RIGHT[0])
    monkeypatch.chdir(seat(room, 8))
    hint("01.1")


def as_a_learner(folder, *words):
    """In a process of its own, as typed into a terminal."""
    command = [sys.executable, "-m", "ddp_helpers", "classroom", *words]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.usefixtures("no_process_left")
def test_a_class_of_eight(room, tmp_path, monkeypatch, capsys):
    answers(room, monkeypatch)

    # one has spoilt a notebook
    spoilt = seat(room, 3) / "notebooks/01_process_groups.ipynb"
    handed = spoilt.read_bytes()
    spoilt.write_text("def my_work(): ...")
    assert "what you had is" in as_a_learner(spoilt.parent, "reset", "01")
    assert spoilt.read_bytes() == handed

    capsys.readouterr()
    assert cli.main(["classroom", "board", str(room), "--once", "--notebook", "01"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = {line.split()[0]: line.split()[-2][0] for line in lines[3:11]}
    assert first == {
        **dict.fromkeys(("Ada", "Bob", "Chi", "Eve", "learner-07"), "✓"),
        **{"Dan": "1", "Fay": "1", "Zoë": "·"},
    }

    into = tmp_path / "collected"
    assert cli.main(["classroom", "collect", str(room), "--into", str(into)]) == 0
    assert "8 learners" in capsys.readouterr().out
    with (into / "grades.csv").open() as file:
        grades = [row for row in csv.DictReader(file) if row["assignment"] == "01"]
    assert {row["first_name"]: float(row["score"]) for row in grades} == {
        **dict.fromkeys(("Ada", "Bob", "Chi", "Eve", "learner-07"), 1.0),
        **dict.fromkeys(("Dan", "Fay", "Zoë 李"), 0.0),
    }
    # an id stays, whatever name somebody chooses
    assert {row["student_id"]: row["first_name"] for row in grades} == {
        f"learner-{seat:02}": name if name != "Gus" else "learner-07"
        for seat, name in enumerate(CLASS, start=1)
    }
    assert {float(row["max_score"]) for row in grades} == {float(len(names("01")))}

    # Bob's first answer was wrong, and his last is kept; Dan's tells why it isn't right
    assert "def with_get" in (into / "answers/01.1/Bob.py").read_text()
    assert "def counts_from_one" in (into / "answers/01.1/Dan.py").read_text()
    results = json.loads((into / "results/Dan.json").read_text())
    assert results["score"] == 0
    assert WRONG.says in results["tests"][0]["output"]
    assert (results["tests"][0]["status"], results["tests"][1]["output"]) == ("failed", "not tried")
    assert json.loads((into / "results/Bob.json").read_text())["score"] == 1
    assert WRONG.says in (into / "reports/Dan.md").read_text()
    assert "✗ 01.1 who am i: 1 try" in (into / "reports/Dan.md").read_text()
    assert "Nothing was tried in 02, 03" in (into / "reports/Dan.md").read_text()
    assert "✓ 01.1 who am i: 2 tries" in (into / "reports/Bob.md").read_text()
    assert "· 01.1 who am i: 0 tries, 1 hint" in (into / "reports/Zoë_李.md").read_text()
    assert (into / "submitted/learner-03/kept").is_dir()  # nobody else has changed a notebook
    assert [path.name for path in (into / "submitted").iterdir()] == ["learner-03"]
    assert "| Ada | learner-01 | 1 of " in (into / "report.md").read_text()

    # again, and one has left: their files go with them
    for file in (seat(room, 1) / ".ddp_class").glob("progress.*"):
        file.unlink()
    assert cli.main(["classroom", "collect", str(room), "--into", str(into)]) == 0
    assert not (into / "results/Ada.json").exists()
    assert cli.main(["classroom", "collect", str(room), "--into", str(room)]) == 2
    assert "holds files that are no collection" in capsys.readouterr().err
