"""The published silent errors: what finds each of them here, and the lines that make it."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

from exercise_page import plain

from ddp_helpers.sanitizer.kinds import KINDS

TITLE = "# Silent errors that others published\n"
HEAD = """
A silent error ends nothing and prints nothing: the training goes on, and something is wrong. The
authors of [TrainCheck](https://github.com/OrderLab/TrainCheck) collected twenty of them from real
projects, and found six more with their tool. The paper is by Jiang et al., *Training with
Confidence: Catching Silent Errors in Deep Learning Training with Automated Proactive Checks*,
OSDI 2025.

We wrote the cause of each in a few lines, on two CPU ranks, and tried both tools of this course:

- `python -m ddp_helpers sanitize COMMAND` compares the ranks with each other while they train.
- `python -m ddp_helpers verify script.py -n 2` compares n ranks with one process.

A test of the course runs all of them, so this table holds. Read the misses, too: both tools compare
ranks. What every rank does alike, and one process does as well, is often invisible to them.
"""


def write_published(root: Path, pages: Path) -> None:
    """Write published_errors.md from the table and the functions of the tests."""
    folder = root / "tests" / "distributed" / "published_errors"
    table = tomllib.loads((folder / "table.toml").read_text(encoding="utf-8"))
    sources = _functions(folder)
    rows = ["| error | sanitizer | verify |", "| --- | --- | --- |"]
    parts = []
    for name, row in table.items():
        rows.append(f"| [{plain(row['title'])}](#{_anchor(name)}) | {' | '.join(_found(row))} |")
        parts.append(_part(name, row, sources.get(name, "")))
    caught = sum(any(cell != "-" for cell in _found(row)) for row in table.values())
    summary = f"\nFound by at least one of the two: **{caught} of {len(table)}**.\n"
    text = "\n".join([TITLE, HEAD, summary, *rows, "", _common(folder), *parts])
    (pages / "published_errors.md").write_text(text, encoding="utf-8")


def _found(row: dict) -> tuple[str, str]:
    """What each tool says, `-` for nothing that names the error."""
    verify = "" if row.get("miss") else row.get("verify", "")
    sanitizer = row.get("sanitizer", "")
    return f"`{sanitizer}`" if sanitizer in KINDS else "-", verify or "-"


def _part(name: str, row: dict, source: str) -> str:
    lines = [f"({_anchor(name)})=\n## {plain(row['title'])}\n"]
    lines.append(f"[The report]({row['link']}). {plain(row['cause'])}\n")
    if why := row.get("why"):
        lines.append(f"{plain(why)}\n")
    if source:
        lines.append(f"``````python\n{source}\n``````\n")
    return "\n".join(lines)


def _common(folder: Path) -> str:
    source = (folder / "plain.py").read_text(encoding="utf-8").rstrip()
    return (
        "## What they are put into\n\nA plain training, right as it is. Each error below is the "
        f"difference to it.\n\n``````python\n{source}\n``````\n"
    )


def _functions(folder: Path) -> dict[str, str]:
    """The source of each function of the folder's files, by its name."""
    found = {}
    for file in folder.glob("*.py"):
        text = file.read_text(encoding="utf-8")
        for node in ast.parse(text).body:
            if isinstance(node, ast.FunctionDef):
                found[node.name] = ast.get_source_segment(text, node) or ""
    return found


def _anchor(name: str) -> str:
    return name.replace("_", "-")
