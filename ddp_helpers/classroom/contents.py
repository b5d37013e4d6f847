"""What a learner's copy holds: notebooks without outputs, and all that their links lead to."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ddp_helpers.classroom.lessons import lessons
from ddp_helpers.data.folder import PACKAGE

KEEP = "keep-output"  # the tag of a cell whose output stays
# what a text says after a cell that not every machine can run: its output is there to be read
TO_READ = re.compile(r"look at the saved (figure|output)")
PAGE = re.compile(r"\]\((?:\.\./)*([\w-]+\.md)(?=[)#])")  # a link to a page beside the notebooks
OUTSIDE = re.compile(r"\]\((?:\.\./)+([^)#\s]+)")  # a link out of the folder of notebooks
# the line that leads to the other language, which is not handed out
OTHER_LANGUAGE = re.compile(r"\n\n\[(?:中文|English)\]\([^)]+\).*$", re.MULTILINE)
READ_ME = Path(__file__).with_name("copy_readme.md")  # in other languages copy_readme.zh_CN.md


@dataclass
class Contents:
    """What every learner gets."""

    notebooks: dict[str, bytes] = field(default_factory=dict)
    """By name; those that a reset brings back."""
    files: dict[str, bytes] = field(default_factory=dict)
    """By place in the copy: a README, the notebooks' pages, what is there to read in."""


def contents(source: str | Path | None, language: str | None) -> Contents:
    """Read it all.

    Args:
        source: the folder of notebooks; by default the one beside the package.
        language: zh_CN for the Chinese ones.

    Raises:
        FileNotFoundError: there are no notebooks.
        ValueError: there is no such language.
    """
    english = lessons(source)
    top = english[0].parent
    if language and not (top / language).is_dir():
        raise ValueError(f"language {language!r}: expected zh_CN, or none for English")
    folders = [top / language, top] if language else [top]
    theirs = READ_ME.with_suffix(f".{language}.md")
    made = Contents(files={"README.md": (theirs if theirs.exists() else READ_ME).read_bytes()})
    reader = _Reader(folders)
    for file in english:
        notebook = json.loads((folders[0] / file.name).read_text(encoding="utf-8"))
        stays = _stays(json.loads(file.read_text(encoding="utf-8")))
        for number, cell in enumerate(notebook["cells"]):
            if cell["cell_type"] == "markdown":
                text = OTHER_LANGUAGE.sub("", "".join(cell["source"]))
                cell["source"] = reader.read(text).splitlines(keepends=True)
            else:
                _clear(cell, cell.get("id", number) in stays)
        text = json.dumps(notebook, indent=1, ensure_ascii=False)
        made.notebooks[file.name] = (text + "\n").encode()
    made.files |= {f"notebooks/{name}": text.encode() for name, text in reader.pages().items()}
    for path in reader.outside:
        made.files |= _files_at(path, (top.parent, PACKAGE.parent))
    return made


class _Reader:
    """Makes the links of a text those of a copy, and notes what they lead to."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self.folders = [*folders]
        self.outside: set[str] = set()
        self._wanted: list[Path] = []

    def read(self, text: str) -> str:
        """The text with its links as they are in a copy."""
        text = re.sub(r"\]\((?:\.\./)+README[\w.-]*\.md", "](README", text)
        for name in PAGE.findall(text):
            if (page := self._page(name)) and page not in self._wanted:
                self._wanted.append(page)
        text = PAGE.sub(lambda link: f"]({link[1]}" if self._page(link[1]) else link[0], text)
        self.outside |= {path.rstrip("/") for path in OUTSIDE.findall(text)}
        text = OUTSIDE.sub(lambda link: f"](../{_place(link[1])}", text)
        return text.replace("](README", "](../README.md")

    def pages(self) -> dict[str, str]:
        """The pages that were linked to, and those that they link to."""
        read: dict[str, str] = {}
        for page in self._wanted:  # it grows meanwhile
            read[page.name] = self.read(OTHER_LANGUAGE.sub("", page.read_text(encoding="utf-8")))
        return read

    def _page(self, name: str) -> Path | None:
        return next((each / name for each in self.folders if (each / name).is_file()), None)


def _files_at(path: str, roots: Iterable[Path]) -> dict[str, bytes]:
    """A file or the files of a folder, wherever the first root has it."""
    for place in (root / path for root in roots):
        if place.is_file():
            return {_place(path): place.read_bytes()}
        if place.is_dir():
            files = (file for file in sorted(place.iterdir()) if file.is_file())
            kept = [file for file in files if file.name != "__init__.py"]
            return {_place(f"{path}/{file.name}"): file.read_bytes() for file in kept}
    return {}


def _place(path: str) -> str:
    """Where it stands in a copy; a folder called ddp_helpers would be found by `import`."""
    return "course/" + path.rstrip("/").removeprefix("ddp_helpers/")


def _stays(notebook: dict) -> set[object]:
    """The cells whose outputs stay: those with the tag, and those that the text tells to read.

    By id: a translated notebook has one cell more.
    """
    stays: set[object] = set()
    code: object = 0  # the last code cell so far
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            code = cell.get("id", number)
            if KEEP in cell["metadata"].get("tags", ()):
                stays.add(code)
        elif TO_READ.search("".join(cell["source"])):
            stays.add(code)
    return stays


def _clear(cell: dict, stays: bool) -> None:
    cell["execution_count"] = None
    if not stays:
        cell["outputs"] = []
        cell["metadata"].pop("jupyter", None)  # nothing is there to be folded
