"""The gallery of explorables: picture, what it shows, how to open it, and where it is used."""

from __future__ import annotations

import ast
import re
import shutil
from pathlib import Path

from exercise_page import title_of

from ddp_helpers import widgets

HEAD = """# See it move

Pictures that answer: move a control in JupyterLab, and the picture follows. Those with a button run
real ranks. Here you see them as they are at the start.
"""


def write_explorables(root: Path, pages: Path) -> None:
    """Write explorables.md, with the pictures and titles of the README.

    Raises:
        ValueError: README.md does not show one of them.
    """
    readme = (root / "README.md").read_text(encoding="utf-8")
    parts = [HEAD]
    for name in widgets.NAMES:
        found = re.search(rf"\*\*{name}\*\*: .*?!\[([^\]]+)\]\(([^)]+)\)", readme)
        if found is None:
            raise ValueError(
                f"README.md shows no picture of the explorable {name}, expected "
                f"**{name}**: TITLE<br>![TITLE](notebooks/images/{name}.png)"
            )
        title, image = found.groups()
        (pages / image).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / image, pages / image)
        source = Path(widgets.__file__).with_name(f"{name}.py")
        words = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
        parts.append(
            f"## {title}\n\n{words}\n\n![{title}]({image})\n\n"
            f'```python\nfrom ddp_helpers import widgets\n\nwidgets.explore("{name}")\n```\n\n'
            f"{_used_in(root, name)}"
        )
    (pages / "explorables.md").write_text("\n".join(parts), encoding="utf-8")


def _used_in(root: Path, name: str) -> str:
    call = rf'explore\(\\"{name}\\"'
    notebooks = sorted((root / "notebooks").glob("*.ipynb"))
    where = [path for path in notebooks if re.search(call, path.read_text(encoding="utf-8"))]
    links = ", ".join(f"[{title_of(path)}](notebooks/{path.name})" for path in where)
    return f"Used in: {links}\n" if links else ""
