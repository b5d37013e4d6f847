"""What an exercise is, how one is found, and how a check says that an answer is not right yet."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).parent


class NotYet(Exception):
    """An answer is not right yet; the text says what is wrong, and not how to do it."""

    def __init__(self, text: str = "", printed: str = "") -> None:
        super().__init__(text, printed)
        self.text, self.printed = text, printed

    def __str__(self) -> str:
        return f"{self.text}{self.printed}"


@dataclass(frozen=True)
class Exercise:
    """What a learner reads. The file's `starter`, `solution` and `check` are found by name."""

    title: str
    name: str
    """What the learner's function is called."""
    task: str
    hints: tuple[str, ...]
    """From a nudge to nearly the answer."""
    lesson: str
    """One sentence for the one who has passed: what it was good for."""
    minutes: int = 10
    """An estimate, not a measurement."""


@dataclass(frozen=True)
class Wrong:
    """A known wrong answer, and a piece of what the check must say about it."""

    answer: Callable | str | dict
    says: str


def files() -> dict[str, Path]:
    """The exercises' files by id, in order: `e01_3_ring_all_reduce.py` is 01.3."""
    found = {}
    for path in FOLDER.glob("e*.py"):
        match = re.fullmatch(r"e(\d\d)_(\d+)_(\w+)", path.stem)
        if match:
            found[f"{match[1]}.{match[2]}"] = path
    return {name: found[name] for name in sorted(found, key=_order)}


def short_title(number: str) -> str:
    """A title without loading the file: `ring all reduce`."""
    return files()[number].stem.split("_", 2)[2].replace("_", " ")


def load(number: str) -> ModuleType:
    """The module of an exercise.

    Raises:
        ValueError: there is no such exercise.
    """
    known = files()
    if f"0{number}" in known:
        raise ValueError(f"no exercise {number!r}: did you mean '0{number}'?")
    if number not in known:
        raise ValueError(f"no exercise {number!r}: expected one of {', '.join(known)}")
    return importlib.import_module(f"ddp_helpers.exercises.{known[number].stem}")


def source_of(module: ModuleType, function: str) -> str:
    """The text of `starter` or `solution`, under the name that the learner uses."""
    text = inspect.getsource(getattr(module, function))
    return re.sub(rf"\bdef {function}\(", f"def {module.EXERCISE.name}(", text, count=1)


def imports_of(module: ModuleType) -> str:
    """The import lines that starter and solution need, for a cell of the learner's own."""
    code = inspect.getsource(module.starter) + inspect.getsource(module.solution)
    lines = []
    for node in ast.parse(inspect.getsource(module)).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ddp_helpers."):
            continue  # the machinery
        if isinstance(node, ast.Import | ast.ImportFrom):
            called = [alias.asname or alias.name for alias in node.names]
            if any(re.search(rf"\b{name}\b", code) for name in called):
                lines.append(ast.unparse(node))
    return "\n".join(lines)


def solution_of(module: ModuleType) -> str:
    """A right answer as a cell of its own: with its imports, and under the learner's name."""
    code = source_of(module, "solution").rstrip()
    imports = imports_of(module)
    return f"{imports}\n\n\n{code}" if imports else code


def is_starter(answer: object, module: ModuleType) -> bool:
    """Whether a function still says what its exercise begins with; comments do not count."""
    try:
        told = _what_it_does(inspect.getsource(answer))  # type: ignore[arg-type]  # or TypeError
    except (OSError, TypeError, SyntaxError):
        return False
    return told == _what_it_does(inspect.getsource(module.starter))


def _what_it_does(source: str) -> str:
    """Arguments and body, whatever the function is called."""
    (function,) = ast.parse(textwrap.dedent(source)).body
    assert isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
    return "\n".join(ast.dump(part) for part in (function.args, *function.body))


def check_signature(answer: object, module: ModuleType) -> None:
    """Raise NotYet unless the answer can be called as the starter can."""
    name, starter = module.EXERCISE.name, inspect.signature(module.starter)
    wanted = f"{name}{starter}"
    if not callable(answer):
        raise NotYet(
            f"you passed {type(answer).__name__} {str(answer)[:60]!r}, expected your function "
            f"{wanted}: pass it without calling it"
        )
    if inspect.iscoroutinefunction(answer) or inspect.isasyncgenfunction(answer):
        raise NotYet(
            "your function is an async def: a call of it runs nothing, and only gives a coroutine. "
            "Write def; what torch does meanwhile, it does with async_op=True"
        )
    try:
        inspect.signature(answer).bind(*starter.parameters)
    except TypeError as error:
        raise NotYet(f"your function can't be called as {wanted}: {error}") from None
    except ValueError:
        pass  # a builtin, which does not tell


def _order(number: str) -> tuple[int, int]:
    notebook, place = number.split(".")
    return int(notebook), int(place)
