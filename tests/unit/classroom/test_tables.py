"""The instructor's tables, the board and the page: rows of learners who have done something."""

import os
import threading
import urllib.error
import urllib.request

import pytest

from ddp_helpers import cli
from ddp_helpers.classroom import board, tables
from ddp_helpers.classroom.learners import find
from ddp_helpers.exercises import names, progress_file


def write(path, learner, monkeypatch, **exercises):
    monkeypatch.setenv("DDP_HELPERS_PROGRESS", str(path))
    monkeypatch.setattr(progress_file, "_user", lambda: learner)
    for number, changes in exercises.items():
        progress_file.note(number.replace("_", "."), **changes)
    return path


@pytest.fixture
def handed_in(tmp_path, monkeypatch):
    folder = tmp_path / "in"
    done = {"tries": 2, "passed_at": "2026-03-01T10:00:00"}
    write(folder / "a.json", "ada", monkeypatch, **{"01.1": done, "01.2": {"tries": 4, "hints": 1}})
    write(folder / "b.json", "bob", monkeypatch, **{"01.1": {"tries": 4, "saw_solution": True}})
    (folder / "c.json").write_text("{")
    return folder


def cells(text, start):
    line = next(line for line in text.splitlines() if line.startswith(f"| {start} "))
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_a_row_for_each_learner_and_exercise(handed_in):
    learners, problems = find([handed_in])
    text = tables.report(learners)
    assert cells(text, "ada")[:6] == ["ada", "", f"1 of {len(names())}", "2", "1", "0"]
    assert cells(text, "bob")[:6] == ["bob", "", f"0 of {len(names())}", "1", "0", "1"]
    assert cells(text, "01.1 who am i")[1:] == ["2", "1", "3.0", "0", "1"]
    assert cells(text, "01.3 ring all reduce")[1:3] == ["0", "0"]
    assert len(problems) == 1
    assert "c.json is no progress file, or damaged" in problems[0]


def test_on_the_command_line(handed_in, capsys):
    good = [str(handed_in / name) for name in ("a.json", "b.json")]
    assert cli.main(["classroom", "report", *good]) == 0
    assert "| ada |" in capsys.readouterr().out
    assert cli.main(["classroom", "report", str(handed_in)]) == 1
    printed = capsys.readouterr()
    assert "| bob |" in printed.out
    assert "not read: " in printed.err
    assert cli.main(["classroom", "report", str(handed_in / "none.json")]) == 1
    assert "there is no such file" in capsys.readouterr().err


def test_two_learners_of_one_name_are_told_apart(tmp_path, monkeypatch):
    for name in ("x.json", "y.json"):
        write(tmp_path / name, "jovyan", monkeypatch, **{"01.1": {"tries": 1}})
    text = tables.report(find([tmp_path])[0])
    assert f"jovyan ({tmp_path / 'x.json'})" in text
    assert f"jovyan ({tmp_path / 'y.json'})" in text


def test_a_copy_is_known_by_what_it_was_handed_out_as(tmp_path, monkeypatch):
    for folder, seat in (("here", "learner-01"), ("there", "learner-02"), ("mine", "../x\n")):
        own = tmp_path / folder / progress_file.CLASS
        write(own / "progress.json", "Ada", monkeypatch, **{"01.1": {"tries": 1}})
        (own / "handed-out-as").write_text(seat)
    found = {learner.student: learner for learner in find([tmp_path])[0]}
    assert [*found] == ["learner-01", "x", "learner-02"]  # by their folders
    first = found["learner-01"]
    assert (first.name, first.key) == ("Ada (learner-01)", "Ada_learner-01")
    assert cells(tables.report([first]), "Ada")[1] == "learner-01"
    # another class has a learner-01, too, and an Ada sits there
    (tmp_path / "there" / progress_file.CLASS / "handed-out-as").write_text("learner-01")
    found = {learner.student: learner.name for learner in find([tmp_path])[0]}
    assert found["learner-01"] == f"Ada ({tmp_path / 'here'})"
    assert found["learner-01-2"] == f"Ada ({tmp_path / 'there'})"


