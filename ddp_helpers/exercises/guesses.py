"""A question before a cell runs: the guess is kept, and stands beside what came out.

    guess = ask("different processes", 1, 2, 3)
    ...
    guess.was(len({os.getpid(), *result.values}))

Somebody at a keyboard is asked in the cell, before the rest of it runs. Where nobody can answer,
as when a notebook is executed by a program, the question stays as HTML that a page can ask anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import math
import os
import sys
import time
from dataclasses import dataclass, field

from ddp_helpers.exercises import progress_file
from ddp_helpers.words import shown

OFF = "DDP_HELPERS_ASK"  # "0": no questions
Value = str | float


@dataclass
class Guess:
    """What was asked, and what was answered."""

    about: str
    choices: tuple[Value, ...]
    value: Value | None = None
    """None: nobody was there, or they went on without a guess."""
    key: str = field(init=False)
    """The same for the same question: a page in a browser finds the guess by it."""

    def __post_init__(self) -> None:
        text = "|".join(map(str, (self.about, *self.choices)))
        self.key = hashlib.sha256(text.encode()).hexdigest()[:12]

    def was(self, value: Value, close: float = 0.0) -> None:
        """Show what came out beside the guess, and keep both in the progress file.

        Args:
            value: what came out; of a choice, one of them.
            close: how far from a number a right guess may be, as a part of it: 0.1 is 10 percent.
        """
        right = self.value is not None and _alike(self.value, value, close)
        if self.value is not None:
            progress_file.note_guess(
                self.about, guess=self.value, was=value, right=right, at=time.strftime("%FT%T%z")
            )
        _show(_Verdict(self, value, close, right))


def ask(about: str, *choices: Value) -> Guess:
    """Ask for a guess about what the rest of the cell shows.

    Args:
        about: what is asked for, in a few words: "different processes".
        choices: what may be answered; without any, a number.

    Raises:
        ValueError: a single choice.
    """
    if len(choices) == 1:
        raise ValueError(f"ask({about!r}, {choices[0]!r}): one choice found, expected 2, or none")
    guess = Guess(about, choices)
    if os.environ.get(OFF) != "0":
        try:
            guess.value = _from_the_keyboard(guess)
            return guess
        except (EOFError, OSError, NotImplementedError):  # nobody is there: nbclient, a pipe
            pass
        except Exception as error:  # ipykernel's own kind of NotImplementedError
            if type(error).__name__ != "StdinNotImplementedError":
                raise
    _show(_Question(guess))
    return guess


def _from_the_keyboard(guess: Guess) -> Value | None:
    if "ipykernel" not in sys.modules and not sys.stdin.isatty():
        raise EOFError
    expected = _expected(guess)
    about = shown(guess.about)
    question = f"Your guess: {about}? ({expected}; Enter: skip, off: no more questions)"
    said = input(f"{shown(question)} ")
    while said.strip():
        if said.strip() == "off":
            os.environ[OFF] = "0"
            return None
        with contextlib.suppress(ValueError):
            return _understood(said.strip(), guess.choices)
        again = shown(f"{said.strip()!r} found, expected {expected}. Your guess?")
        said = input(f"{again} ")
    return None


def _expected(guess: Guess) -> str:
    return ", ".join(shown(str(each)) for each in guess.choices) or shown("a number")


def _understood(said: str, choices: tuple[Value, ...]) -> Value:
    if not choices:
        return float(said.replace(",", ""))
    for choice in choices:
        if said.lower() in (str(choice).lower(), shown(str(choice)).lower()):
            return choice
    begun = [
        each
        for each in choices
        if any(text.lower().startswith(said.lower()) for text in (str(each), shown(str(each))))
    ]
    if len(begun) != 1:
        raise ValueError(said)
    return begun[0]


def _alike(guess: Value, value: Value, close: float) -> bool:
    if isinstance(guess, str) or isinstance(value, str):
        return str(guess) == str(value)
    return math.isclose(guess, value, rel_tol=close, abs_tol=1e-9)


def _text(value: Value) -> str:
    return f"{value:,.6g}" if isinstance(value, float) else f"{value}"


def _show(what: object) -> None:
    if "IPython" in sys.modules:
        from IPython.display import display

        display(what)
    else:
        print(what)


@dataclass(frozen=True)
class _Question:
    guess: Guess

    def __repr__(self) -> str:
        return shown(f"Your guess: {shown(self.guess.about)}? ({_expected(self.guess)})")

    def _repr_html_(self) -> str:
        guess, name = self.guess, f"ask-{self.guess.key}"
        fields = [
            f'<label><input type="radio" name="{name}" value="{html.escape(str(each))}"> '
            f"{html.escape(shown(str(each)))}</label>"
            for each in guess.choices
        ] or [
            f"<label>{shown('a number')} "
            f'<input type="text" inputmode="decimal" name="{name}"></label>'
        ]
        question = shown(f"Your guess: {shown(guess.about)}?")
        # where the output is folded, JupyterLab shows the first line of it, as it stands here
        return (
            f"{html.escape(question, quote=False)}\n"
            f'<fieldset class="ddp-ask" data-key="{guess.key}">{" ".join(fields)}</fieldset>'
        )


@dataclass(frozen=True)
class _Verdict:
    guess: Guess
    value: Value
    close: float
    right: bool

    def __repr__(self) -> str:
        about, value = shown(self.guess.about), shown(_text(self.value))
        told = f"{about}: it was {value}"
        if self.guess.value is not None:
            told = f"{about}: you: {shown(_text(self.guess.value))}, it was {value}"
        return shown(told) + (" ✓" if self.right else "")

    def _repr_html_(self) -> str:
        return (
            f'<div class="ddp-was" data-key="{self.guess.key}" data-close="{self.close:g}" '
            f'data-was="{html.escape(str(self.value))}">{html.escape(repr(self))}</div>'
        )
