"""Docstrings of the course are plain text, and Sphinx reads reStructuredText: one to the other."""

from __future__ import annotations

import inspect
import re
import sys

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList

CODE = re.compile(r"(`+[^`]+`+)")


def to_rst(lines: list[str]) -> list[str]:
    """The same lines, with indented blocks as code and no characters that mean something else."""
    done: list[str] = []
    depth = 0  # how far the text before is indented
    code: int | None = None  # how far the code is indented
    for at, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            done.append("")
            continue
        if code is not None and indent < code:
            code = None
        if code is None and at and not lines[at - 1].strip() and indent > depth:
            code = indent
            done += [" " * depth + "::", ""]
        if code is None:
            depth = indent
        done.append(line if code is not None else _escape(line))
    return done


def _escape(line: str) -> str:
    parts = CODE.split(line)
    for at in range(0, len(parts), 2):
        parts[at] = re.sub(r"([*|])", r"\\\1", parts[at])
        parts[at] = re.sub(r"(\w)_(?!\w)", r"\1\\_", parts[at])
    return "".join(parts)


def process(app, what, name, obj, options, lines: list[str]) -> None:
    """For autodoc: change the lines of one docstring in place."""
    lines[:] = to_rst(lines)


class CourseModule(Directive):
    """`.. course-module:: NAME`: the docstring of a module."""

    required_arguments = 1

    def text(self) -> list[str]:
        return to_rst((inspect.getdoc(sys.modules[self.arguments[0]]) or "").splitlines())

    def run(self) -> list[nodes.Node]:
        here = nodes.container()
        self.state.nested_parse(StringList(self.text(), self.arguments[0]), 0, here)
        return here.children


class FirstLine(CourseModule):
    """`.. course-first-line:: TEXT`: one line of plain text."""

    final_argument_whitespace = True

    def text(self) -> list[str]:
        return to_rst([self.arguments[0]])
