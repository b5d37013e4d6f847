"""The exercises: what to do and the code to start from. Hints and solutions stay in the course."""

from __future__ import annotations

import json
import re
from itertools import groupby
from pathlib import Path

from editions import lessons, said, to_lesson, twin

from ddp_helpers.exercises import names
from ddp_helpers.exercises.core import imports_of, load, source_of
from ddp_helpers.words import shown

PAGE = "exercises.md"
HEAD = """
```python
from ddp_helpers.exercises import check, hint, solution, task

task("01.3")                          # what to do, and the code to start from
check("01.3", my_ring_all_reduce)     # says what is wrong, and not how to do it
hint("01.3")                          # each call tells a little more
solution("01.3")
```
"""


def write_exercises(root: Path, pages: Path) -> None:
    """Write exercises.md."""
    about = (
        "From notebook 01 on, exercises wait in cells beside their ideas, and check themselves on "
        "real ranks. Anywhere else:"
    )
    parts = [f"# {said('Exercises')}\n", twin(PAGE), said(about), HEAD]
    for notebook, numbers in groupby(names(), key=lambda number: number.partition(".")[0]):
        path = next(lessons(root).glob(f"{notebook}_*.ipynb"))
        link = f"[{said('notebook {number}', number=notebook)}]({to_lesson(path.name, PAGE)})"
        parts.append(f"## {title_of(path)}\n\n{said('They belong to {link}.', link=link)}\n")
        parts += [_exercise(number) for number in numbers]
    (pages / PAGE).write_text("\n".join(parts), encoding="utf-8")


def title_of(notebook: Path) -> str:
    """The first heading of a notebook."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    found = re.search(r"^# (.+)$", "".join(cells[0]["source"]), flags=re.M)
    return found[1] if found else notebook.stem


def plain(text: str) -> str:
    """Text for Markdown: only backticks keep their meaning."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(
        p if p.startswith("`") else re.sub(r"([\\*_<>\[\]#|$])", r"\\\1", p) for p in parts
    )


def _exercise(number: str) -> str:
    module = load(number)
    exercise = module.EXERCISE
    code = "\n\n\n".join(filter(None, (imports_of(module), source_of(module, "starter").rstrip())))
    about = said(
        "About {minutes} minutes. {task}",
        minutes=exercise.minutes,
        task=plain(shown(exercise.task)),
    )
    return (
        f"### {number} {plain(shown(exercise.title))}\n\n{about}\n\n"
        f'```python\n{code}\n\n\ncheck("{number}", {exercise.name})\n```\n'
    )
