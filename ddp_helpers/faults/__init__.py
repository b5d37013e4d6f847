"""The failure lab: one small file per fault, each run for real on the CPU.

    from ddp_helpers import faults
    faults.names("hangs")                         # which faults there are
    faults.run("one_extra_collective")            # see it happen, and what the report says
    faults.run("one_extra_collective", fixed=True)
    faults.torch_says("one_extra_collective")     # what torch alone would have printed

A file holds a `FAULT` record, `faulty()` and `fixed()`: what each rank runs, or for a fault of
the command line (`in_terminal`) the command itself.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from ddp_helpers.diagnosis.causes import diagnose
from ddp_helpers.diagnosis.log_causes import diagnose_text
from ddp_helpers.diagnosis.rules import Diagnosis
from ddp_helpers.evidence.records import Finding, LaunchResult
from ddp_helpers.faults._terminal import Ended, terminal
from ddp_helpers.ranks.conclusion import LaunchError, LaunchTimeoutError
from ddp_helpers.ranks.launcher import launch
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

    def __str__(self) -> str:
        return self.report or shown("nothing to report")

    def __repr__(self) -> str:
        return str(self)


class Markdown(str):
    """Text that a notebook shows as a table."""

    def _repr_markdown_(self) -> str:
        return str(self)


def names(group: str | None = None) -> list[str]:
    """The faults, in the order of their groups; or those of one group."""
    files = sorted(path.stem for path in FOLDER.glob("*.py") if not path.stem.startswith("_"))
    if group is None:
        return sorted(files, key=lambda name: GROUPS.index(load(name).FAULT.group))
    return [name for name in files if load(name).FAULT.group == group]


def load(name: str) -> ModuleType:
    """The module of a fault: `.FAULT`, `.faulty`, `.fixed`.

    Raises:
        ValueError: there is no such fault.
    """
    if not name.isidentifier() or name.startswith("_") or not (FOLDER / f"{name}.py").is_file():
        raise ValueError(f'no fault "{name}": faults.names() lists them')
    return importlib.import_module(f"{__name__}.{name}")


def run(
    name: str, *, fixed: bool = False, sanitize: bool | None = None, echo: bool = False
) -> Seen:
    """Run a fault, or its mend, on real ranks; never raises for what the ranks do.

    Args:
        name: one of `names()`.
        fixed: run the mended function instead.
        sanitize: watch with the sanitizer, or don't; by default as the fault's record says.
        echo: show the ranks' output as it comes.
    """
    module = load(name)
    fault, act = module.FAULT, module.fixed if fixed else module.faulty
    if fault.in_terminal:
        return _seen_in_terminal(act())
    hang, report = False, ""
    try:
        result = launch(
            act,
            fault.nprocs,
            timeout=LONG_ENOUGH if fixed else fault.timeout,
            env=fault.env,
            echo=echo,
            threads_per_rank=fault.threads_per_rank,
            sanitize=fault.sanitize if sanitize is None else sanitize,
        )
    except LaunchError as error:
        result, report = error.result, str(error)
        hang = isinstance(error, LaunchTimeoutError)
    return _seen(result, report, hang)


def torch_says(name: str) -> str:
    """What is printed without this package: the same ranks, started by torch alone.

    torch waits 30 minutes for a rank that does not come; here it waits two seconds.
    """
    if load(name).FAULT.in_terminal:
        return load(name).faulty().output
    start = f"from ddp_helpers.faults._terminal import start_alone; start_alone({name!r})"
    return terminal([sys.executable, "-c", start]).output.replace(f"{FOLDER}/", "")


def table(group: str | None = None) -> Markdown:
    """What is printed, why, and the mend, for all faults or those of one group."""
    heads = map(shown, ("fault", "torch says", "cause", "mend", "seen in"))
    rows = [f"| {' | '.join(heads)} |", "| --- | --- | --- | --- | --- |"]
    for name in names(group):
        fault = load(name).FAULT
        says = shown("nothing") if fault.says == "nothing" else f"`{fault.says}`"
        title, cause, mend = map(shown, (fault.title, fault.cause, fault.mend))
        cells = (title, says, cause, mend, fault.seen_in)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return Markdown("\n".join(rows))


def _seen_in_terminal(ended: Ended) -> Seen:
    found = diagnose_text(ended.output, ended.exit_code)
    return Seen(_in_words(found), tuple(d.kind for d in found), ended.output)


def _in_words(found: list[Diagnosis]) -> str:
    return shown("\n".join(f"why: {d.cause}\nwhat to do: {d.advice}" for d in found))


def _seen(result: LaunchResult, report: str, hang: bool) -> Seen:
    """Serious findings first, then the diagnoses of a failed run, then what is only slow."""
    serious = [finding for finding in result.findings if finding.serious]
    notes = [finding for finding in result.findings if not finding.serious]
    causes = diagnose(result.ranks, hang=hang) if report else []
    named: list[Finding | Diagnosis] = [*serious, *causes, *notes]
    kinds = tuple(dict.fromkeys(found.kind for found in named))
    text = report or shown("\n".join(map(str, notes)))
    output = "".join(rank.output for rank in result.ranks)
    return Seen(text.replace(f"{FOLDER}/", ""), kinds, output, result)
