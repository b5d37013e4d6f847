"""The exercises: what to do and the code to start from. Hints and solutions stay in the course."""

from __future__ import annotations

import json
import re
from itertools import groupby
from pathlib import Path

from ddp_helpers.exercises import names
from ddp_helpers.exercises.core import imports_of, load, source_of

HEAD = """# Exercises

From notebook 01 on, exercises wait in cells beside their ideas, and check themselves on real ranks.
Anywhere else:

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
    parts = [HEAD]
    for notebook, numbers in groupby(names(), key=lambda number: number.partition(".")[0]):
        path = next((root / "notebooks").glob(f"{notebook}_*.ipynb"))
        link = f"[notebook {notebook}](notebooks/{path.name})"
        parts.append(f"## {title_of(path)}\n\nThey belong to {link}.\n")
        parts += [_exercise(number) for number in numbers]
    (pages / "exercises.md").write_text("\n".join(parts), encoding="utf-8")


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
    return (
        f"### {number} {plain(exercise.title)}\n\nAbout {exercise.minutes} minutes. "
        f"{plain(exercise.task)}\n\n"
        f'```python\n{code}\n\n\ncheck("{number}", {exercise.name})\n```\n'
    )
