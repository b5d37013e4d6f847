"""Runs the tests that matter with other versions of Python, torch and the rest: `make matrix`.

    python tests/matrix/run.py                 # all rows of rows.toml, one after the other
    python tests/matrix/run.py oldest newest   # some of them
    python tests/matrix/run.py oldest --groups launch templates
    python tests/matrix/run.py --table         # only write README.md's table from results.json

Each row gets an environment of its own, beside a copy of the files that git knows, and both are
deleted after it: torch's CUDA build takes more than 5 GB. The results go to results.json, and from
there into README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import xml.etree.ElementTree as ElementTree
from datetime import date
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = HERE / "results.json"
GROUPS = {
    "launch": (
        "tests/unit/ranks",
        "tests/unit/test_torch_private.py",
        "tests/distributed/test_launch.py",
    ),
    "sanitizer": (
        "tests/unit/sanitizer",
        "tests/distributed/test_sanitizer_weights.py",
        "tests/distributed/test_sanitizer_data.py",
        "tests/distributed/test_sanitizer_silence.py",
        "tests/distributed/test_sanitizer_corpus.py",
        "tests/distributed/test_sanitizer_evidence.py",
        "tests/distributed/test_other_torch.py",
    ),
    "resume": ("tests/unit/checkpoints", "tests/distributed/test_resume.py"),
    "exercises": ("tests/distributed/test_exercises_ranks.py",),
    "templates": ("tests/templates",),
    "wheel": ("tests/unit/test_wheel.py",),
}
LONGEST_INSTALL, LONGEST_GROUP = 3600, 2400  # seconds
HEAD = ("Python", "torch", "other packages", *GROUPS, "date")
BEGIN, END = "<!-- matrix: begin -->", "<!-- matrix: end -->"


def main() -> int:
    rows = tomllib.loads((HERE / "rows.toml").read_text())
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", choices=[*rows, []], help="rows; by default all")
    parser.add_argument(
        "--groups", nargs="+", choices=GROUPS, default=list(GROUPS), help="some of the tests only"
    )
    parser.add_argument("--table", action="store_true", help="run nothing, write the table")
    options = parser.parse_args()
    good = True
    for name in () if options.table else options.names or rows:
        found = run_row(rows[name], options.groups)
        print(json.dumps({name: found}, indent=1), flush=True)
        good &= not any(cell["failed"] for cell in found["groups"].values())
        keep(name, found)
    write_table()
    return 0 if good else 1


def keep(name: str, found: dict) -> None:
    """Put the results of a row into results.json; groups that were not run stay as they are."""
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    before = results.get(name, {}).get("groups", {})
    merged = before | found["groups"]
    RESULTS.write_text(json.dumps({**results, name: found | {"groups": merged}}, indent=1) + "\n")


# ---- one row


def run_row(row: dict, chosen: list[str]) -> dict:
    """Build the environment of a row, run each group of tests in it, and delete it."""
    with tempfile.TemporaryDirectory(prefix="matrix-") as folder:
        tree, venv = Path(folder, "tree"), Path(folder, "venv")
        copy_tree(tree)
        python = build(row, tree, venv)
        groups = {name: run_group(name, python, tree) for name in chosen}
        return {
            "python": ask(python, "import platform; print(platform.python_version())"),
            "torch": ask(python, "import torch; print(torch.__version__)"),
            "rest": row["rest"],
            "cloudpickle": ask(python, "import cloudpickle as c; print(c.__version__)"),
            "date": date.today().isoformat(),
            "groups": groups,
        }


def copy_tree(tree: Path) -> None:
    """The files that git knows, as they are now."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        target = tree / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_file():
            shutil.copy2(ROOT / name, target)


def build(row: dict, tree: Path, venv: Path) -> Path:
    """An environment with this torch, then with everything else; its Python."""
    subprocess.run([f"python{row['python']}", "-m", "venv", str(venv)], check=True)
    python = venv / "bin" / "python"
    pip = [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    wanted = "torch" if row["torch"] == "newest" else f"torch=={row['torch']}"
    # first: no later step may put another torch in its place
    run([*pip, *row.get("pip", ()), wanted], tree)
    pins = tree / "pins.txt"
    pins.write_text(pins_beside_torch(python, tree) if row["rest"] == "pins" else "")
    # torch and what it asked for stay: another torch would ask for other versions of sympy
    kept = subprocess.run([*pip[:3], "freeze"], capture_output=True, text=True, check=True).stdout
    with pins.open("a") as file:
        file.write(re.sub(r"\+\w+$", "", kept, flags=re.M))
    run([*pip, *row.get("pip", ()), "-c", str(pins), "-e", ".[dev]"], tree)
    return python


def pins_beside_torch(python: Path, tree: Path) -> str:
    """The lines of constraints.txt for all that torch has not brought itself."""
    code = "import importlib.metadata as m; print(*(d.name for d in m.distributions()))"
    brought = {normal(name) for name in ask(python, code).split()}
    lines = (tree / "constraints.txt").read_text().splitlines(keepends=True)
    return "".join(line for line in lines if normal(line.partition("==")[0]) not in brought)


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def run(command: list[str], folder: Path) -> None:
    print("+", *command, flush=True)
    subprocess.run(command, cwd=folder, check=True, timeout=LONGEST_INSTALL)


def ask(python: Path, code: str) -> str:
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=300)
    return done.stdout.strip() or done.stderr.strip().rpartition("\n")[2]


def run_group(name: str, python: Path, tree: Path) -> dict:
    """How many tests of a group passed, failed and were left out, and the names of what failed."""
    report = tree / f"{name}.xml"
    command = [
        python,
        "-m",
        "pytest",
        "-q",
        "-n",
        "2",
        "--dist",
        "loadfile",
        f"--junitxml={report}",
    ]
    # what the makers of this environment say with CI= is about other tests
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "PYTHONPATH")}
    try:
        subprocess.run([*command, *GROUPS[name]], cwd=tree, env=environment, timeout=LONGEST_GROUP)
        return read_report(report)
    except (subprocess.TimeoutExpired, OSError) as error:
        return {"passed": 0, "skipped": 0, "failed": [f"{type(error).__name__}: {error}"[:200]]}


def read_report(report: Path) -> dict:
    passed, skipped, failed = 0, 0, []
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{case.get('classname')}.{case.get('name')}")
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return {"passed": passed, "skipped": skipped, "failed": failed}


# ---- the table


def write_table() -> None:
    """Put the results into README.md, between their marks; its translation follows by hand."""
    path = ROOT / "README.md"
    before, _, rest = path.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    path.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}")


def table() -> str:
    """The rows of results.json, as Markdown."""
    lines = [HEAD, ["---"] * len(HEAD)]
    for row in json.loads(RESULTS.read_text()).values():
        rest = {"pins": "`constraints.txt`", "newest": "newest"}[row["rest"]]
        torch = row["torch"].partition("+")[0]
        cells = [cell(row["groups"].get(name)) for name in GROUPS]
        lines.append([row["python"], torch, rest, *cells, row["date"]])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cell(found: dict | None) -> str:
    """`341`, or `339 of 341`; what is left out on purpose does not count."""
    if found is None:
        return ""
    failed = len(found["failed"])
    all_run = found["passed"] + failed
    return f"{found['passed']} of {all_run}" if failed else str(all_run)


if __name__ == "__main__":
    sys.exit(main())
