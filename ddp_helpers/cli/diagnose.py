"""`python -m ddp_helpers diagnose`: a whole log to its cause."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ddp_helpers.diagnosis import diagnose_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("log", help="a file, or - to read what is piped in")
    parser.add_argument("--exit-code", type=int, help="how the command ended, if you know it")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    if options.log == "-":
        text = sys.stdin.read()
    else:
        text = Path(options.log).read_text(encoding="utf-8", errors="replace")
    found = diagnose_text(text, options.exit_code)
    for diagnosis in found:
        print(f"why: {diagnosis.cause} [{diagnosis.kind}]\nwhat to do: {diagnosis.advice}")
    if not found:
        print("no error found in this log")
    return int(any(diagnosis.kind == "not-recognised" for diagnosis in found))
