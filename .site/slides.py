"""Slides of each notebook, with its figures: `make slides`, or `python .site/slides.py`.

A heading begins a slide, each further text one below it (arrow down). Code comes at the next key,
and a figure or what a long cell printed after that, so that the room can predict first. Nothing is
run: the outputs are the committed ones.

The pages take reveal.js from the web. For a room without it: `npm pack reveal.js@4.6.1` at home,
unpack it beside the slides, and `make slides ARGS="--reveal package"`.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import nbformat
from nbconvert import SlidesExporter
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
LINES = 14  # of code and output that a slide has room for, below its text
REVEAL = "https://unpkg.com/reveal.js@4.6.1"
# what is long scrolls within its slide
STYLE = """<style>
.reveal .slides { text-align: left; font-size: 26px; } .reveal h1, .reveal h2 { font-size: 1.6em; }
.reveal .slides section { max-height: 98%; overflow-y: auto; }
.reveal pre { font-size: .62em; line-height: 1.35; box-shadow: none; }
.reveal table { font-size: .8em; }
.reveal .jp-InputPrompt, .reveal .jp-OutputPrompt { display: none; }
.reveal img { max-height: 80vh; width: auto; margin: 0; }
</style>"""
START = """<script src="{reveal}/dist/reveal.js"></script>
<script>Reveal.initialize({{hash: true, slideNumber: "c/t", width: 1180, height: 700, margin: 0.03,
center: false, transition: "none"}});</script>
"""


def main(arguments: list[str] | None = None) -> int:
    """Write a page for each notebook."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "notebooks",
        nargs="*",
        type=Path,
        help="files, or numbers such as 02; all, if none is given",
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "slides")
    parser.add_argument("--language", metavar="zh_CN", help="English, if not given")
    parser.add_argument("--reveal", default=REVEAL, help="where reveal.js lies, seen from a page")
    options = parser.parse_args(arguments)
    source = ROOT / "notebooks" / (options.language or "")
    there = sorted(source.glob("[0-9][0-9]_*.ipynb"))
    numbers = {path.name.partition("_")[0]: path for path in there}
    paths = [numbers.get(str(each).zfill(2), each) for each in options.notebooks] or there
    if not paths:
        print(f"error: no notebooks in {source}", file=sys.stderr)
        return 1
    for path in paths:
        if not path.is_file():
            known = ", ".join(numbers)
            print(f"error: no notebook {path}: expected a file, or one of {known}", file=sys.stderr)
            return 1
    options.out.mkdir(parents=True, exist_ok=True)
    for path in paths:
        target = options.out / f"{path.stem}.html"
        target.write_text(
            page(nbformat.read(path, as_version=4), path.stem, options.reveal), encoding="utf-8"
        )
        print(target)
    return 0


def page(notebook: NotebookNode, title: str, reveal: str = REVEAL) -> str:
    """The slides of a notebook as one page, figures and all."""
    notebook.cells = [part for cell in notebook.cells for part in parts(cell)]
    notebook.metadata["title"] = title.replace("_", " ")
    exporter = SlidesExporter(reveal_url_prefix=reveal)
    text, _ = exporter.from_notebook_node(notebook)
    # nbconvert's own start waits for libraries of the web that these slides don't need; without a
    # network a formula stays as it was written
    text = re.sub(r"<script[^>]* src=(?![^>]*mathjax).*?</script>", "", text)
    text = re.sub(r"<script[^>]*>\s*(?:require\(|import mermaid).*?</script>", "", text, flags=re.S)
    return text.replace("</head>", f"{STYLE}</head>", 1).replace(
        "</body>", f"{START.format(reveal=reveal)}</body>", 1
    )


def parts(cell: NotebookNode) -> list[NotebookNode]:
    """A cell as it stands among the slides: what it shows has one of its own, if it is large."""
    cell.metadata.pop("jupyter", None)  # outputs that JupyterLab folds are shown here
    if cell.cell_type != "code":
        return [_as("slide" if cell.source.startswith("#") else "subslide", cell)]
    if not cell.outputs or not _is_large(cell):
        return [_as("fragment", cell)]
    shown = nbformat.from_dict({**cell, "id": f"{cell.id}-shown"})
    shown["metadata"] = nbformat.from_dict({"transient": {"remove_source": True}})
    cell.outputs = []
    return [_as("fragment", cell), _as("subslide", shown)]


def _as(kind: str, cell: NotebookNode) -> NotebookNode:
    cell.metadata["slideshow"] = {"slide_type": kind}
    return cell


def _is_large(cell: NotebookNode) -> bool:
    pictures = any("image/png" in output.get("data", {}) for output in cell.outputs)
    lines = sum(str(output.get("text", "")).count("\n") for output in cell.outputs)
    return pictures or cell.source.count("\n") + lines > LINES


if __name__ == "__main__":
    sys.exit(main())
