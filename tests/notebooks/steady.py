"""Run notebooks again and again, and name each committed sentence that a run makes false.

    python tests/notebooks/steady.py                            # 04 to 06, five times each
    python tests/notebooks/steady.py --runs 2 notebooks/04*

What a cell writes of what it measured is of two kinds, both compared with what is committed:

- a claim of `evidence/claims.py`, "→ views against copies: faster": it has *turned* if a run says
  the opposite, or no longer prints it; "can't tell" contradicts nobody
- what a question's answer was, "MB a step: it was 6": it has turned if it is another one. A number
  that is right within a tenth, say, (`close=0.1`) has only *moved* if it leaves that

That no other sentence holds such a number is what test_claims_in_prose.py sees to. Exit code 1 if
anything has turned. Best on a machine that is quiet: a busy one makes more claims "can't tell".
"""

from __future__ import annotations

import argparse
import html
import os
import re
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import build
import nbformat
from nbformat import NotebookNode

from ddp_helpers.evidence.claims import ARROW, CANT_TELL

CLAIM = re.compile(rf"^{ARROW} (?P<about>.+): (?P<said>[^:,]+), .*in \d+ of \d+ ", re.MULTILINE)
ANSWER = re.compile(r'class="ddp-was".*?data-close="(?P<close>[^"]*)" data-was="(?P<said>[^"]*)"')
ABOUT = re.compile(r"^(?P<about>.+): (?:you: .*, )?it was ")
DEFAULT = ("04", "05", "06")


@dataclass(frozen=True)
class Said:
    """One sentence that a cell wrote."""

    cell: int
    about: str
    verdict: str
    close: float = 0.0
    """For a number: how far off still counts as the same."""

    @property
    def key(self) -> tuple[int, str]:
        return self.cell, self.about


def sentences(notebook: NotebookNode) -> list[Said]:
    """What the outputs of a notebook claim, cell by cell."""
    found = []
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            for match in CLAIM.finditer(output.get("text", "")):
                found.append(Said(number, match["about"], match["said"]))
            data = output.get("data", {})
            answer = ANSWER.search(data.get("text/html", ""))
            about = ABOUT.match(data.get("text/plain", ""))
            if answer and about:
                said = html.unescape(answer["said"])
                found.append(Said(number, about["about"], said, float(answer["close"])))
    return found


def judge(committed: Said, now: Said | None) -> str:
    """What a run makes of a committed sentence: holds, open, moved or turned."""
    if now is None:
        return "turned"  # it isn't even printed any more
    if committed.verdict == now.verdict:
        return "holds"
    if CANT_TELL in (committed.verdict, now.verdict):
        return "open"
    try:
        before, after = float(committed.verdict), float(now.verdict)
    except ValueError:
        return "turned"
    if committed.close == 0:
        return "turned"
    return "holds" if abs(after - before) <= committed.close * abs(before) else "moved"


def compare(committed: list[Said], runs: list[list[Said]]) -> tuple[list[str], int]:
    """A line for each committed sentence, the turned ones first, and how many have turned."""
    rows = []
    told = [{said.key: said for said in run} for run in runs]
    for said in committed:
        answers = [run.get(said.key) for run in told]
        fates = Counter(judge(said, answer) for answer in answers)
        worst = next(fate for fate in ("turned", "moved", "open", "holds") if fates[fate])
        others = ", ".join(answer.verdict if answer else "not printed" for answer in answers)
        where = f"cell {said.cell}: {said.about}: {said.verdict}"
        rows.append((worst, f"{worst:7} {where}" + ("" if worst == "holds" else f" | {others}")))
    rows.sort(key=lambda row: ("turned", "moved", "open", "holds").index(row[0]))
    return [line for _, line in rows], sum(fate == "turned" for fate, _ in rows)


def main() -> int:
    """Command line; exit code 1 if a sentence has turned."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    named = [path for path in sorted(build.NOTEBOOKS.glob("*.ipynb")) if path.name[:2] in DEFAULT]
    parser.add_argument("paths", nargs="*", type=Path, default=named)
    parser.add_argument("--runs", type=int, default=5, help="of each notebook (default: 5)")
    options = parser.parse_args()
    if options.runs < 1:
        parser.error(f"--runs {options.runs}: expected 1 or more")
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    turned = 0
    for path in options.paths:
        committed, runs = sentences(nbformat.read(path, as_version=4)), []
        for number in range(options.runs):
            notebook = nbformat.read(path, as_version=4)
            took = build.execute(notebook, build.NOTEBOOKS, seconds=600)
            runs.append(sentences(notebook))
            load = os.getloadavg()[0]
            print(f"{path.name}: run {number + 1}, {took:.0f} s, load {load:.1f}", flush=True)
        lines, count = compare(committed, runs)
        print(*lines, sep="\n", end="\n\n", flush=True)
        turned += count
    print(f"{turned} committed sentences are false in some run")
    return 1 if turned else 0


if __name__ == "__main__":
    sys.exit(main())
