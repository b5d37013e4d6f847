"""A question before a cell runs: who is asked, what is understood, and what is kept."""

import builtins
import json
import os
import pty
import subprocess
import sys

import pytest

from ddp_helpers.exercises import ask, progress
from ddp_helpers.exercises.guesses import OFF


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    path = tmp_path / "progress.json"
    monkeypatch.setenv("DDP_HELPERS_PROGRESS", str(path))
    monkeypatch.setenv(OFF, "1")
    return path


@pytest.fixture
def say(monkeypatch):
    """Give answers as if they were typed; the questions that were asked."""
    asked = []

    def typed(*answers):
        waiting = list(answers)

        def answer(question):
            asked.append(question)
            return waiting.pop(0)

        monkeypatch.setattr(builtins, "input", answer)
        monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
        return asked

    return typed


@pytest.mark.parametrize(
    ("choices", "typed", "value"),
    [
        ((1, 2, 3), "3", 3),
        ((1, 2, 3), " 2 ", 2),
        (("faster", "slower"), "slower", "slower"),
        (("faster", "slower"), "S", "slower"),
        (("yes", "no"), "y", "yes"),
        ((2.5, 10), "2.5", 2.5),
        ((), "1,000", 1000.0),
        ((), "", None),
        ((1, 2), "off", None),
    ],
)
def test_what_is_typed_is_understood(say, choices, typed, value):
    asked = say(typed)
    assert ask("messages", *choices).value == value
    assert len(asked) == 1
    assert os.environ[OFF] == ("0" if typed == "off" else "1")


def test_what_is_not_understood_is_asked_again(say):
    asked = say("s", "four", "same")
    assert ask("speed", "same", "slower").value == "same"
    assert asked[1] == "'s' found, expected same, slower. Your guess? "
    assert asked[2] == "'four' found, expected same, slower. Your guess? "


def test_after_off_nobody_is_asked(say, capsys):
    asked = say("off")
    ask("messages", 1, 2)
    assert ask("ranks", 1, 2).value is None
    assert len(asked) == 1
    assert "Your guess: ranks? (1, 2)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("choices", "typed", "was", "close", "told"),
    [
        ((1, 3), "3", 3, 0, "messages: you: 3, it was 3 ✓"),
        ((1, 3), "1", 3.0, 0, "messages: you: 1, it was 3"),
        ((1, 3), "", 3, 0, "messages: it was 3"),
        (("yes", "no"), "no", "no", 0, "messages: you: no, it was no ✓"),
        ((), "90", 100, 0.2, "messages: you: 90, it was 100 ✓"),
        ((), "70", 100.25, 0.2, "messages: you: 70, it was 100.25"),
    ],
)
def test_guess_and_result_stand_side_by_side(say, capsys, choices, typed, was, close, told):
    say(typed)
    ask("messages", *choices).was(was, close=close)
    assert capsys.readouterr().out.strip() == told


def test_guesses_count_into_progress(say, capsys, file):
    say("3", "1", "")
    ask("messages", 1, 3).was(3)
    ask("ranks", 1, 3).was(3)
    ask("skipped", 1, 3).was(3)
    progress()
    assert "guesses: 1 of 2 came true" in capsys.readouterr().out
    kept = json.loads(file.read_text())["guesses"]
    assert kept["messages"]["right"] is True
    assert (kept["ranks"]["guess"], kept["ranks"]["was"]) == (1, 3)


@pytest.mark.parametrize("problem", [EOFError, OSError("stdin is captured"), NotImplementedError])
def test_where_nobody_can_answer_nobody_is_asked(monkeypatch, problem, capsys):
    def refuse(_):
        raise problem

    monkeypatch.setattr(builtins, "input", refuse)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    assert ask("messages", 1, 3).value is None
    assert "Your guess: messages? (1, 3)" in capsys.readouterr().out


def test_one_choice_is_none():
    with pytest.raises(ValueError, match=r"ask\('messages', 3\): one choice found, expected 2"):
        ask("messages", 3)


CODE = 'from ddp_helpers.exercises import ask\nask("messages", 1, 3).was(3)\n'


def test_a_pipe_is_not_asked_and_does_not_wait():
    done = subprocess.run(
        [sys.executable, "-c", CODE], input="", capture_output=True, text=True, timeout=60
    )
    assert done.stdout.splitlines() == ["Your guess: messages? (1, 3)", "messages: it was 3"]


def test_a_terminal_is_asked():
    leader, follower = pty.openpty()
    run = subprocess.Popen(
        [sys.executable, "-c", CODE], stdin=follower, stdout=subprocess.PIPE, text=True
    )
    os.write(leader, b"3\n")
    assert "messages: you: 3, it was 3" in run.communicate(timeout=60)[0]
    os.close(leader)
    os.close(follower)


def test_a_page_gets_the_question_as_html(monkeypatch):
    monkeypatch.setenv(OFF, "0")
    guess = ask("who <is> it", "a&b", "c")
    from ddp_helpers.exercises.guesses import _Question, _Verdict

    html = _Question(guess)._repr_html_()
    assert html.splitlines()[0] == "Your guess: who &lt;is&gt; it?"  # what a folded output shows
    assert 'value="a&amp;b"' in html
    assert html.count('type="radio"') == 2
    verdict = _Verdict(guess, "c", 0.0, False)._repr_html_()
    assert f'data-key="{guess.key}"' in html
    assert f'data-key="{guess.key}"' in verdict
    assert 'data-was="c"' in verdict
