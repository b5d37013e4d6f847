"""Exercises without ranks: tasks, hints, and the file that keeps what is done."""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ddp_helpers import exercises
from ddp_helpers.exercises import (
    core,
    exercise,
    hint,
    names,
    progress,
    progress_file,
    solution,
    task,
)


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    path = tmp_path / "kept" / "progress.json"
    monkeypatch.setenv("DDP_HELPERS_PROGRESS", str(path))
    return path


def read(file):
    return json.loads(file.read_text())


def test_there_are_enough_and_in_each_notebook():
    assert len(names()) >= 24
    for notebook in ("01", "02", "03", "04", "05", "06", "07"):
        here = names(notebook)
        assert len(here) >= 4
        assert here == [f"{notebook}.{place}" for place in range(1, len(here) + 1)]


@pytest.mark.parametrize("number", names())
def test_a_task_can_be_started_from_what_is_printed(number, capsys):
    task(number)
    printed = capsys.readouterr().out
    code = printed.partition("Start from:\n\n")[2]
    name = core.load(number).EXERCISE.name
    assert f"def {name}(" in code
    assert f'check("{number}", {name})' in code
    compile(code, "task", "exec")
    exec(code.partition("check(")[0], space := {})  # its imports are there
    used = space[name].__code__.co_names + core.load(number).solution.__code__.co_names
    missing = {n for n in used if n in vars(core.load(number)) and n not in space}
    assert missing <= {"starter", "solution"}
    assert "NotYet" not in printed


@pytest.mark.parametrize("number", names())
def test_its_solution_is_shown_under_the_learners_name(number, capsys, file):
    solution(number)
    code = capsys.readouterr().out
    assert f"def {core.load(number).EXERCISE.name}(" in code
    exec(code, space := {})  # as pasted into a new kernel: its imports are there
    used = core.load(number).solution.__code__.co_names
    missing = {n for n in used if n in vars(core.load(number)) and n not in space}
    assert missing <= {"starter", "solution"}
    assert read(file)["exercises"][number]["saw_solution"] is True


def test_each_hint_tells_more_and_is_counted(capsys, file):
    hints = core.load("01.3").EXERCISE.hints
    for which in (1, 2, 3, 4, 4):
        hint("01.3")
        assert capsys.readouterr().out == f"01.3, hint {which} of 4: {hints[which - 1]}\n"
    assert read(file)["exercises"]["01.3"]["hints"] == 4
    hint("01.3", 1)
    assert hints[0] in capsys.readouterr().out
    with pytest.raises(ValueError, match="hint 5 of 01.3: expected 1 to 4"):
        hint("01.3", 5)


@pytest.mark.parametrize("call", [task, hint, solution, lambda n: exercises.check(n, print)])
def test_an_unknown_exercise_is_named(call):
    with pytest.raises(ValueError, match="no exercise '9.9': expected one of 01.1, 01.2"):
        call("9.9")
    with pytest.raises(ValueError, match=r"no exercise '1\.1': did you mean '01\.1'\?"):
        call("1.1")


def test_what_is_no_function_is_told_so(capsys):
    assert not exercises.check("01.3", 17)
    assert "you passed int '17', expected your function my_all_reduce(tensor)" in (
        capsys.readouterr().out
    )
    assert not exercises.check("01.3", lambda: None)
    assert "can't be called as my_all_reduce(tensor)" in capsys.readouterr().out


def test_what_cannot_travel_is_told_so(capsys):
    lock = __import__("threading").Lock()
    assert not exercises.check("01.3", lambda tensor: lock)
    assert "can't travel to the ranks" in capsys.readouterr().out


def test_progress_is_a_figure_and_a_text(capsys, file):
    progress_file.note("01.2", tries=3, passed_at="2026-01-02T10:00:00")
    progress_file.note("01.3", tries=1)
    figure = progress()
    assert f"1 of {len(names())} exercises done" in figure.get_suptitle()
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert (texts.count("✓"), texts.count("…")) == (1, 1)
    printed = capsys.readouterr().out
    assert f"notebook 01: 1 of {len(names('01'))} done; next: 01.1 who am i" in printed
    assert str(file) in printed