def test_what_somebody_wrote_into_their_file_does_no_harm(tmp_path, monkeypatch):
    write(tmp_path / "a.json", "\x1b[2Jada", monkeypatch, **{"01.1": {"tries": 1}})
    write(tmp_path / "b.json", "bob", monkeypatch, **{"01.1": {"tries": 1, "hints": 1}})
    text = (tmp_path / "b.json").read_text().replace('"hints": 1', '"hints": "all"')
    (tmp_path / "b.json").write_text(text)
    os.mkfifo(tmp_path / "c.json")  # nobody writes into it: a reader would wait for ever
    learners, problems = find([tmp_path])
    assert [learner.name for learner in learners] == ["?[2Jada"]
    assert len(problems) == 2
    assert "1" in tables.board(learners)


def test_what_was_collected_among_them_is_no_learner(handed_in, capsys):
    (handed_in / "c.json").unlink()
    for _ in range(2):
        into = str(handed_in / "collected")
        assert cli.main(["classroom", "collect", str(handed_in), "--into", into]) == 0
        assert "2 learners" in capsys.readouterr().out


# ------------------------------------------------------------------ the board


def marks(text, learner):
    return next(line for line in text.splitlines() if line.startswith(learner)).split()[1:]


def test_the_board_has_a_letter_for_each_exercise(handed_in):
    text = tables.board(find([handed_in])[0])
    assert marks(text, "ada")[0] == "✓4" + "·" * (len(names("01")) - 2)
    assert marks(text, "ada")[-1] == "1"  # done
    assert marks(text, "bob")[0][:2] == "4·"
    one = tables.board(find([handed_in])[0], ["2"])
    assert "02 " in one
    assert marks(one, "ada") == ["·" * len(names("02")), "0"]
    with pytest.raises(ValueError, match="'09': expected one of 01, 02"):
        tables.board([], ["09"])


def test_columns_stand_below_each_other_whatever_the_letters_of_a_name(tmp_path, monkeypatch):
    for file, name in (("a.json", "李小龙"), ("b.json", "bob")):
        write(tmp_path / file, name, monkeypatch, **{"01.1": {"tries": 1}})
    lines = tables.board(find([tmp_path])[0]).splitlines()
    # three letters of two columns each: so the line has three letters less
    assert lines[3].index("1·") == lines[4].index("1·") + 3


def test_the_board_in_a_terminal(handed_in, capsys):
    assert cli.main(["classroom", "board", str(handed_in), "--once"]) == 0
    printed = capsys.readouterr().out
    assert "2 learners" in printed
    assert "not read: " in printed
    assert "c.json is no progress file" in printed
    assert cli.main(["classroom", "board", str(handed_in), "--every", "0.1"]) == 2
    assert "--every" in capsys.readouterr().err


def test_the_page_is_read_anew_and_gives_away_nothing_else(handed_in, monkeypatch):
    write(handed_in / "x.json", "<b>eve</b>", monkeypatch, **{"01.2": {"tries": 1}})
    with board.serve([handed_in], ["01"], every=2) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        there = f"http://127.0.0.1:{server.server_port}/"
        first = urllib.request.urlopen(there, timeout=5).read().decode()
        write(handed_in / "b.json", "bob", monkeypatch, **{"01.2": {"tries": 1, "passed_at": "x"}})
        second = urllib.request.urlopen(there, timeout=5).read().decode()
        for elsewhere in ("a.json", "../a.json", "%2e%2e/a.json"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(there + elsewhere, timeout=5)
        server.shutdown()
    assert '<meta http-equiv="refresh" content="2">' in first
    assert '<th scope="row">bob</th><td class="tried">4</td><td class="open">·</td>' in first
    assert '<th scope="row">bob</th><td class="tried">4</td><td class="done">✓</td>' in second
    assert "&lt;b&gt;eve&lt;/b&gt;" in first
    assert "<b>eve" not in first
