"""Run the cells of a notebook as learners do: twice in a row, and from the last to the first.

    python tests/notebooks/replay.py                 # all of notebooks/; some minutes each
    python tests/notebooks/replay.py notebooks/03*   # some

What a cell says another time must be what it said the first time. Numbers may change, which are
often measured, and so may the order of the ranks' lines; a question's answer, an error, and words
may not. From the last to the first, a cell may also say what to run first.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import difflib
import os
import re
import symtable
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import build
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from ddp_helpers.evidence.claims import ARROW
from ddp_helpers.words import VARIABLE

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# the answer of a question, unless it is one that may be a little off
ANSWER = re.compile(r'class="ddp-was".*?data-close="0"')
NUMBER = re.compile(r"[-+]?\d[\d,.]*(e[-+]\d+)?(?![\w.-])|\b[0-9a-f]{16}\b")
MARKS = re.compile(r"[\u3000-\u303f\uff00-\uffef]")
CHINESE = re.compile("[\u4e00-\u9fff]")
EXACT = "\N{ZERO WIDTH SPACE}"  # in front of a line whose numbers count


@dataclass(frozen=True)
class Said:
    """What a cell showed."""

    error: str | None
    """The type of the exception that it ended with."""
    lines: tuple[str, ...]
    seconds: float
    meant_to_fail: bool = False
    is_measured: bool = False
    """Its answer follows from a time, or from how far its last run came: it may change."""

    @property
    def asks_for_another(self) -> bool:
        """Whether it failed with a word on what to run first, which is no lie."""
        return self.error is not None and "first run" in "".join(self.lines[-1:])

    @property
    def not_meant(self) -> str:
        """What is wrong with it by itself: it failed, or it should have; empty if nothing is."""
        if (self.error is not None) == self.meant_to_fail:
            return ""
        return "\n".join(self.lines) if self.error else "it should have failed"

    def to_compare(self) -> list[str]:
        """What must be the same another time, in a fixed order.

        Of a cell that fails, its exception: the report tells where ranks stood at that moment. Of
        one that claims what it measured (`evidence/claims.py`), or is tagged so, nothing but that
        it did not fail.
        """
        if (
            self.error is not None
            or self.is_measured
            or any(line.startswith(ARROW) for line in self.lines)
        ):
            return [str(self.error)]
        return sorted({_without_numbers(line) for line in self.lines})


def _without_numbers(line: str) -> str:
    return line if line.startswith(EXACT) else " ".join(NUMBER.sub("#", line).split())


class Player:
    """A notebook in a kernel of its own, whose cells run in any order."""

    def __init__(self, path: Path, folder: Path | None = None) -> None:
        self.notebook = nbformat.read(path, as_version=4)
        self._client = NotebookClient(
            self.notebook,
            timeout=build.SECONDS,
            kernel_name="python3",
            allow_errors=True,
            resources={"metadata": {"path": str(folder or path.parent)}},
        )

    @contextmanager
    def kernel(self) -> Iterator[None]:
        """The time in which cells can run."""
        quiet = {**os.environ, "PYDEVD_DISABLE_FILE_VALIDATION": "1"}  # else its debugger warns
        with self._client.setup_kernel(env=quiet):
            yield

    def speak(self, language: str) -> None:
        """From now on cells show the package's words in this language; "en" is English."""
        code = f"import os; os.environ['{VARIABLE}'] = '{language}'"
        self.notebook.cells.append(nbformat.v4.new_code_cell(code))
        place = len(self.notebook.cells) - 1
        self._client.execute_cell(self.notebook.cells[place], place, store_history=False)
        self.notebook.cells.pop()

    def play(self, index: int) -> Said:
        """Run a cell."""
        cell = self.notebook.cells[index]
        started = time.monotonic()
        self._client.execute_cell(cell, index)
        seconds = time.monotonic() - started
        errors = [output.ename for output in cell.outputs if output.output_type == "error"]
        text = "".join(_text(output) for output in cell.outputs)
        lines = (line.rstrip() for line in COLOUR.sub("", build.anonymous(text)).splitlines())
        tags = cell.metadata.get("tags", [])
        meant, measured = "raises-exception" in tags, "measured" in tags
        error = errors[0] if errors else None
        return Said(error, tuple(filter(None, lines)), seconds, meant, measured)


def _text(output: NotebookNode) -> str:
    if output.output_type == "error":
        return f"\n{output.evalue}\n"
    if output.output_type == "stream":
        return output.text
    text = output.data.get("text/plain", "")
    if "image/png" in output.data:  # what it shows is measured, and so is the text beside it
        text = ""
    elif ANSWER.search(output.data.get("text/html", "")):
        text = EXACT + text
    return f"\n{text}\n"


def sections(notebook: NotebookNode) -> list[list[int]]:
    """The code cells under each heading of the second level, as positions."""
    found: list[list[int]] = [[]]
    for index, cell in enumerate(notebook.cells):
        if _is_code(cell):
            found[-1].append(index)
        elif re.search(r"^## ", cell.source, re.MULTILINE):
            found.append([])
    return [section for section in found if section]


@dataclass(frozen=True)
class MadeTwice:
    """A name that a cell takes from others."""

    cell: int
    name: str
    makers: tuple[int, ...]
    """The cells that make it: more than one."""


