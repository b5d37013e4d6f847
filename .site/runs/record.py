"""Record what the ranks of a lesson's cells did, and when: `make recordings`.

    python .site/runs/record.py                    # all lessons
    python .site/runs/record.py 05_when_it_breaks  # one

The notebook runs as it is, in a kernel of its own, and is not written.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "notebooks")]

from build import anonymous  # noqa: E402
from cells import FOLDER, fingerprint  # noqa: E402

from ddp_helpers.environment import usable_cpu_count  # noqa: E402

CELLS = {
    "01_process_groups": (
        *("join", "whole_life", "demo_broadcast", "demo_reduce", "demo_all_gather"),
        *("demo_scatter_gather", "demo_parts", "relay", "demo_barrier", "meanwhile", "teams"),
        *("one_stays_away", "one_fails"),
    ),
    "02_dataparallel_vs_ddp": ("gradients_by_hand", "wrap", "three_steps"),
    "03_training_loop": ("accuracy_of_always_7", "main", "until_it_gets_no_better"),
    "05_when_it_breaks": ("train", "stops_alone", "is_somebody_missing", "counts_wrong"),
}
"""What the cells launch in which there is something to see: the first cell that launches it, and of
several runs there the last."""
SECONDS = 120  # limit of one cell
START = f"import sys; sys.path.insert(0, {str(HERE)!r}); import noting\n"


def record(path: Path) -> dict[str, object]:
    """Run a notebook; for each cell its last run."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        startup = Path(folder, "profile_default", "startup")
        startup.mkdir(parents=True)
        (startup / "00_noting.py").write_text(START, encoding="utf-8")
        notes = Path(folder, "notes")
        notes.touch()
        os.environ |= {"COURSE_NOTES": str(notes), "IPYTHONDIR": folder}
        resources = {"metadata": {"path": str(path.parent)}}
        NotebookClient(
            notebook, timeout=SECONDS, kernel_name="python3", resources=resources
        ).execute()
        lines = anonymous(notes.read_text(encoding="utf-8")).splitlines()
    runs = dict(map(json.loads, lines))  # of several in one cell the last
    found = {}
    for name in CELLS[path.stem]:
        launches = f"launch({name},"
        cell = next(
            cell for cell in notebook.cells if cell.cell_type == "code" and launches in cell.source
        )
        found[name] = {"code": fingerprint(cell.source), **runs[cell.execution_count]}
    return found


def main() -> int:
    """Write a file for each lesson."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lessons", nargs="*", default=list(CELLS), metavar="LESSON")
    for lesson in parser.parse_args().lessons:
        cells = record(ROOT / "notebooks" / f"{lesson}.ipynb")
        today = f"{datetime.date.today():%d %B %Y}"
        about = f"{today}, {usable_cpu_count()} CPU cores, gloo"
        file = FOLDER / f"{lesson}.json"
        text = json.dumps({"recorded": about, "cells": cells}, ensure_ascii=False)
        file.write_text(
            text.replace(', "told"', ',\n"told"').replace('{"code"', '\n{"code"') + "\n",
            encoding="utf-8",
        )
        print(f"wrote {file}, {len(cells)} cells, {file.stat().st_size / 1e3:.0f} kB", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
