"""`python -m ddp_helpers classroom`: for instructors."""

from __future__ import annotations

import argparse
import sys

from ddp_helpers.classroom import check, report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    jobs = parser.add_subparsers(dest="job", required=True)
    sub = jobs.add_parser("check", help="can this machine seat a class?")
    sub.add_argument("--seats", type=int, default=30, help="learners, with two ranks each")
    sub = jobs.add_parser("report", help="tables of what learners have done")
    sub.add_argument("files", nargs="+", help="progress files of learners, or folders with them")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    if options.job == "check":
        seating = check(options.seats)
        print(seating)
        return int(not seating.ok)
    text, problems = report(options.files)
    print(text)
    for problem in problems:
        print(f"not read: {problem}", file=sys.stderr)
    return int(bool(problems))
