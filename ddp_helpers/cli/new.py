"""`python -m ddp_helpers new`: a template of your own."""

from __future__ import annotations

import argparse
import shlex
import shutil
from pathlib import Path

from ddp_helpers.data import data_root
from ddp_helpers.templates import template_files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("name", help="file to write, such as train.py")
    parser.add_argument("--template", default="ddp_torchrun", choices=[*template_files()])


def run(options: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    source, target = template_files()[options.template], Path(options.name)
    if target.exists():
        raise FileExistsError(f"{target} exists already: choose another name, or remove it first")
    shutil.copy(source, target)  # a shell script stays executable
    print(f"{target} is yours; its first lines say how to start it")
    data = _data_of(source.read_text(encoding="utf-8"))
    if data is not None:
        print(f"to train it on the course's data, add --data {shlex.quote(str(data))}")
    return 0


def _data_of(template: str) -> Path | None:
    """The course's data that a template names, where it is on this machine."""
    for name in ("mnist_5k", "austen/pride_and_prejudice.txt"):
        if name in template and (data_root() / name).exists():
            return data_root() / name
    return None
