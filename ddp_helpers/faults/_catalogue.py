"""Which faults there are, and what their files say, read without running them: no torch is loaded.

A page's Python reads them so, too.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ddp_helpers.evidence.records import LaunchResult
from ddp_helpers.words import shown

GROUPS = ("hangs", "start-up", "silently wrong", "slow", "after the end", "many machines")
FOLDER = Path(__file__).parent
LONG_ENOUGH = 30.0  # seconds for what is not meant to hang


@dataclass(frozen=True)
class Fault:
    """What a fault is called, what it prints, why it happens and what mends it."""

    title: str
    group: str
    says: str
    """A piece of what torch itself prints; "nothing" for a fault that is silent."""
    cause: str
    mend: str
    kind: str
    """The kind of `Diagnosis` or `Finding` that names it."""
    seen_in: str = ""
    """A public thread where it cost somebody a day."""
    nprocs: int = 2
    timeout: float = LONG_ENOUGH
    sanitize: bool = False
    threads_per_rank: int | None = None
    env: Mapping[str, str] = field(default_factory=dict)
    in_terminal: bool = False
    """The functions run a command and return how it ended; no rank runs them."""


@dataclass(frozen=True)
class Seen:
    """What became of a fault: the report that a learner reads, and the kinds it names."""

    report: str
    kinds: tuple[str, ...]
    output: str
    result: LaunchResult | None = None
    alone: str | None = None
    """What `torch_says()`, in a recording; a run leaves it out, as it would take twice as long."""

    def __str__(self) -> str:
        return self.report or shown("nothing to report")

    def __repr__(self) -> str:
        return str(self)


def names(group: str | None = None) -> list[str]:
    """The faults, in the order of their groups; or those of one group."""
    files = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))
    if group is None:
        return sorted(files, key=lambda name: GROUPS.index(record(name).group))
    return [name for name in files if record(name).group == group]


def source(name: str) -> str:
    """The text of a fault's file.

    Raises:
        ValueError: there is no such fault.
    """
    path = FOLDER / f"{name}.py"
    if not name.isidentifier() or name.startswith("_") or not path.is_file():
        raise ValueError(f'no fault "{name}": faults.names() lists them')
    return path.read_text(encoding="utf-8")


@functools.cache
def record(name: str) -> Fault:
    """The `FAULT` of a file, as it is written there."""
    for node in ast.parse(source(name)).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "FAULT":
            assert isinstance(node.value, ast.Call)
            said = {str(each.arg): ast.literal_eval(each.value) for each in node.value.keywords}
            return Fault(**said)
    raise ValueError(f"{FOLDER / name}.py has no FAULT = Fault(...)")


def functions(name: str) -> dict[str, str]:
    """The functions in a fault's file by their names, as text; `faulty` and `fixed` among them."""
    text = source(name)
    found = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    return {node.name: ast.get_source_segment(text, node) or "" for node in found}
