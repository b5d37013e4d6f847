"""A page for each template: its docstring, how to get it, what is new in it, and the file."""

from __future__ import annotations

import ast
import os
import re
from difflib import SequenceMatcher
from pathlib import Path

from editions import paragraphs, said, twin

from ddp_helpers.templates import TAKE_IF, template_files, without_mark
from ddp_helpers.widgets.ladder import RUNGS
from ddp_helpers.words import shown

FENCE = "`" * 6


def write_templates(root: Path, pages: Path) -> None:
    """Write templates/index.md and a page for each file that `new` can copy; work comes first."""
    folder = pages / "templates"
    folder.mkdir(parents=True, exist_ok=True)
    files = template_files()
    names = [name for name in TAKE_IF if name in files]
    for name in names:
        text = _page(name, files[name], os.path.relpath(files[name], folder))
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    (folder / "index.md").write_text(_index(names, files), encoding="utf-8")


def docstring(path: Path) -> str:
    """The first words of a template: a Python docstring, or any other file's first comment."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".py":
        return ast.get_docstring(ast.parse(text)) or ""
    lines = []
    for line in text.removeprefix("#!/usr/bin/env bash\n").splitlines():
        if not line.startswith("#") or line.startswith("#SBATCH"):
            break
        lines.append(line.removeprefix("#").removeprefix(" "))
    return "\n".join(lines).strip()


def _page(name: str, path: Path, relative: str) -> str:
    words = paragraphs(docstring(path))
    links = sorted(set(re.findall(r"\b(\w+)\.py\b", words)) & set(TAKE_IF) - {name}, key=len)
    for other in reversed(links):
        words = re.sub(
            rf"^((?!    ).*)\b{other}\.py\b", rf"\1[{other}.py]({other}.md)", words, flags=re.M
        )
    kind = {".py": "python", ".yaml": "yaml"}.get(path.suffix, "bash")
    target = "train.py" if path.suffix == ".py" else path.name
    return "\n".join(
        [
            f"# {path.name}\n",
            twin(f"templates/{name}.md"),
            f"{words}\n",
            f"## {said('Get it')}\n",
            f"{FENCE}bash\npython -m ddp_helpers new {target} --template {name}\n{FENCE}\n",
            said(
                "Or {download}, or copy it from below.",
                download=f"{{download}}`{said('save the file')} <{relative}>`",
            )
            + "\n",
            *_changes(name),
            f"## {said('The whole file')}\n",
            f"{FENCE}{{literalinclude}} {relative}",
            f":language: {kind}\n:class: whole-file\n{FENCE}\n",
        ]
    )


def _changes(name: str) -> list[str]:
    """What differs from the template before, as a diff; nothing for the first one."""
    before = next((old for old, new in RUNGS if new == name), None)
    if before is None:
        return []
    files = template_files()
    lines = diff(files[before].read_text(encoding="utf-8"), files[name].read_text(encoding="utf-8"))
    new, gone = (sum(line.startswith(sign) for line in lines) for sign in "+-")
    return [
        f"## {said('What is new')}\n",
        said(
            "Against {before}, {new} lines are new and {gone} are gone; the docstring and marks of "
            "the step before are left out.",
            before=f"[{before}.py]({before}.md)",
            new=new,
            gone=gone,
        )
        + "\n",
        f"{FENCE}{{code-block}} diff\n:class: changes\n\n" + "\n".join(lines) + f"\n{FENCE}\n",
    ]


def diff(before: str, after: str) -> list[str]:
    """Changed code with three lines around it; a line that has only lost its mark is the same."""
    old, new = (_below_docstring(text) for text in (before, after))
    matcher = SequenceMatcher(None, *([without_mark(line) for line in side] for side in (old, new)))
    found = []
    for group in matcher.get_grouped_opcodes(3):
        first = group[0]
        where = next((line for line in reversed(new[: first[3] + 1]) if line[:1].isalpha()), "")
        found.append(f"@@ {where}".rstrip())
        for kind, i, i_end, j, j_end in group:
            if kind == "equal":
                found += [f" {line}" for line in new[j:j_end]]
            else:
                found += [f"-{line}" for line in old[i:i_end] if without_mark(line).strip()]
                found += [f"+{line}" for line in new[j:j_end] if line.strip()]
    return found


def _below_docstring(text: str) -> list[str]:
    return text.splitlines()[ast.parse(text).body[0].end_lineno :]


def _index(names: list[str], files: dict[str, Path]) -> str:
    rows = [said("| template | take it if |"), "| --- | --- |"]
    rows += [f"| [{files[name].name}]({name}.md) | {shown(TAKE_IF[name])} |" for name in names]
    table = "\n".join(rows)
    contents = "\n".join(names)
    about = said(
        "One file each, to copy and own. The first are for work; the lesson's are a ladder: each "
        "is a small marked step from the one before, and its page shows that step."
    )
    return (
        f"# {said('Templates')}\n\n{twin('templates/index.md')}\n{about}\n\n"
        f"{table}\n\n```{{toctree}}\n:hidden:\n:titlesonly:\n\n{contents}\n```\n"
    )
