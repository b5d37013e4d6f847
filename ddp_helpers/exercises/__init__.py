"""Exercises that check themselves, on real ranks.

    from ddp_helpers.exercises import check, hint, progress, solution, task
    task("01.3")                       # what to do, and the code to start from
    check("01.3", my_ring_all_reduce)  # runs it on real ranks, and says what is wrong
    hint("01.3")                       # each call tells a little more
    solution("01.3")
    progress()                         # what is done, as a figure
    exercise("01.3", my_all_reduce)    # in a cell to fill in: the task; once it is changed, a check
    guess = ask("messages", 1, 3, 8)   # before a cell's result: is it what you expect?
    guess.was(3)

A file holds an `EXERCISE` record, `starter`, `solution`, `check`, known wrong answers (`WRONG`)
and often other right ones (`ALSO_RIGHT`). The other files are the machinery.
"""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddp_helpers.exercises import progress_file
from ddp_helpers.exercises.core import (
    NotYet,
    check_signature,
    files,
    imports_of,
    is_starter,
    load,
    short_title,
    solution_of,
    source_of,
)
from ddp_helpers.exercises.guesses import Guess, ask
from ddp_helpers.words import filled, joined, shown

if TYPE_CHECKING:
    from types import ModuleType

    from matplotlib.figure import Figure

__all__ = [
    "Checked",
    "Guess",
    "ask",
    "check",
    "exercise",
    "hint",
    "names",
    "progress",
    "solution",
    "task",
]
WIDTH = 88  # characters of a line of text
LIMIT = 20.0  # seconds of one run on ranks; a right answer takes about one


@dataclass(frozen=True, repr=False)
class Checked:
    """What became of a check; the text, English here, has been printed already."""

    number: str
    passed: bool
    message: str

    def __bool__(self) -> bool:
        return self.passed

    def __repr__(self) -> str:
        return f"<{self.number}: {'passed' if self.passed else 'not yet'}>"

    def _ipython_display_(self) -> None:
        """As the last line of a cell it shows nothing more."""


def names(notebook: str | None = None) -> list[str]:
    """The ids of all exercises, or those of one notebook: names("01")."""
    return [number for number in files() if notebook in (None, number.partition(".")[0])]


def task(number: str) -> None:
    """Print what to do, and the code to start from.

    Raises:
        ValueError: there is no such exercise.
    """
    module = load(number)
    code = source_of(module, "starter")
    call = f'check("{number}", {module.EXERCISE.name})'
    imports = imports_of(module)
    _print_task(number, module)
    print(f"\n{shown('Start from:')}\n")
    print(f"{imports}\n\n\n{code}" if imports else code)
    print(f"\n{call}")


def exercise(number: str, answer: Callable) -> Checked | None:
    """The end of a cell to fill in: says what to do; once the function is changed, checks it.

    Nothing runs and nothing is noted before, so whoever reads on can run the cell as it is.

    Raises:
        ValueError: there is no such exercise.
    """
    module = load(number)
    if not is_starter(answer, module):
        return check(number, answer)
    _print_task(number, module)
    name = module.EXERCISE.name
    told = f"Change {name} and run the cell again, or come back later. For a hint, in a new cell:"
    print(f"\n{shown(told)}")
    print(f'from ddp_helpers.exercises import hint; hint("{number}")')
    return None


def _print_task(number: str, module: ModuleType) -> None:
    told = module.EXERCISE
    print(shown(f"{number} {told.title} (about {told.minutes} minutes)"), end="\n\n")
    print(_wrapped(told.task))


