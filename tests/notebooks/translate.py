"""Keep the Chinese course in step with the English one: its texts are in notebooks/zh_CN/*.po.

    python tests/notebooks/translate.py           # update the .po files, write what they give
    python tests/notebooks/translate.py --check   # write nothing; exit code 1 if anything lags

A .po file has one entry for each text of one document: a markdown cell of a notebook, or a block
of the README or of another page. msgid is the English text and msgstr the Chinese one. A new text
has an empty msgstr. A text that was changed keeps its old translation and the flag `fuzzy`: mend
msgstr, then delete the line `#, fuzzy`. Until then the reader gets the English text.

Code cells are copied, so they have one source. Before the first stands a cell that lets the
package speak Chinese. Their outputs are those of the Chinese notebook's own run, which
`python tests/notebooks/build.py --language zh_CN` writes; where the code has changed since, they
are the English ones until it runs again. Links are written as in the English text; here they are
led to the right place, and to the Chinese document if there is one. The line that leads from an
English lesson to its Chinese twin is no text: in the twin a line leads back, and to the glossary.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path

import nbformat
from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po, write_po
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[2]
LANGUAGE = "zh_CN"
README = "README.zh-CN.md"
PAGES = (Path("notebooks", "WHAT_NEXT.md"), Path("notebooks", "INSTRUCTOR.md"))
# of which `ddp_helpers explain --all` writes both
WRITTEN = Path("notebooks", "TROUBLESHOOTING.md")
FOLDER = Path("notebooks", LANGUAGE)  # from the repository's root, as all paths of a Document
HEADER = f"""\
# The Chinese texts of {{name}}; tests/notebooks/translate.py says how to change them.
msgid ""
msgstr ""
"Language: {LANGUAGE}\\n"
"MIME-Version: 1.0\\n"
"Content-Type: text/plain; charset=utf-8\\n"
"Content-Transfer-Encoding: 8bit\\n"

"""
TWIN = re.compile(r"\n\n\[中文\]\(zh_CN/[^)]+\)$")
BACK = "\n\n[English](../{name}) · [术语表](GLOSSARY.md)"
SPEAKS = """\
import os

os.environ["DDP_HELPERS_LANG"] = "zh_CN"  # 让 ddp_helpers 打印中文"""
START, CHINESE_START = re.compile(r"^make lab\b( {3})?", re.M), "make lab-zh"
NAMES = re.compile(r"(\[[\w ]+\]\(https://[^)\s]+\)( · )?)+")  # of places: no words to translate
ALIKE = 0.5  # two texts with this share of words in common are one text, changed
CODE_OR_LINK = re.compile(
    r"(?P<code>```.*?```|(?P<ticks>`+).+?(?P=ticks))"
    r"|(?P<before>\]\(|(?:src|href)=\")(?P<path>[^)\s#\"]+)(?P<after>#[^)\s\"]*)?",
    re.S,
)


@dataclass(frozen=True)
class Document:
    """A notebook or the README; paths from the repository's root."""

    english: Path
    chinese: Path
    po: Path


@dataclass(frozen=True)
class Lag:
    """A text without a translation that fits."""

    document: Document
    number: int
    text: str
    changed: bool

    def __str__(self) -> str:
        what = "cell" if self.document.english.suffix == ".ipynb" else "line"
        state = "changed" if self.changed else "not translated"
        return f"{self.document.english}, {what} {self.number}: {state}: {first_words(self.text)}"


def first_words(text: str, count: int = 8) -> str:
    """The beginning of a text, in one line."""
    words = text.split()
    return " ".join(words[:count]) + (" ..." if len(words) > count else "")


def documents(root: Path) -> list[Document]:
    """All notebooks, the pages beside them, and the README."""
    books = [path.relative_to(root) for path in sorted((root / "notebooks").glob("*.ipynb"))]
    pairs = [(book, FOLDER / book.name) for book in books]
    pairs += [(page, FOLDER / page.name) for page in PAGES if (root / page).exists()]
    pairs.append((Path("README.md"), Path(README)))
    return [Document(old, new, FOLDER / f"{old.stem}.po") for old, new in pairs]


