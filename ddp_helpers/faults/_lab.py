"""Run a fault or its mend, on real ranks or in a terminal, and say what became of it."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from ddp_helpers.diagnosis.causes import diagnose
from ddp_helpers.diagnosis.log_causes import diagnose_text
from ddp_helpers.diagnosis.rules import Diagnosis
from ddp_helpers.evidence.records import Finding, LaunchResult
from ddp_helpers.faults._catalogue import FOLDER, LONG_ENOUGH, Seen, names, record, source
from ddp_helpers.faults._terminal import Ended, terminal
from ddp_helpers.ranks.conclusion import LaunchError, LaunchTimeoutError
from ddp_helpers.ranks.launcher import launch
from ddp_helpers.words import shown


class Markdown(str):
    """Text that a notebook shows as a table."""

    def _repr_markdown_(self) -> str:
        return str(self)


def load(name: str) -> ModuleType:
    """The module of a fault: `.FAULT`, `.faulty`, `.fixed`.

    Raises:
        ValueError: there is no such fault.
    """
    source(name)
    return importlib.import_module(f"ddp_helpers.faults.{name}")


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
    if record(name).in_terminal:
        return load(name).faulty().output
    start = f"from ddp_helpers.faults._terminal import start_alone; start_alone({name!r})"
    return terminal([sys.executable, "-c", start]).output.replace(f"{FOLDER}/", "")


def table(group: str | None = None) -> Markdown:
    """What is printed, why, and the mend, for all faults or those of one group."""
    heads = map(shown, ("fault", "torch says", "cause", "mend", "seen in"))
    rows = [f"| {' | '.join(heads)} |", "| --- | --- | --- | --- | --- |"]
    for name in names(group):
        fault = record(name)
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
