"""Recipes: what people add to starter.py, each as a small difference that the tests run.

A recipe is a file of this folder: its docstring says when to take it and when not, and `CHANGES`
names pieces of starter.py with what stands there instead.
"""

from __future__ import annotations

import ast
import difflib
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Recipe:
    """One recipe: its text, and pairs of a piece of starter.py and what takes its place."""

    name: str
    title: str
    text: str
    changes: tuple[tuple[str, str], ...]

    def apply(self, source: str) -> str:
        """`source` with the recipe in it.

        Raises:
            ValueError: a piece that the recipe replaces is not there exactly once.
        """
        for old, new in self.changes:
            if source.count(old) != 1:
                raise ValueError(
                    f"recipe {self.name}: expected once in the file, found {source.count(old)} "
                    f"times: {old.strip().splitlines()[0]!r}. Put it in by hand: it shows the place"
                )
            source = source.replace(old, new)
        return source

    def difference(self, source: str) -> str:
        """What it changes in `source`, as a unified diff of the lines with three around them."""
        before, after = source.splitlines(), self.apply(source).splitlines()
        names = ("starter.py", f"with {self.name}")
        return "\n".join(difflib.unified_diff(before, after, *names, lineterm=""))


def recipes() -> dict[str, Recipe]:
    """All recipes by name."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return {file.stem: _read(file) for file in files if file.stem != "__init__"}


def _read(file: Path) -> Recipe:
    # read, not run: what CHANGES holds are texts
    tree = ast.parse(file.read_text(encoding="utf-8"))
    title, _, text = (ast.get_docstring(tree) or "").partition("\n")
    (changes,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CHANGES"
    )
    return Recipe(file.stem, title.rstrip("."), text.strip(), changes)