def hidden_builtins(notebook: NotebookNode) -> list[tuple[int, str]]:
    """Where a cell gives a name of Python's own another meaning, for all cells that come after."""
    cells = ((i, _names(cell.source)[0]) for i, cell in enumerate(notebook.cells) if _is_code(cell))
    return [(index, name) for index, made in cells for name in sorted(made & set(dir(builtins)))]


def made_twice(notebook: NotebookNode) -> list[MadeTwice]:
    """Where a cell leans on which of several others ran last."""
    cells = {i: _names(cell.source) for i, cell in enumerate(notebook.cells) if _is_code(cell)}
    return [
        MadeTwice(index, name, makers)
        for index, (_, taken) in cells.items()
        for name in sorted(taken)
        if len(makers := tuple(i for i, (made, _) in cells.items() if name in made)) > 1
    ]


def _is_code(cell: NotebookNode) -> bool:
    return cell.cell_type == "code"


def _names(source: str) -> tuple[set[str], set[str]]:
    """What a cell makes, and what it takes from elsewhere: reads before it makes it."""
    made: set[str] = set()
    taken: set[str] = set()
    for statement in ast.parse(source).body:
        table = symtable.symtable(ast.unparse(statement), "cell", "exec")
        symbols = table.get_symbols()
        new = {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}
        read = {s.get_name() for s in symbols if s.is_referenced()} | _globals_within(table)
        is_assignment = isinstance(statement, ast.Assign | ast.AugAssign)  # reads, then makes
        taken |= (read if is_assignment else read - new) - made
        made |= new
    return made, taken


def _globals_within(table: symtable.SymbolTable) -> set[str]:
    """What the functions and comprehensions of a statement take from outside."""
    found: set[str] = set()
    for inner in table.get_children():
        found |= {s.get_name() for s in inner.get_symbols() if s.is_global()}
        found |= _globals_within(inner)
    return found


def difference(first: Said, again: Said) -> str:
    """What a cell said differently another time; empty if nothing."""
    lines = difflib.unified_diff(
        first.to_compare(), again.to_compare(), "first", "again", lineterm="", n=0
    )
    changed = "\n".join(lines)
    return changed and f"{changed}\n--- whole:\n" + "\n".join(again.lines)


def difference_of_editions(english: Said, chinese: Said) -> str:
    """Where a cell told something else in English than in Chinese; empty if only its words differ.

    A line is the same in both, or it has words of the package's: then the other edition has them as
    Chinese. Of a question's answer the numbers are the same.
    """
    one, other = english.to_compare(), chinese.to_compare()
    only_english = [line for line in one if line not in other]
    only_chinese = [line for line in other if line not in one]
    whole = " ".join(one)  # a line of code that stands within a sentence may be broken elsewhere
    lacking = [
        line
        for line in only_chinese
        if not CHINESE.search(line) and MARKS.sub("", line) not in whole
    ]
    answers = [
        [
            sorted(number[0] for number in NUMBER.finditer(line))
            for line in lines
            if line.startswith(EXACT)
        ]
        for lines in (only_english, only_chinese)
    ]
    if not lacking and answers[0] == answers[1] and bool(only_english) == bool(only_chinese):
        return ""
    return "\n".join([*(f"-{line}" for line in only_english), *(f"+{x}" for x in only_chinese)])


def play_in_both(player: Player, again_up_to: float) -> dict[int, tuple[Said, str]]:
    """Run all cells in Chinese, and in English each that took no more than so long.

    Returns:
        For each code cell, what it said in Chinese, and how the English one differed.
    """
    played = {}
    for index in (index for section in sections(player.notebook) for index in section):
        player.speak("zh_CN")
        first, differs = player.play(index), ""
        if first.seconds <= again_up_to:
            player.speak("en")
            differs = difference_of_editions(player.play(index), first)
        played[index] = first, differs
    return played


def play_all(player: Player, again_up_to: float = float("inf")) -> dict[int, tuple[Said, str]]:
    """Run all cells in order, and each a second time if the first took no more than so long.

    Returns:
        For each code cell, what it said first, and how the second time differed.
    """
    played = {}
    for index in (index for section in sections(player.notebook) for index in section):
        first = player.play(index)
        differs = ""
        if first.seconds <= again_up_to:
            differs = difference(first, player.play(index))
        played[index] = first, differs
    return played


def play_backwards(player: Player, played: dict[int, tuple[Said, str]]) -> dict[int, str]:
    """After all cells have run: the cells of each section from the last to the first."""
    differs = {}
    for index in (index for section in sections(player.notebook) for index in reversed(section)):
        again = player.play(index)
        differs[index] = "" if again.asks_for_another else difference(played[index][0], again)
    return differs


def main() -> int:
    """Command line; exit code 1 if a cell told something else another time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "paths", nargs="*", type=Path, default=sorted(build.NOTEBOOKS.glob("*.ipynb"))
    )
    found = 0
    for path in parser.parse_args().paths:
        player, started = Player(path), time.monotonic()
        with player.kernel():
            played = play_all(player)
            twice = {index: differs for index, (_, differs) in played.items()}
            backwards = play_backwards(player, played)
        failed = {index: first.not_meant for index, (first, _) in played.items()}
        ways = {"in order": failed, "twice in a row": twice, "backwards": backwards}
        for way, cells in ways.items():
            for index, differs in cells.items():
                if differs:
                    found += 1
                    print(f"{path.name}, cell {index}, {way}:\n{differs}\n")
        print(f"{path.name}: {time.monotonic() - started:.0f} s", flush=True)
    print(f"{found} times a cell failed, or told something else")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
