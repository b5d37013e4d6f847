"""Learners' copies: without outputs, with what they need, and nobody's work is lost by a reset."""

import json
import re

import pytest

from ddp_helpers import cli
from ddp_helpers.classroom import contents
from ddp_helpers.classroom.copies import hand_out, reset
from ddp_helpers.classroom.learners import find
from ddp_helpers.data.folder import PACKAGE
from ddp_helpers.exercises import progress_file

NOTEBOOKS = PACKAGE.parent / "notebooks"


@pytest.fixture(autouse=True)
def no_file_of_their_own(monkeypatch):
    monkeypatch.delenv(progress_file.VARIABLE, raising=False)


@pytest.fixture
def copy(tmp_path):
    hand_out(tmp_path / "copy")
    return tmp_path / "copy"


def read(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize("language", [None, "zh_CN"])
def test_a_copy_has_every_notebook_without_its_outputs(tmp_path, language):
    made = hand_out(tmp_path / "copy", language=language)
    source = NOTEBOOKS / (language or "")
    assert [*made[0].new] == [path.name for path in sorted(source.glob("0*.ipynb"))]
    stayed = {}
    for path in sorted((tmp_path / "copy/notebooks").glob("*.ipynb")):
        here, there = read(path)["cells"], read(source / path.name)["cells"]
        assert [cell["cell_type"] for cell in here] == [cell["cell_type"] for cell in there]
        for number, (cell, before) in enumerate(zip(here, there, strict=True)):
            if cell["cell_type"] == "code":
                assert cell["source"] == before["source"]
                assert cell["metadata"].get("tags") == before["metadata"].get("tags")
                if cell["outputs"]:
                    stayed[path.name[:2], number] = cell["outputs"] == before["outputs"]
    words = {None: "Your copy of the course", "zh_CN": "你的课程副本"}
    assert words[language] in (tmp_path / "copy/README.md").read_text()
    # one cell's text says "look at the saved figure"
    assert [*stayed.values()] == [True]
    assert [name for name, _ in stayed] == ["06"]


def test_a_tagged_cell_keeps_its_output(tmp_path):
    cells = [
        {
            "cell_type": "code",
            "metadata": {"tags": [contents.KEEP]},
            "source": ["1"],
            "outputs": [7],
        },
        {"cell_type": "code", "metadata": {}, "source": ["2"], "outputs": [8]},
    ]
    (tmp_path / "from").mkdir()
    (tmp_path / "from/01_one.ipynb").write_text(json.dumps({"cells": cells}))
    hand_out(tmp_path / "copy", source=tmp_path / "from")
    handed = read(tmp_path / "copy/notebooks/01_one.ipynb")["cells"]
    assert [cell["outputs"] for cell in handed] == [[7], []]


@pytest.mark.parametrize("language", [None, "zh_CN"])
def test_every_link_of_a_copy_leads_somewhere(tmp_path, language):
    hand_out(tmp_path, language=language)
    found = 0
    pages = {path: path.read_text() for path in (tmp_path / "notebooks").glob("*.md")}
    for path in (tmp_path / "notebooks").glob("*.ipynb"):
        pages[path] = "\n".join("".join(cell["source"]) for cell in read(path)["cells"])
    for path, text in pages.items():
        for link in re.findall(r"\]\((?!http)([^)#\s]+\.\w+|\.\./[^)#\s]*)", text):
            assert (path.parent / link).exists(), f"{path.name}: {link}"
            found += 1
    assert found > 10
    fault = next((tmp_path / "course/faults").glob("*.py"))
    fault.write_text("mine")  # as notebook 05 says: yours to change
    hand_out(tmp_path, language=language)
    assert fault.read_text() == "mine"


def test_a_reset_keeps_what_the_learner_had(copy):
    file = copy / "notebooks/01_process_groups.ipynb"
    handed = file.read_bytes()
    for mine in ("my first work", "my second work"):
        file.write_text(mine)
        assert "what you had is notebooks/kept/01_process_groups." in reset(["01"], copy)[0]
        assert file.read_bytes() == handed
    kept = sorted(path.read_text() for path in (copy / "notebooks/kept").iterdir())
    assert kept == ["my first work", "my second work"]  # within one second, too
    assert (
        reset(["1"], copy)
        == reset(["01_process_groups.ipynb"], copy / "notebooks")
        == ["01_process_groups.ipynb: it is as it was handed out"]
    )
    file.unlink()
    assert reset(["01"], copy) == ["01_process_groups.ipynb: as it was handed out"]
    assert file.read_bytes() == handed


def test_all_at_once_and_on_the_command_line(copy, monkeypatch, capsys):
    monkeypatch.chdir(copy / "notebooks")
    for name in ("02_dataparallel_vs_ddp.ipynb", "05_when_it_breaks.ipynb"):
        (copy / "notebooks" / name).write_text("mine")
    assert cli.main(["classroom", "reset", "--all"]) == 0
    assert capsys.readouterr().out.count("what you had is") == 2
    assert len([*(copy / "notebooks/kept").iterdir()]) == 2
    assert cli.main(["classroom", "reset"]) == 2
    assert cli.main(["classroom", "reset", "17"]) == 2
    assert "notebook '17': expected one of 00, 01" in capsys.readouterr().err
    monkeypatch.chdir("/")
    assert cli.main(["classroom", "reset", "01"]) == 2
    assert "is in no learner's copy" in capsys.readouterr().err


def test_a_newer_edition_reaches_those_who_have_changed_nothing(tmp_path):
    source, room = tmp_path / "from", tmp_path / "room"
    source.mkdir()
    for name in ("01_one.ipynb", "02_two.ipynb"):
        (source / name).write_text(json.dumps({"cells": []}))
    hand_out(room, learners=2, source=source)
    mine = room / "learner-01/notebooks/01_one.ipynb"
    mine.write_text("mine")
    (room / "learner-01/README.md").write_text("my notes")
    (source / "01_one.ipynb").write_text(json.dumps({"cells": [], "edition": 2}))
    first, second = hand_out(room, learners=2, source=source)
    assert (first.new, first.left) == ((), ("01_one.ipynb",))
    assert (second.new, second.left) == (("01_one.ipynb",), ())
    assert mine.read_text() == "mine"
    assert (room / "learner-01/README.md").read_text() == "my notes"
    reset(["01"], room / "learner-01")
    assert read(mine)["edition"] == 2


def test_a_folder_with_other_things_is_left_alone(tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years of work")
    assert cli.main(["classroom", "hand-out", str(tmp_path)]) == 2
    assert "holds files that are no learner's copy" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    room = tmp_path / "room"
    hand_out(room, learners=1)
    assert cli.main(["classroom", "hand-out", str(room)]) == 2
    assert "holds the copies of a class, expected one copy: give --learners" in (
        capsys.readouterr().err
    )
    for words, says in (
        (["--learners", "0"], "expected a whole number, at least 1"),
        (["--from", str(tmp_path)], "no notebooks in"),
        (["--language", "xx"], "expected zh_CN"),
    ):
        assert cli.main(["classroom", "hand-out", str(tmp_path / "new"), *words]) == 2
        assert says in capsys.readouterr().err


def test_copies_that_are_named_by_a_list(tmp_path, capsys):
    listed, room = tmp_path / "class.txt", tmp_path / "room"
    listed.write_text("\ufeffAda Lovelace\r\n\n  李雷\n")  # as a spreadsheet writes it
    words = ["classroom", "hand-out", str(room), "--names", str(listed)]
    for said in ("8 notebooks", "nothing new"):
        assert cli.main(words) == 0
        assert f"Ada_Lovelace: {said}" in capsys.readouterr().out
    assert sorted(path.name for path in room.iterdir()) == ["Ada_Lovelace", "李雷"]
    learners = {learner.student: learner.name for learner in find([room])[0]}
    assert learners == {"Ada_Lovelace": "Ada Lovelace", "李雷": "李雷"}
    for text, says in (
        ("\n", "no name: expected one for each copy"),
        ("Ada\nada", "name 'Ada' is there twice"),
        ("Ada\n..", "name 2, '..': expected 1 to 40 letters"),
        ("x" * 41, "expected 1 to 40 letters"),
    ):
        listed.write_text(text)
        assert cli.main(words) == 2
        assert says in capsys.readouterr().err
    assert cli.main([*words[:-1], str(tmp_path / "none.txt")]) == 2
    assert "none.txt" in capsys.readouterr().err
    assert len([*room.iterdir()]) == 2


def test_a_learner_chooses_a_name(copy, monkeypatch, capsys):
    monkeypatch.chdir(copy / "notebooks")
    assert cli.main(["classroom", "name", "Ada", "L."]) == 0
    progress_file.note("01.1", tries=1)
    state = progress_file.read(copy / ".ddp_class/progress.json")
    assert (state["learner"], state["exercises"]["01.1"]["tries"]) == ("Ada L.", 1)
    for name in (" ", "x" * 41, "a\x1b[2Jb"):
        assert cli.main(["classroom", "name", name]) == 2
    printed = capsys.readouterr()
    assert "expected 1 to 40 letters" in printed.err
    assert "in no copy" not in printed.out
    monkeypatch.chdir("/")  # a terminal opens elsewhere
    monkeypatch.setenv("HOME", str(copy.parent))
    assert cli.main(["classroom", "name", "Ada"]) == 0
    assert "this folder is in no copy of a class" in capsys.readouterr().out


def right():
    return 1


def wrong():
    return 2


def test_answers_are_kept_in_a_class_only(copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(progress_file.VARIABLE, str(tmp_path / "home/progress.json"))
    progress_file.keep_answer("01.1", wrong, False, "01.1 not yet: no\nat all")
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]
    monkeypatch.chdir(copy)
    answer = copy / ".ddp_class/answers/01.1.py"
    progress_file.keep_answer("01.1", wrong, False, "01.1 not yet: no\nat all")
    assert progress_file.said_of(answer) == "01.1 not yet: no\nat all"
    assert not progress_file.was_right(answer)
    assert answer.read_text().endswith("def wrong():\n    return 2\n")
    progress_file.keep_answer("01.1", right, True, "01.1 passed")
    assert progress_file.was_right(answer)
    progress_file.keep_answer("01.1", wrong, False, "01.1 not yet")
    assert "return 1" in answer.read_text()  # what was right stays
    progress_file.keep_answer("01.2", max, False, "01.2 not yet")  # a builtin has no text
    assert "can't be had" in (copy / ".ddp_class/answers/01.2.py").read_text()
