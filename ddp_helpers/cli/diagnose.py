"""`python -m ddp_helpers diagnose`: a whole log, or a folder of them, to its cause."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ddp_helpers.diagnosis.flight_records import diagnose_dumps, read_dumps
from ddp_helpers.diagnosis.log_causes import diagnose_lines, diagnose_text
from ddp_helpers.diagnosis.log_files import read_folder, read_log, read_stream
from ddp_helpers.diagnosis.log_marks import Line
from ddp_helpers.diagnosis.rules import Diagnosis
from ddp_helpers.words import shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument(
        "log",
        nargs="*",
        help="files, packed or not, or folders such as torchrun's --log-dir, that of Slurm's "
        "outputs, or one of flight records; without one, or with -, what is piped in",
    )
    parser.add_argument("--exit-code", type=int, help="how the command ended, if you know it")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    logs = options.log or ["-"]
    if options.log == [] and sys.stdin.isatty():
        raise ValueError("no log: expected a file, a folder, or a log that is piped in")
    found = _diagnose(logs, options.exit_code)
    for diagnosis in found:
        print(shown(f"why: {diagnosis.cause} [{diagnosis.kind}]"))
        for line in diagnosis.seen:
            print(f"  {line}")
        print(shown(f"what to do: {diagnosis.advice}"))
    if not found:
        print(shown("no error found in this log"))
    return int(any(diagnosis.kind == "not-recognised" for diagnosis in found))


def _diagnose(logs: list[str], exit_code: int | None) -> list[Diagnosis]:
    if exit_code == 0:
        return []
    if logs == ["-"] and not hasattr(sys.stdin, "buffer"):
        return diagnose_text(sys.stdin.read(), exit_code)
    recorded = [found for each in logs if (found := _diagnose_records(Path(each)))]
    lines = [line for each in logs for line in _read(each, each if len(logs) > 1 else "")]
    return recorded + diagnose_lines(lines, exit_code, _last(logs))


def _diagnose_records(folder: Path) -> Diagnosis | None:
    """What the flight records in a folder tell, if there are any."""
    return diagnose_dumps(read_dumps(folder)) if folder.is_dir() else None


def _read(log: str, name: str) -> list[Line]:
    if log == "-":
        return read_stream(sys.stdin.buffer)
    path = Path(log)
    try:
        return read_folder(path) if path.is_dir() else read_log(path, name)
    except EOFError as cut:  # a packed file that is still being written
        raise OSError(f"{log}: the packed file is not whole ({cut})") from cut


def _last(logs: list[str]) -> str:
    """The last line of a plain file, to be shown with an exit code that nobody explains."""
    path = Path(logs[-1])
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - 10_000, 0))
        lines = [
            line for line in file.read().decode("utf-8", "replace").split("\n") if line.strip()
        ]
    return lines[-1].strip() if lines else ""
