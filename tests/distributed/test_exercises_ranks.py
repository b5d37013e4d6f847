"""Each exercise on real ranks: right answers pass, wrong ones are told what is wrong with them."""

import ctypes
import os

import pytest

from ddp_helpers.exercises import check, core

pytestmark = pytest.mark.usefixtures("no_process_left")
NUMBERS = list(core.files())
MODULES = {number: core.load(number) for number in NUMBERS}
SHORT = 1.0  # seconds for what is meant to hang


@pytest.fixture(autouse=True)
def own_progress(tmp_path, monkeypatch):
    monkeypatch.setenv("DDP_HELPERS_PROGRESS", str(tmp_path / "progress.json"))


def cases(name):
    found = [
        (number, answer)
        for number, module in MODULES.items()
        for answer in getattr(module, name, ())
    ]
    ids = [f"{n}-{getattr(a, 'answer', a).__name__}" for n, a in found]
    return pytest.mark.parametrize(("number", "answer"), found, ids=ids)


@pytest.mark.parametrize("number", NUMBERS)
def test_the_solution_passes(number):
    done = check(number, MODULES[number].solution)
    assert done.passed, done.message
    assert MODULES[number].EXERCISE.lesson in done.message


@cases("ALSO_RIGHT")
def test_another_right_answer_passes(number, answer):
    done = check(number, answer)
    assert done.passed, done.message


@pytest.mark.parametrize("number", NUMBERS)
def test_the_starter_is_told_what_to_do(number):
    module = MODULES[number]
    done = check(number, module.starter, seconds=getattr(module, "STARTER_SECONDS", 20.0))
    assert not done.passed
    written = getattr(module, "STARTER_SAYS", f"{module.EXERCISE.name} is not written yet")
    assert written in done.message
    assert "Traceback" not in done.message


@cases("WRONG")
def test_each_wrong_answer_gets_its_own_message(number, answer):
    hangs = "did not end" in answer.says
    done = check(number, answer.answer, seconds=SHORT if hangs else 20.0)
    assert not done.passed
    assert answer.says in done.message, done.message


@pytest.mark.parametrize("number", NUMBERS)
def test_a_file_is_complete(number):
    module = MODULES[number]
    says = [wrong.says for wrong in module.WRONG]
    assert len(set(says)) == len(says) >= 3
    assert len(module.EXERCISE.hints) >= 3
    assert module.EXERCISE.task.strip().endswith(".")


def test_many_exercises_have_a_second_right_answer():
    assert sum(bool(getattr(module, "ALSO_RIGHT", ())) for module in MODULES.values()) >= 10


# what an answer may do to the check itself


def loops(*args):
    while True:
        pass


def crashes(*args):
    ctypes.string_at(0)


def leaves(*args):
    os._exit(0)


def exits(*args):
    raise SystemExit(0)


@pytest.mark.parametrize("number", NUMBERS)
def test_an_endless_loop_is_survived(number):
    done = check(number, loops, seconds=SHORT)
    assert not done.passed
    assert f"did not end within {SHORT:g} s" in done.message


@pytest.mark.parametrize("number", NUMBERS)
def test_a_crash_is_survived(number):
    done = check(number, crashes)
    assert not done.passed
    assert "SIGSEGV" in done.message


@pytest.mark.parametrize("answer", [leaves, exits])
def test_an_answer_that_ends_its_process(answer):
    done = check("01.1", answer)
    assert not done.passed
    assert "ended" in done.message