def _wrapped(text: str) -> str:
    told = shown(text)
    if told != text:
        return filled(told, WIDTH)
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def check(number: str, answer: Callable, seconds: float = LIMIT) -> Checked:
    """Run an answer on real ranks, print what is wrong or that it is right, and note it.

    In a notebook, the exchanges of an answer that isn't right yet are drawn, beside those of one
    that is.

    Never raises for what the answer does: one that hangs is ended after `seconds`, one that
    crashes takes only its own ranks along.

    Args:
        number: the exercise, such as "01.3".
        answer: your function.
        seconds: limit of one run; a check makes a few.

    Raises:
        ValueError: there is no such exercise.
    """
    from ddp_helpers.exercises.lanes import show_both
    from ddp_helpers.exercises.on_ranks import Ranks

    module = load(number)
    ranks = Ranks(answer, seconds, module.EXERCISE.name)
    try:
        check_signature(answer, module)
        said = module.check(ranks)
    except NotYet as reason:
        done = Checked(number, False, f"{number} not yet: {reason}")
        told = shown(f"{number} not yet: {reason.text}") + _heading_shown(reason.printed)
    except Exception as reason:  # the check has stumbled over what came back
        what = f"the check can't read what {module.EXERCISE.name} returned"
        done = Checked(
            number, False, f"{number} not yet: {what} ({type(reason).__name__}: {reason})"
        )
        told = shown(done.message)
    else:
        where = ", ".join(map(str, sorted(set(ranks.tried))))
        parts = [f"{number} passed, on real processes ({where} ranks)."]
        parts += filter(None, (said, module.EXERCISE.lesson))
        done = Checked(number, True, " ".join(parts))
        told = joined(*parts)
    print(told)
    _note(done)
    progress_file.keep_answer(number, answer, done.passed, done.message)
    if not done.passed:
        show_both(ranks, module)
    return done


def _heading_shown(printed: str) -> str:
    """What the answer printed stays as it is; the line above it is ours."""
    start, _, rest = printed.lstrip("\n").partition("\n")
    return f"\n{shown(start)}\n{rest}" if start else ""


def _note(done: Checked) -> None:
    now = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    changes: dict[str, object] = {"tries": 1, "last_at": now}
    if done.passed and done.number not in progress_file.passed(progress_file.current()):
        changes["passed_at"] = now
    progress_file.note(done.number, **changes)


def hint(number: str, which: int | None = None) -> None:
    """Print the next hint, or hint `which`, counted from 1.

    Raises:
        ValueError: there is no such exercise, or no such hint.
    """
    hints = load(number).EXERCISE.hints
    if which is None:
        record = progress_file.current()["exercises"].get(number, {})
        which = min(record.get("hints", 0) + 1, len(hints))
        if record.get("hints", 0) < len(hints):
            progress_file.note(number, hints=1)
    if not 1 <= which <= len(hints):
        raise ValueError(f"hint {which} of {number}: expected 1 to {len(hints)}")
    print(shown(f"{number}, hint {which} of {len(hints)}: {hints[which - 1]}"))


def solution(number: str) -> None:
    """Print a right answer; there are others.

    Raises:
        ValueError: there is no such exercise.
    """
    module = load(number)
    progress_file.note(number, saw_solution=True)
    print(f"{solution_of(module)}\n\n\n# {shown(module.EXERCISE.lesson)}")


def progress() -> Figure:
    """Print what is done, and return a figure of it. The file: `~/.ddp_helpers/progress.json`."""
    from ddp_helpers.exercises.figure import plot_progress

    state = progress_file.current()
    done, known = set(progress_file.passed(state)), names()
    for notebook in dict.fromkeys(number.partition(".")[0] for number in known):
        here = names(notebook)
        left = [f"{n} {short_title(n)}" for n in here if n not in done]
        line = f"notebook {notebook}: {len(here) - len(left)} of {len(here)} done"
        print(shown(f"{line}; next: {left[0]}" if left else line))
    if guesses := state.get("guesses", {}):
        right = sum(bool(each.get("right")) for each in guesses.values())
        print(shown(f"guesses: {right} of {len(guesses)} came true"))
    print(shown(f"kept in {progress_file.path()}"))
    return plot_progress(known, state)
