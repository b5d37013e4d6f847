"""`python -m ddp_helpers check`: what this machine can do."""

from __future__ import annotations

import argparse

from ddp_helpers.environment import main_check


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("--json", action="store_true", help="for a program to read")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    return main_check(options.json)
