"""A page for each recipe: when to take it, how to get it, and what it changes in starter.py."""

from __future__ import annotations

from pathlib import Path

from ddp_helpers.recipes import Recipe, recipes
from ddp_helpers.templates import template_files

FENCE = "`" * 6


def write_recipes(pages: Path) -> None:
    """Write recipes/index.md and a page for each recipe."""
    folder = pages / "recipes"
    folder.mkdir(parents=True, exist_ok=True)
    starter = template_files()["starter"].read_text(encoding="utf-8")
    for recipe in recipes().values():
        (folder / f"{recipe.name}.md").write_text(_page(recipe, starter), encoding="utf-8")
    rows = [f"| [{each.name}]({each.name}.md) | {each.title} |" for each in recipes().values()]
    table = "\n".join(["| recipe | what it is |", "| --- | --- |", *rows])
    contents = "\n".join(recipes())
    (folder / "index.md").write_text(
        "# Recipes\n\nWhat people add to [starter.py](../templates/starter.md), each a small "
        "difference. The tests of the course run every one of them.\n\n"
        f"{table}\n\n```{{toctree}}\n:hidden:\n:titlesonly:\n\n{contents}\n```\n",
        encoding="utf-8",
    )


def _page(recipe: Recipe, starter: str) -> str:
    command = f"python -m ddp_helpers new train.py --recipe {recipe.name}"
    return "\n".join(
        [
            f"# {recipe.title}\n",
            f"{recipe.text}\n",
            f"## Get it\n\n{FENCE}bash\n{command}\n{FENCE}\n",
            "Or put it into your own copy of starter.py by hand:\n",
            f"{FENCE}{{code-block}} diff\n:class: changes\n",
            f"{recipe.difference(starter)}\n{FENCE}\n",
        ]
    )
