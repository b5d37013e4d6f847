"""`python -m ddp_helpers new`: a template of your own."""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

from ddp_helpers.data import data_root
from ddp_helpers.recipes import recipes
from ddp_helpers.templates import TAKE_IF, template_files, without_marks
from ddp_helpers.words import shown

# the one line that says where a template's data lies, as the templates write it
_DATA_LINE = re.compile(r'^DATA = .*"(?:\.\./)*data/(?P<name>[^"]+)".*$', re.MULTILINE)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("name", nargs="?", help="file to write, such as train.py")
    parser.add_argument("--list", action="store_true", help="what there is, and when to take it")
    parser.add_argument(
        "--template", choices=[*template_files()], help="default: starter; in a terminal it asks"
    )
    parser.add_argument(
        "--recipe", nargs="+", default=[], choices=[*recipes()], metavar="RECIPE", help="put it in"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    if options.list:
        print(_all_there_is())
        return 0
    if options.name is None:
        raise ValueError("which file? `new train.py` writes one, `new --list` shows what there is")
    asks = not options.recipe and sys.stdin and sys.stdin.isatty()
    name = options.template or (_ask() if asks else "starter")
    source, target = template_files()[name], Path(options.name)
    if options.recipe and name != "starter":
        raise ValueError(f"--recipe is for starter.py, --template is {name}: leave one of them out")
    if target.exists():
        raise FileExistsError(f"{target} exists already: choose another name, or remove it first")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{target}: no folder {target.parent} here: make it first")
    text = source.read_text(encoding="utf-8")
    for recipe in options.recipe:
        text = recipes()[recipe].apply(text)
    target.write_text(_with_data(without_marks(text)), encoding="utf-8")
    shutil.copymode(source, target)  # a shell script stays executable
    told = f"{target} is yours: {name}{source.suffix}; its first lines say how to start it"
    print(shown(told))
    return 0


def _all_there_is() -> str:
    lines = [shown("templates: new FILE --template NAME; take it if")]
    lines += [f"  {name:<20}{shown(when)}" for name, when in TAKE_IF.items()]
    lines += ["", shown("recipes for starter.py: new FILE --recipe NAME ...")]
    lines += [f"  {each.name:<20}{shown(each.title)}" for each in recipes().values()]
    return "\n".join(lines)


def _ask() -> str:
    """The template that whoever sits at the terminal chooses."""
    names = [*TAKE_IF]
    for number, (name, when) in enumerate(TAKE_IF.items(), start=1):
        print(f"{number:>3}  {name:<20}{shown(when)}")
    while True:
        answer = input(shown("which one? [1]") + " ").strip() or "1"
        if answer in names:
            return answer
        if answer.isdecimal() and 1 <= int(answer) <= len(names):
            return names[int(answer) - 1]
        told = f"{answer} found, expected a name or a number from 1 to {len(names)}"
        print(shown(told))


def _with_data(template: str) -> str:
    """The text, where its DATA line names the course's data on this machine."""
    found = _DATA_LINE.search(template)
    if found is None:
        return template
    path = (data_root() / found["name"]).absolute()
    if not path.exists():
        print(shown(f"no {path} here: let the line `DATA = ...` name your own data"))
        return template
    line = f"DATA = Path({_quoted(str(path))})"
    return template[: found.start()] + line + template[found.end() :]


def _quoted(text: str) -> str:
    """A Python string; in double quotes, as in the templates, where that needs no escapes."""
    shown = repr(text)
    return shown if {'"', "\\"} & {*shown} else f'"{text}"'
