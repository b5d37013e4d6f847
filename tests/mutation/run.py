"""How many small mistakes in the code do its tests notice? `make mutants ARGS="data training"`

mutmut makes the mistakes (an operator, a number, a text, one at a time) in a copy of the package
in the temporary folder, and runs the wing's unit tests on each. Prints the share noticed per file,
and with --survivors what nobody noticed. `--show NAME` prints one as a difference.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
# not in the repository: some tests ask git about their files
BUILD = Path(tempfile.gettempdir()) / f"ddp_helpers-mutants-{os.getuid()}"
# what is run for each wing; tests of ranks that take seconds are left to the suite
TESTS = {
    "data": ["tests/unit/data"],
    "training": [
        "tests/unit/training",
        "--deselect=tests/unit/training/test_training_options.py"
        "::test_stopped_at_any_steps_it_ends_with_the_same_bits",
        "--deselect=tests/unit/training/test_training_options.py"
        "::test_importing_the_loop_starts_nothing",
    ],
    "diagnosis": ["tests/unit/diagnosis", "tests/unit/troubleshooting"],
    "ranks": ["tests/unit/ranks"],
    "sanitizer": ["tests/unit/sanitizer"],
}
COPIED = ("ddp_helpers", "data", "tests", "notebooks", "pyproject.toml", "README.md")
NOTICED = {"killed", "timeout", "segfault", "caught by type check"}
MARK = "DDP_HELPERS_MUTANTS"  # in the environment of all that a run starts
NO_THREADS = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS")}


def prepare(wing: str) -> Path:
    """A copy of what the tests need, with mutmut's settings for one wing."""
    folder = BUILD / wing
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(source, folder / name, ignore=ignore)
        else:
            shutil.copy(source, folder / name)
    settings = {
        "source_paths": [f"ddp_helpers/{wing}"],
        "pytest_add_cli_args_test_selection": TESTS[wing],
        "pytest_add_cli_args": ["-p", "no:cacheprovider"],
        "also_copy": list(COPIED),
        # a mutant that is only slow on a busy machine must not count as noticed
        "timeout_multiplier": 10.0,
        "timeout_constant": 5.0,
    }
    with open(folder / "pyproject.toml", "a") as file:
        file.write("\n[tool.mutmut]\n")
        file.writelines(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
    return folder


def run(wing: str, names: list[str], jobs: int) -> Path:
    """Let mutmut try all mutants of a wing, or those whose names match."""
    folder = prepare(wing)
    # forked from a process with a pool of threads, a test may wait for ever, and look noticed
    environment = {**os.environ, **NO_THREADS, MARK: folder.name}
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(jobs), *names]
    log = folder / "mutmut.log"
    try:
        with open(log, "w") as file:
            done = subprocess.run(
                command,
                cwd=folder,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                check=False,
            )
    finally:
        end_leftovers(wing)
    if done.returncode:
        sys.exit(f"mutmut ended with {done.returncode}: {log}\n{log.read_text()[-2000:]}")
    return folder


def end_leftovers(wing: str) -> None:
    """End the processes of mutants whose mistake was not to end them."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == wing:
                process.kill()


def results(wing: str) -> dict[str, str]:
    """What became of each mutant, by its name."""
    command = [sys.executable, "-m", "mutmut", "results", "--all", "true"]
    done = subprocess.run(command, cwd=BUILD / wing, capture_output=True, text=True, check=True)
    lines = [
        line.strip().rpartition(": ") for line in done.stdout.splitlines() if "__mutmut_" in line
    ]
    return {name: became for name, _, became in lines if became != "not checked"}


def file_of(name: str) -> str:
    """`ddp_helpers/data/loaders.py` of `ddp_helpers.data.loaders.x_exact_split__mutmut_1`."""
    module = name.partition("__mutmut_")[0].rpartition(".")[0]
    path = module.replace(".", "/")
    return f"{path}/__init__.py" if (ROOT / path).is_dir() else f"{path}.py"


def table(found: dict[str, str]) -> str:
    """The share noticed of each file, and of all."""
    counts: dict[str, Counter[str]] = {}
    for name, became in found.items():
        for row in (file_of(name), "all"):
            counts.setdefault(row, Counter())["noticed" if became in NOTICED else became] += 1
    lines = []
    for row, count in sorted(counts.items(), key=lambda item: (item[0] == "all", item[0])):
        rest = ", ".join(f"{n} {what}" for what, n in sorted(count.items()) if what != "noticed")
        share = count["noticed"] / count.total()
        lines.append(f"{share:6.1%} of {count.total():5} {row}{f'  ({rest})' if rest else ''}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("wings", nargs="*", choices=[*TESTS, []], help="by default all")
    parser.add_argument("--only", nargs="*", default=[], help="mutants, such as '*loaders*'")
    parser.add_argument("--survivors", action="store_true", help="name those that nobody noticed")
    parser.add_argument("--show", help="print one mutant as a difference; after a run")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    if options.show:
        folder = BUILD / options.show.split(".")[1]
        sys.exit(
            subprocess.call([sys.executable, "-m", "mutmut", "show", options.show], cwd=folder)
        )
    for wing in options.wings or TESTS:
        run(wing, options.only, options.jobs)
        found = results(wing)
        print(f"--- {wing}\n{table(found)}", flush=True)
        if options.survivors:
            print(
                *(f"{became}: {name}" for name, became in found.items() if became not in NOTICED),
                sep="\n",
            )


if __name__ == "__main__":
    main()
