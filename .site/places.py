"""Which file of the course becomes which page, and links between files as links between pages."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import unquote

from editions import in_edition

NAMED = {"README.md": "index", "README.zh-CN.md": "zh_CN"}
FOLDERS = {
    "ddp_helpers/templates": "templates/index.md",
    "ddp_helpers/recipes": "recipes/index.md",
    "ddp_helpers/faults": "faults.md",
    "ddp_helpers/exercises": "exercises.md",
    "ddp_helpers/widgets": "explorables.md",
    "ddp_helpers": "api/index.rst",
    "notebooks": "index.md",
    "notebooks/zh_CN": "zh_CN.md",
}
PAGES = (".md", ".ipynb")
IMAGES = (".png", ".svg", ".jpg", ".gif")
LINK = re.compile(r'(\]\()([^)\s#]+)(#[^)\s]*)?((?:\s+"[^"]*")?\))')


def page_of(file: str) -> str:
    """The source of the page that shows a file; both are paths below their top folders.

    `file` is one of the course's own: README.md becomes index.md, a template gets a page below
    templates/, a fault its part of faults.md, any other text a page below files/ that shows it.
    """
    if file in NAMED:
        return f"{NAMED[file]}.md"
    if file in FOLDERS:
        return FOLDERS[file]
    path = Path(file)
    if path.suffix in PAGES:
        return file
    if path.parent == Path("ddp_helpers/faults"):
        return "faults.md"
    if path.parent == Path("ddp_helpers/templates"):
        return f"templates/{path.stem}.md"
    if path.parent == Path("ddp_helpers/recipes"):
        return f"recipes/{path.stem}.md"
    return f"files/{file}.md"


def slug(anchor: str) -> str:
    """JupyterLab's name of a heading, `#2-·-Where-it-goes`, as GitHub and the site have it."""
    return re.sub(r"[^\w#-]", "", unquote(anchor).lower())


class Links:
    """Rewrites the links of one course, and remembers the files that they lead to."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.files: set[str] = set()
        """Files that need a page, because a page links to them."""
        self.images: set[str] = set()

    def rewrite(self, text: str, file: str) -> str:
        """Markdown of `file`, with each link to another file turned into one to its page.

        A link that leads to no file stays as it is: an address, or a mistake that Sphinx reports.
        """
        here = os.path.dirname(page_of(file))

        def turn(match: re.Match[str]) -> str:
            before, target, anchor, after = match.groups()
            linked = os.path.normpath(os.path.join(os.path.dirname(file), target))
            if "://" in target or not (self.root / linked).exists() or linked.startswith(".."):
                return match[0]
            if linked.endswith(IMAGES):
                self.images.add(linked)
                return f"{before}{os.path.relpath(linked, here or '.')}{anchor or ''}{after}"
            page, anchor = in_edition(page_of(linked), file), slug(anchor or "")
            if page.endswith("faults.md") and linked.endswith(".py"):
                anchor = f"#{Path(linked).stem}"
            if page.startswith("files/") or Path(linked).suffix in PAGES:
                self.files.add(linked)
            return f"{before}{os.path.relpath(page, here or '.')}{anchor}{after}"

        return LINK.sub(turn, text)