def texts(root: Path, document: Document) -> list[tuple[int, str]]:
    """What there is to translate: number of the cell or line, and the English text."""
    whole = (root / document.english).read_text()
    if document.english.suffix == ".ipynb":
        cells = enumerate(nbformat.reads(whole, as_version=4).cells, start=1)
        prose = ((number, cell.source) for number, cell in cells if cell.cell_type == "markdown")
        return [(number, TWIN.sub("", source)) for number, source in prose]
    return [(line, text) for line, text, is_prose in blocks(whole) if is_prose]


def blocks(text: str) -> Iterator[tuple[int, str, bool]]:
    """Cut a text at empty lines and fences: first line's number, block, is it prose?

    Joined with "\\n", the blocks are the text again; empty lines and fenced code are no prose.
    """
    block, start, fenced = [], 1, False
    for number, line in enumerate(text.split("\n"), start=1):
        is_fence = line.startswith("```")
        if block and not fenced and (is_fence or not line.strip()):
            yield start, "\n".join(block), not NAMES.fullmatch("\n".join(block))
            block = []
        if not block:
            start = number
        if is_fence and fenced:
            yield start, "\n".join([*block, line]), False
            block = []
        elif is_fence or fenced or line.strip():
            block.append(line)
        else:
            yield number, line, False
        fenced ^= is_fence
    if block:
        yield start, "\n".join(block), not fenced


def updated(old: Catalog, document: Document, found: list[tuple[int, str]]) -> Catalog:
    """The entries that the English texts ask for, with what is already translated."""
    new = Catalog(locale=LANGUAGE)
    wanted = {text for _, text in found}
    gone = [entry for entry in old if entry.id and entry.string and entry.id not in wanted]
    for number, text in found:
        place = [(document.english.as_posix(), number)]
        entry = old.get(text)
        if entry is not None and entry.string:
            new.add(text, entry.string, place, entry.flags, user_comments=entry.user_comments)
        elif (likest := max(gone, key=lambda e: _likeness(e.id, text), default=None)) and (
            _likeness(likest.id, text) >= ALIKE
        ):
            new.add(text, likest.string, place, {"fuzzy"}, user_comments=likest.user_comments)
        else:
            new.add(text, "", place)
    return new


def _likeness(one: str, other: str) -> float:
    return SequenceMatcher(None, one.split(), other.split(), autojunk=False).ratio()


def read_catalog(path: Path) -> Catalog:
    """The entries of a .po file; none if there is no file yet."""
    if not path.exists():
        return Catalog(locale=LANGUAGE)
    with path.open("rb") as file:
        return read_po(file, locale=LANGUAGE, abort_invalid=True)


def written_catalog(catalog: Catalog, document: Document) -> str:
    """The text of a .po file: one line of the file for a line of the text, and no dates."""
    buffer = io.BytesIO()
    write_po(buffer, catalog, width=0, omit_header=True)
    body = buffer.getvalue().decode().strip("\n") + "\n"
    return HEADER.format(name=document.english.as_posix()) + body


def lags(catalog: Catalog, document: Document) -> list[Lag]:
    """The entries that have no translation, or one of another English text."""
    return [
        Lag(document, entry.locations[0][1], entry.id, entry.fuzzy)
        for entry in catalog
        if entry.id and (entry.fuzzy or not entry.string)
    ]


def translated(root: Path, document: Document, catalog: Catalog, every: list[Document]) -> str:
    """The Chinese document, English where a translation lags."""

    def in_chinese(text: str) -> str:
        entry = catalog.get(text)
        best = entry.string if entry and entry.string and not entry.fuzzy else text
        return with_links(best, document, every)

    whole = (root / document.english).read_text()
    if document.english.suffix == ".ipynb":
        earlier = root / document.chinese
        notebook = _translated_notebook(whole, in_chinese, document.english.name)
        if earlier.exists():
            keep_outputs(notebook, nbformat.read(earlier, as_version=4))
        return nbformat.writes(notebook) + "\n"
    parts = (
        in_chinese(text) if is_prose else in_chinese_lessons(text, every)
        for _, text, is_prose in blocks(whole)
    )
    return "\n".join(parts)


