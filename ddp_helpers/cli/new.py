"""`python -m ddp_helpers new`: a template of your own."""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
from pathlib import Path

from ddp_helpers.data import data_root
from ddp_helpers.templates import template_files

# the one line that says where a template's data lies, as the templates write it
_DATA_LINE = re.compile(r'^DATA = .*"(?:\.\./)*data/(?P<name>[^"]+)".*$', re.MULTILINE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("name", help="file to write, such as train.py")
    parser.add_argument("--template", default="ddp_torchrun", choices=[*template_files()])


def run(options: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    source, target = template_files()[options.template], Path(options.name)
    if target.exists():
        raise FileExistsError(f"{target} exists already: choose another name, or remove it first")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: no folder {target.parent} here: make it first")
    text = source.read_text(encoding="utf-8")
    target.write_text(_with_data(text), encoding="utf-8")
    shutil.copymode(source, target)  # a shell script stays executable
    print(f"{target} is yours; its first lines say how to start it")
    data = _data_of(text)
    if data is not None:
        print(f"to train it on the course's data, add --data {shlex.quote(str(data))}")
    return 0


def _with_data(template: str) -> str:
    """The text, where its DATA line names the course's data on this machine."""
    found = _DATA_LINE.search(template)
    if found is None:
        return template
    path = (data_root() / found["name"]).absolute()
    if not path.exists():
        print(f"no {path} here: let the line `DATA = ...` name your own data")
        return template
    line = f"DATA = Path({_quoted(str(path))})"
    return template[: found.start()] + line + template[found.end() :]


def _quoted(text: str) -> str:
    """A Python string; in double quotes, as in the templates, where that needs no escapes."""
    shown = repr(text)
    return shown if {'"', "\\"} & {*shown} else f'"{text}"'


def _data_of(template: str) -> Path | None:
    """The course's data that a template takes by a flag, where it is on this machine."""
    if '"--data"' not in template:
        return None
    for name in ("mnist_5k", "austen/pride_and_prejudice.txt"):
        if name in template and (data_root() / name).exists():
            return data_root() / name
    return None
