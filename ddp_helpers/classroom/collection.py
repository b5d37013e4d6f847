"""What a class has done, in one folder, in the forms that graders know.

grades.csv                          as `nbgrader export` writes it: a line a learner and notebook
results/ADA.json                    as Otter and Gradescope write it: results.json, a learner each
submitted/learner-01/01/01_*.ipynb  the notebooks that a learner has changed; nbgrader's tree
answers/01.3/ADA.py                 the last answer to each exercise, beside those of the others
reports/ADA.md, report.md           to read: of each learner, and of all
"""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from ddp_helpers.classroom import tables
from ddp_helpers.classroom.copies import KEPT
from ddp_helpers.classroom.learners import MARK, Learner, find
from ddp_helpers.exercises import names, progress_file, short_title
from ddp_helpers.words import shown

# the columns of nbgrader's CsvExportPlugin
GRADES = (
    *("assignment", "duedate", "timestamp", "student_id", "last_name", "first_name", "email"),
    *("raw_score", "late_submission_penalty", "score", "max_score"),
)

TRIED = "✗"
LEGEND = f"{tables.DONE}: done, {TRIED}: tried, not done yet, {tables.OPEN}: not tried"


def collect(places: Sequence[str | Path], into: str | Path) -> tuple[list[Learner], list[str]]:
    """Gather everybody's answers, and write a report for each.

    An exercise is worth a point. Nothing is run anew: a check ran at the learner's. What was
    gathered there before is replaced.

    Returns:
        The learners, and a line for each file that could not be read.

    Raises:
        FileExistsError: the folder holds something else.
        FileNotFoundError: no learner is there.
    """
    target = Path(into)
    if not _may_be_replaced(target):
        raise FileExistsError(
            f"{target} holds files that are no collection, expected an empty folder: choose "
            "another one with --into"
        )
    learners, problems = find(places)
    if not learners:
        reasons = "; ".join(problems) or "no progress file, and no learner's copy"
        raise FileNotFoundError(f"no learner in {', '.join(map(str, places))}: {reasons}")
    target.parent.mkdir(parents=True, exist_ok=True)
    # all of it or nothing, and no file of a learner who has left the class
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as folder:
        made = Path(folder, "made")
        made.mkdir()
        for learner in learners:
            problems += _gather(learner, made)
        _write(made / "grades.csv", grades(learners))
        _write(made / "report.md", tables.report(learners) + "\n")
        _write(made / MARK, "")
        if target.exists():
            os.rename(target, Path(folder, "before"))
        os.rename(made, target)
    return learners, problems


def _may_be_replaced(target: Path) -> bool:
    if not target.exists():
        return True
    return target.is_dir() and ((target / MARK).exists() or not any(target.iterdir()))


def _gather(learner: Learner, into: Path) -> list[str]:
    """One learner's files; returns a line for each that could not be read."""
    _write(into / "results" / f"{learner.key}.json", json.dumps(results(learner), indent=1))
    _write(into / "reports" / f"{learner.key}.md", about(learner))
    problems = []
    for source, target in _files(learner, into):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            problems.append(str(error))
    return problems


def _files(learner: Learner, into: Path) -> list[tuple[Path, Path]]:
    if learner.copy is None:
        return []
    own, notebooks = learner.copy / progress_file.CLASS, learner.copy / "notebooks"
    found = [
        (answer, into / "answers" / answer.stem / f"{learner.key}.py")
        for answer in sorted((own / "answers").glob("*.py"))
    ]
    for notebook in sorted(notebooks.glob("*.ipynb")):
        original = own / "originals" / notebook.name
        try:
            same = original.exists() and original.read_bytes() == notebook.read_bytes()
        except OSError:
            same = False  # the copy that follows says why
        if not same:
            folder = into / "submitted" / learner.student / notebook.name.partition("_")[0]
            found.append((notebook, folder / notebook.name))
    for notebook in sorted((notebooks / KEPT).glob("*.ipynb")):
        found.append((notebook, into / "submitted" / learner.student / KEPT / notebook.name))
    # no pipe, which would keep the reader waiting, and nothing from elsewhere
    return [(source, to) for source, to in found if source.is_file() and not source.is_symlink()]


def grades(learners: Sequence[Learner]) -> str:
    """The table that `nbgrader export` writes; a notebook is an assignment."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(GRADES)
    for notebook, numbers in tables.chosen().items():
        for learner in learners:
            records = [learner.state["exercises"].get(n, {}) for n in numbers]
            last = max((each.get("last_at", "") for each in records), default="")
            score = float(sum(bool(each.get("passed_at")) for each in records))
            row = (notebook, "", last, learner.student, "", learner.name, "")
            lines.writerow((*row, score, 0.0, score, float(len(numbers))))
    return text.getvalue()


def results(learner: Learner) -> dict:
    """What Otter hands to Gradescope as results.json: a test for each exercise."""
    tests = []
    for number in names():
        record = learner.state["exercises"].get(number, {})
        right, tries = bool(record.get("passed_at")), record.get("tries", 0)
        tests.append(
            {
                "name": f"{number} {short_title(number)}",
                "number": number,
                "score": float(right),
                "max_score": 1.0,
                "status": "passed" if right else "failed",
                "visibility": "visible",
                "output": _said(learner, number) or ("" if tries else "not tried"),
                "tags": [number.partition(".")[0]],
                "extra_data": {"tries": tries, "hints": record.get("hints", 0)},
            }
        )
    done = len({*progress_file.passed(learner.state)} & {*names()})
    return {
        "score": float(done),
        "output": f"{learner.name}: {done} of {len(tests)} exercises done",
        "visibility": "visible",
        "tests": tests,
    }


def about(learner: Learner) -> str:
    """A page about one learner, to read: what is done, and what the check said of the rest."""
    state = learner.state
    lines = [f"# {learner.name}", ""]
    if learner.student != learner.key:
        lines += [shown(f"The copy was handed out as {learner.student}."), ""]
    lines.append(shown(f"{len(progress_file.passed(state))} of {len(names())} exercises done."))
    if guesses := state.get("guesses", {}):
        right = sum(bool(each.get("right")) for each in guesses.values())
        lines.append(shown(f"{right} of {len(guesses)} guesses came true."))
    untouched = []
    for notebook, numbers in tables.chosen().items():
        if not any(state["exercises"].get(number) for number in numbers):
            untouched.append(notebook)
            continue
        lines += ["", f"## Notebook {notebook}", ""]
        for number in numbers:
            record = state["exercises"].get(number, {})
            tries, hints = record.get("tries", 0), record.get("hints", 0)
            counts = [_count(tries, "try", "tries"), _count(hints, "hint", "hints")]
            how = f": {', '.join(map(shown, counts))}" if tries or hints else ""
            seen = shown(", solution seen") if record.get("saw_solution") else ""
            title = f"{number} {short_title(number)}"
            mark = tables.mark(state, number)
            # beside "01.3" a board's number of tries would read as part of it
            lines.append(f"- {TRIED if mark.isdigit() else mark} {title}{how}{seen}")
            if not record.get("passed_at"):
                lines += [f"    > {line}" for line in _said(learner, number).splitlines()]
    if untouched:
        lines += ["", shown(f"Nothing was tried in {', '.join(untouched)}.")]
    return "\n".join([*lines, "", shown(LEGEND), ""])


def _count(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"


def _said(learner: Learner, number: str) -> str:
    """What the check said of the last answer; "" where no answer was kept."""
    if learner.copy is None:
        return ""
    return progress_file.said_of(learner.copy / progress_file.CLASS / "answers" / f"{number}.py")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