def in_chinese_lessons(code: str, every: list[Document]) -> str:
    """Commands of the README, which open the Chinese lessons instead."""
    for document in every:
        if document.english.suffix == ".ipynb":
            code = code.replace(document.english.as_posix(), document.chinese.as_posix())
    return START.sub(CHINESE_START, code)


def _translated_notebook(whole: str, in_chinese: Callable[[str], str], name: str) -> NotebookNode:
    notebook = nbformat.reads(whole, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            has_twin = TWIN.search(cell.source)
            cell.source = in_chinese(TWIN.sub("", cell.source))
            cell.source += BACK.format(name=name) if has_twin else ""
    first = next(at for at, cell in enumerate(notebook.cells) if cell.cell_type == "code")
    notebook.cells.insert(first, nbformat.v4.new_code_cell(SPEAKS, id="language"))
    return notebook


def keep_outputs(notebook: NotebookNode, earlier: NotebookNode) -> None:
    """Give cells what they showed in the notebook's own run, if their code is still that one.

    A notebook that was never run as a whole has only English outputs, so it keeps none of them.
    """
    if not was_run(earlier):
        return
    known: dict[str, list[NotebookNode]] = {}
    for cell in _code_cells(earlier):
        known.setdefault(cell.source, []).append(cell)
    for number, cell in enumerate(_code_cells(notebook), start=1):
        cell["execution_count"] = number
        if same := known.get(cell.source):
            cell["outputs"] = same.pop(0).outputs


def was_run(notebook: NotebookNode) -> bool:
    """Whether its outputs are its own: the cell that lets the package speak Chinese ran, too."""
    return next(_code_cells(notebook)).execution_count is not None


def _code_cells(notebook: NotebookNode) -> Iterator[NotebookNode]:
    return (cell for cell in notebook.cells if cell.cell_type == "code")


def with_links(text: str, document: Document, every: list[Document]) -> str:
    """The text with its relative links and images led there from the Chinese document's folder.

    A link to an English document goes to its Chinese one, and a link to that one back.
    """
    other = {d.english.as_posix(): d.chinese.as_posix() for d in every}
    other[WRITTEN.as_posix()] = (FOLDER / WRITTEN.name).as_posix()
    other |= {chinese: english for english, chinese in other.items()}

    def lead(match: re.Match) -> str:
        path = match["path"]
        if match["code"] or ":" in path:
            return match[0]
        target = os.path.normpath(document.english.parent / path)
        target = os.path.relpath(other.get(target, target), document.chinese.parent)
        return f"{match['before']}{Path(target).as_posix()}{match['after'] or ''}"

    return CODE_OR_LINK.sub(lead, text)


def everything(root: Path) -> tuple[dict[Path, str], list[Lag]]:
    """Each file that this command writes, with its text; and what lags."""
    files, behind = {}, []
    every = documents(root)
    for document in every:
        found = texts(root, document)
        catalog = updated(read_catalog(root / document.po), document, found)
        files[document.po] = written_catalog(catalog, document)
        files[document.chinese] = translated(root, document, catalog, every)
        behind += lags(catalog, document)
    return files, behind


def is_current(path: Path, text: str) -> bool:
    """True if the file is there, with this text."""
    return path.exists() and path.read_text() == text


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Command line; with --check the exit code is 1 if a text lags or a file is out of date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    files, behind = everything(root)
    stale = [path for path, text in files.items() if not is_current(root / path, text)]
    for path in stale:
        if options.check:
            print(f"{path}: out of date; run python tests/notebooks/translate.py")
        else:
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(files[path])
            print(f"{path}: written")
    for lag in behind:
        print(lag)
    print(f"{len(behind)} texts lag behind, {len(files)} files")
    return int(options.check and bool(behind or stale))


if __name__ == "__main__":
    sys.exit(main())
