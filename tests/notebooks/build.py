"""Execute notebooks and clean what they leave: the only writer of committed outputs.

    python tests/notebooks/build.py                  # all of notebooks/
    python tests/notebooks/build.py notebooks/01*    # some
    python tests/notebooks/build.py --clean-only notebooks/01*   # no execution
    python tests/notebooks/build.py --language zh_CN notebooks/01*   # its Chinese twin

A cell that is meant to fail carries the tag `raises-exception`.
"""

from __future__ import annotations

import argparse
import copy
import getpass
import os
import re
import socket
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = ROOT / "notebooks"
SECONDS = 120  # limit of one cell
KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
KEPT_CELL_METADATA = ("tags",)
ASKS = re.compile(r"^\s*\w+ = ask\(", re.MULTILINE)  # a cell whose output answers a question
FOLDED = "hide-output"  # for the site; JupyterLab has outputs_hidden
PICTURE = r";base64,[^\"]*"  # in HTML: letters, and no words
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def execute(notebook: NotebookNode, folder: Path, seconds: float = SECONDS) -> float:
    """Run all cells in a fresh kernel, from its folder as JupyterLab does; seconds it took."""
    client = NotebookClient(
        notebook,
        timeout=seconds,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )
    started = time.monotonic()
    client.execute()
    return time.monotonic() - started


def execute_translated(notebook: NotebookNode, folder: Path) -> float:
    """The same for one that translate.py writes: of it only the outputs are ours."""
    played = copy.deepcopy(notebook)
    took = execute(played, folder)
    for cell, ran in zip(notebook.cells, clean(played).cells, strict=True):
        if cell.cell_type == "code":
            cell["outputs"], cell["execution_count"] = ran.outputs, ran.execution_count
    return took


def clean(notebook: NotebookNode) -> NotebookNode:
    """Drop what changes for no reason, or tells about the machine: metadata, paths, names."""
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    )
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:02d}"
        kept = {k: v for k, v in cell.metadata.items() if k in KEPT_CELL_METADATA}
        if cell.cell_type == "code" and ASKS.search(cell.source):
            kept["tags"] = sorted({*kept.get("tags", ()), FOLDED})
        if FOLDED in kept.get("tags", ()):  # not to be read beforehand
            kept["jupyter"] = {"outputs_hidden": True}
        cell["metadata"] = nbformat.from_dict(kept)
        if cell.cell_type == "code":
            cell["outputs"] = [_clean_output(output) for output in _joined(cell.outputs)]
    return notebook


def _joined(outputs: list[NotebookNode]) -> list[NotebookNode]:
    """Neighbouring pieces of one stream as one output; how they were cut is chance."""
    joined: list[NotebookNode] = []
    for output in outputs:
        last = joined[-1] if joined else None
        same = last and output.output_type == last.output_type == "stream"
        if same and output.name == last.name:
            last["text"] += output.text
        else:
            joined.append(output)
    return joined


def _clean_output(output: NotebookNode) -> NotebookNode:
    if output.output_type == "stream":
        output["text"] = anonymous(output.text)
    elif output.output_type == "error":
        output["evalue"] = anonymous(output.evalue)
        output["traceback"] = [anonymous(line) for line in output.traceback]
    else:
        # a widget lives as long as its kernel; the picture beside it stays
        output.data.pop(WIDGET_VIEW, None)
        for kind, data in output.data.items():
            if kind.startswith("text/") and isinstance(data, str):
                output.data[kind] = anonymous(data)
    return output


def anonymous(text: str) -> str:
    """The text without this machine's paths, names and addresses."""
    rules = [
        (re.escape(f"{ROOT}/notebooks/") + "(?:zh_CN/)?", ""),
        (re.escape(f"{ROOT}/"), "../"),
        (re.escape(str(ROOT)), ".."),
        (r"/[\w./-]*/site-packages/", ".../site-packages/"),
        (r"/[\w./-]*/lib/python3\.\d+/", ".../python3/"),
        (r"/tmp/ipykernel_\d+/\d+\.py", "<cell>"),
        (r"/tmp/two-hosts-\w+/", "/tmp/two-hosts/"),
        (re.escape(str(Path.home())) + r"(?=[/\s'\"]|$)", "~"),
        (rf"\b{re.escape(socket.gethostname())}\b", "my-machine"),
        (r"0x[0-9a-f]{8,16}", "0x..."),
        (r"127\.0\.0\.1:\d{4,5}|localhost:(?!23456)\d{4,5}", "127.0.0.1:PORT"),
        (r"(?<=\[127\.0\.0\.1\]:)\d+", "PORT"),
        (r"(?<=MASTER_PORT': ')\d+|(?<=sport = :)\d+", "PORT"),
        (r"(?<=port: )(?!23456)\d{4,5}\b|(?<=port )(?!23456)\d{4,5}\b", "PORT"),
        (r"\bpid[ =]\d+", "pid PID"),
    ]
    user = getpass.getuser()
    if user not in ("root",):  # a word in its own right
        rules.append((rf"\b{re.escape(user)}\b", "learner"))
    for pattern, replacement in rules:  # in a picture such letters are no names
        text = re.sub(rf"({PICTURE})|{pattern}", lambda m: m[1] or replacement, text)  # noqa: B023
    return text


def main() -> int:
    """Command line; exit code 1 if a notebook failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="*", type=Path, default=sorted(NOTEBOOKS.glob("*.ipynb")))
    parser.add_argument("--clean-only", action="store_true")
    parser.add_argument("--language", metavar="zh_CN", help="the translated ones of that folder")
    options = parser.parse_args()
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    for path in options.paths:
        if options.language:
            path = NOTEBOOKS / options.language / path.name
        notebook = nbformat.read(path, as_version=4)
        if options.language:
            took = execute_translated(notebook, path.parent)
        else:
            took = 0.0 if options.clean_only else execute(notebook, path.parent)
            notebook = clean(notebook)
        nbformat.write(notebook, path)
        print(f"{path.name}: {len(notebook.cells)} cells, {took:.1f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