def test_a_damaged_file_is_kept_and_a_new_one_begins(capsys, file):
    progress_file.note("01.1", tries=1)
    whole = file.read_text()
    for number, damaged in enumerate((whole[: len(whole) // 2], "[]", "", '{"format": 7}'), 1):
        file.write_text(damaged)
        progress_file.note("01.2", tries=1)
        printed = capsys.readouterr().out
        assert "is no progress file, or damaged" in printed
        assert "it is kept as progress.damaged-" in printed
        assert list(read(file)["exercises"]) == ["01.2"]
        kept = sorted(file.parent.glob("*.damaged-*"))
        assert len(kept) == number
        assert damaged in [path.read_text() for path in kept]


def test_without_a_home_progress_is_not_kept(capsys, monkeypatch):
    monkeypatch.delenv(progress_file.VARIABLE, raising=False)

    def unknown():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(progress_file.Path, "home", unknown)
    assert progress_file.note("01.1", tries=1) == {}
    assert "progress is not kept: HOME is not set; set DDP_HELPERS" in capsys.readouterr().out


def test_a_write_that_fails_loses_nothing(capsys, file, monkeypatch):
    progress_file.note("01.1", tries=1)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    progress_file.note("01.1", tries=1)
    assert "progress is not kept: [Errno 28]" in capsys.readouterr().out
    assert read(file)["exercises"]["01.1"]["tries"] == 1
    assert not list(file.parent.glob(".*tmp"))


def test_a_place_that_cannot_be_written_does_not_stop_a_check(capsys, monkeypatch):
    monkeypatch.setenv("DDP_HELPERS_PROGRESS", "/proc/nowhere/progress.json")
    assert not exercises.check("01.3", 17)
    printed = capsys.readouterr().out
    assert "01.3 not yet" in printed
    assert "set DDP_HELPERS_PROGRESS to a file that you may write" in printed


def test_two_notebooks_at_once_lose_no_try(file):
    code = (
        "from ddp_helpers.exercises import progress_file\n"
        "for _ in range(40): progress_file.note('01.1', tries=1)"
    )
    with ThreadPoolExecutor() as pool:
        runs = [
            pool.submit(subprocess.run, [sys.executable, "-c", code], check=True) for _ in range(3)
        ]
        for run in runs:
            run.result()
    assert read(file)["exercises"]["01.1"]["tries"] == 120


def test_a_lock_that_is_held_is_not_waited_for(file, capsys, monkeypatch):
    monkeypatch.setattr(progress_file, "PATIENCE", 0.1)
    with progress_file.locked():
        assert progress_file.note("01.1", tries=1) == {}
    assert "is held by another process" in capsys.readouterr().out


def test_importing_the_exercises_is_light():
    code = "import sys, ddp_helpers.exercises; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def cells_of(notebook):
    path = next((Path(__file__).resolve().parents[3] / "notebooks").glob(f"{notebook}_*.ipynb"))
    cells = json.loads(path.read_text())["cells"]
    return [(cell["metadata"].get("tags", []), "".join(cell["source"])) for cell in cells]


@pytest.mark.parametrize("number", names())
def test_each_waits_to_be_filled_in_where_its_idea_is(number):
    """In a cell that holds its starter, and what that needs has been imported before."""
    cells = cells_of(number[:2])
    module = core.load(number)
    code = f"{core.source_of(module, 'starter').rstrip()}\n\n\n"
    code += f'exercise("{number}", {module.EXERCISE.name})'
    (place,) = (at for at, (tags, text) in enumerate(cells) if "exercise" in tags and code in text)
    exercises_end = next(at for at, (_, text) in enumerate(cells) if "## Exercises\n" in text)
    assert place < exercises_end
    before = "\n".join(text for _, text in cells[: place + 1])
    needed = core.imports_of(module).replace(",", "").split()
    names_needed = {each.rpartition(".")[2] for each in needed} - {"from", "import", "as"}
    used = {name for name in names_needed if re.search(rf"\b{name}\b", code)}
    assert used <= set(re.findall(r"\w+", "\n".join(re.findall("^.*import .*$", before, re.M))))


@pytest.mark.parametrize("notebook", sorted({number[:2] for number in names()}))
def test_each_notebook_says_how_its_exercises_go(notebook):
    text = next(text for _, text in cells_of(notebook) if "## Exercises\n" in text)
    assert "from ddp_helpers.exercises import hint, progress, solution" in text


def test_a_cell_that_nobody_has_filled_in_tells_the_task_and_notes_nothing(capsys, file):
    starter = core.load("01.2").starter
    assert exercise("01.2", starter) is None
    printed = capsys.readouterr().out
    assert printed.startswith("01.2 Rebuild broadcast (about 10 minutes)")
    assert "Change my_broadcast and run the cell again" in printed
    assert printed.endswith('import hint; hint("01.2")\n')
    assert not file.exists()


def test_a_comment_changes_nothing_and_a_line_does():
    module = core.load("01.1")

    def same():
        # which line is it?
        rank, world_size = 0, 1
        return rank, world_size

    def changed():
        rank, world_size = 1, 1
        return rank, world_size

    def other_arguments(rank):
        rank, world_size = 0, 1
        return rank, world_size

    assert core.is_starter(same, module)
    assert not core.is_starter(changed, module)
    assert not core.is_starter(other_arguments, module)
    assert not core.is_starter("who_am_i", module)
    assert not core.is_starter(len, module)


def test_a_cell_that_is_filled_in_is_checked(monkeypatch):
    asked = []
    monkeypatch.setattr(exercises, "check", lambda number, answer: asked.append((number, answer)))
    exercise("01.1", len)
    assert asked == [("01.1", len)]
