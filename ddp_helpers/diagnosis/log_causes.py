"""From a log to its causes: the root first, and after it what only follows from it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from ddp_helpers.diagnosis.known_lines import (
    FINDING,
    LONGEST,
    RootCause,
    find_root_cause,
    quote,
    recognise_exit_code,
    recognise_lines,
)
from ddp_helpers.diagnosis.log_files import read_text
from ddp_helpers.diagnosis.log_ignored import without_ignored
from ddp_helpers.diagnosis.log_marks import Line
from ddp_helpers.diagnosis.log_text import read_cut_off, read_errors
from ddp_helpers.diagnosis.raised import NOT_THEIRS, LoggedError
from ddp_helpers.diagnosis.rule_files import consequences, known_errors
from ddp_helpers.diagnosis.rules import Diagnosis, is_of_cleaning_up, recognise

# the end of a run that went wrong, even if nothing else is known of it
SIGN = re.compile(
    r"\bFAILED\b|exit ?(?:code|status)\s*:? ?-?[1-9]|by signal \d|^(?:Hangup|Terminated)$|"
    r"^\[?[EF]\d{3,4} |\[[EF] ?\d{0,4} |"
    r"\bSIG[A-Z]{3,}[12]?\b|\bKilled\b|\bOOM|Segmentation fault|Bus error|core dumped|"
    r"exited with code [1-9]|exits with return code = -?[1-9]|\bExitCode [1-9]|##\[error\]|"
    r"MPI_ABORT was invoked|"
    r"can't open file '|^\S*python[\d.]*: No module named|Exception in thread|"
    r"raceback \(most recent|Fatal Python error"
)
# what a command said before its launcher told that it had failed
LAST_WORDS = re.compile(
    r"^\S+\.py: error: |can't open file '|^\S*python[\d.]*: No module named |"
    r"^\S+: (?:\S+: )?command not found"
)
RANKS = re.compile(
    r"torchrun|torch[./]distributed|DistributedDataParallel|nn/parallel/distributed|ProcessGroup|"
    r"NCCL|ncclComm|srun: |slurmstepd|WORLD_SIZE|world_size|-- Process \d+ terminated|"
    r"torch/multiprocessing/spawn|GLOBAL_RANK|accelerate/|deepspeed"
)
READ = "read the first error of the first rank that failed: later ones often follow from it"


@dataclass(frozen=True)
class Chain:
    """Exceptions of which one led to the next, the first one first."""

    errors: tuple[LoggedError, ...]

    @property
    def follows(self) -> Diagnosis | None:
        """What it means if it began with a rank that went away or did not come."""
        return recognise(self.errors[0], consequences())

    @property
    def meaning(self) -> tuple[Diagnosis, LoggedError] | None:
        """What the first of them that is known means."""
        for error in self.errors:
            known = _known(error)
            if known and not is_of_cleaning_up(known, error):
                return known, error
        return None


def diagnose_text(text: str, exit_code: int | None = None) -> list[Diagnosis]:
    """Name the causes that a log shows: of torchrun, mp.spawn, Slurm, or a plain script.

    Args:
        text: everything that was printed, of one rank or of many.
        exit_code: how the command ended, if known; after 0 nothing is reported.

    Returns:
        The recognised causes, the root first; what is not recognised comes as kind
        `not-recognised`, with the first line that should be read.
    """
    return [] if exit_code == 0 else diagnose_lines(read_text(text), exit_code, last_line(text))


def diagnose_lines(
    lines: Sequence[Line], exit_code: int | None = None, last: str = ""
) -> list[Diagnosis]:
    """The same for a log of which only the lines that matter were read."""
    lines = without_ignored(lines)
    told = recognise_lines(lines)
    root = find_root_cause(lines)
    chains = _in_order(read_chains(lines), root, lines)
    told += _errors_told(chains)
    return _choose(told, root, exit_code) or _at_least(lines, exit_code, last)


# what a scheduler does to the other ranks, and says in the same log, follows from the first
SCHEDULERS = ("time-limit", "preempted", "node-failed", "cancelled", "task-failed", "evicted")


def _without_what_follows(told: Sequence[Diagnosis]) -> list[Diagnosis]:
    kinds = {each.kind for each in told if each.comes in ("first", "", "after", "last")}
    dropped = set()
    if "task-failed" in kinds:
        dropped |= {"cancelled", "ended-from-outside"}
        if kinds - dropped - {"task-failed"}:
            dropped.add("task-failed")  # the task's own words are in this log
    if kinds.intersection(SCHEDULERS):
        dropped.add("ended-from-outside")
    return [each for each in told if each.kind not in dropped]


def _choose(
    told: Sequence[Diagnosis], root: RootCause | None, exit_code: int | None
) -> list[Diagnosis]:
    """The causes in order: what follows from another is told after it, or not at all."""
    told = _without_what_follows(told)

    def those(comes: str) -> list[Diagnosis]:
        return [each for each in told if each.comes == comes]

    chosen = [*those("first"), *those(""), *those("after"), *those("last")]
    code = recognise_exit_code(exit_code)
    others = (
        [code] if code else [],
        those("consequence"),
        _error_is_elsewhere(root),
        those("note"),
    )
    return _distinct(chosen or next(filter(None, others), []))


def _distinct(found: Iterable[Diagnosis]) -> list[Diagnosis]:
    """One of each kind, the first."""
    by_kind: dict[str, Diagnosis] = {}
    for diagnosis in found:
        by_kind.setdefault(diagnosis.kind, diagnosis)
    return list(by_kind.values())


def last_line(text: str) -> str:
    """The last line with something in it."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def read_chains(lines: Sequence[Line]) -> list[Chain]:
    """The errors of a log, those together of which one led to the next."""
    of_ranks = any(line.rank for line in lines) or any(RANKS.search(line.text) for line in lines)
    chains = []
    for error in read_errors(lines):
        error.of_ranks = of_ranks
        if error.led_to is None:
            chains.append(Chain((*reversed(list(_inner(error))), error)))
    return chains


def _inner(error: LoggedError) -> Iterator[LoggedError]:
    while error.inner:
        error = error.inner
        yield error


def _outer(error: LoggedError) -> Iterator[LoggedError]:
    while error.led_to:
        error = error.led_to
        yield error


def _in_order(chains: list[Chain], root: RootCause | None, lines: Sequence[Line]) -> list[Chain]:
    """Those of torchrun's first rank first, and last those that their rank survived."""
    named = {chain.errors[0].rank for chain in chains}
    alone = len(named) == 1 and not any(RANKS.search(line.text) for line in lines)
    # a rank goes on after an error that it caught, and ends with its last traceback
    ends = [(at, c.errors[-1]) for at, c in enumerate(chains) if c.errors[-1].places]
    last = {error.rank: at for at, error in ends if not error.beside}

    def key(at: int) -> tuple[bool, bool]:
        rank = chains[at].errors[0].rank
        survived = (alone or rank != "") and last.get(rank, at) > at
        return survived, bool(root) and rank != root.rank  # type: ignore[union-attr]  # if root

    return [chains[at] for at in sorted(range(len(chains)), key=key)]


def _errors_told(chains: Sequence[Chain]) -> Iterator[Diagnosis]:
    unknown = True
    for chain in chains:
        first = chain.errors[0]
        if follows := chain.follows:
            yield replace(follows, seen=_seen(first))
        elif known := chain.meaning:
            yield replace(known[0], seen=_seen(known[1]))
        elif unknown:
            unknown = first.kind == "ncclWarning"  # many of them are harmless
            yield replace(_unknown_error(first), comes="last" if unknown else "")


def _known(error: LoggedError) -> Diagnosis | None:
    if finding := _finding(error):
        return Diagnosis(finding[3], finding[1].splitlines()[0], finding[2])
    return recognise(error, known_errors())


def _finding(error: LoggedError) -> re.Match[str] | None:
    return FINDING.match(error.message) if error.kind == "SanitizerError" else None


def _seen(error: LoggedError) -> tuple[str, ...]:
    """The error as the log tells it: who, where, its words, and the line of code."""
    where = f"{replace(error.line, rank=error.rank).where}: " if error.line else ""
    if finding := _finding(error):
        details = finding[1].splitlines()
        return (
            f"{where}{error.kind}: {details[0]}",
            *(f"  {line.strip()}" for line in details[1:]),
        )
    first, *more = error.whole()
    return (f"{where}{first}", *(f"  {line.strip()}" for line in more), *_at(error))


def _at(error: LoggedError) -> tuple[str, ...]:
    """The line of the reader's code, perhaps of the error that it led to; else the innermost."""
    chain = [error, *_outer(error), *_inner(error)]
    places = [place for each in chain for place in reversed(each.places)]
    place = next((p for p in places if not NOT_THEIRS.search(p.file)), None) or error.innermost
    if place is None:
        return ()
    source = f": {place.source}" if place.source else ""
    return (f"  at {place}{source}"[:LONGEST],)


def _unknown_error(error: LoggedError) -> Diagnosis:
    shown = "first error: " + error.whole()[0][:LONGEST]
    return Diagnosis("not-recognised", f"not recognised; {shown}", READ, _seen(error))


def _at_least(lines: Sequence[Line], exit_code: int | None, last: str) -> list[Diagnosis]:
    """Of a run that failed without a word that is known: what it is that says so."""
    if cut := read_cut_off(lines):
        head, place = cut
        shown = f"a traceback without its end, at {place}"[:LONGEST]
        seen = (f"{head.where}: {head.text.strip()[:LONGEST]}", f"  at {place}: {place.source}")
        return [Diagnosis("not-recognised", f"not recognised; {shown}", READ, seen)]
    sign = next((line for line in lines if SIGN.search(line.text)), None)
    if sign is not None:
        sign = next((line for line in lines if LAST_WORDS.search(line.text)), sign)
        shown = f"first sign: {sign.text.strip()[:LONGEST]}"
        return [Diagnosis("not-recognised", f"not recognised; {shown}", READ, (quote(sign),))]
    if exit_code:
        shown = f"exit code {exit_code}, last line: {last[:LONGEST] or '(no output)'}"
        return [Diagnosis("not-recognised", f"not recognised; {shown}", READ)]
    return []


def _error_is_elsewhere(root: RootCause | None) -> list[Diagnosis]:
    """torchrun's summary alone: the rank printed its error to a file, or not at all."""
    if root is None:
        return []
    meaning = Diagnosis(
        "error-is-elsewhere",
        f"rank {root.rank} failed first, with exit code {root.exit_code}, and its own error is not "
        "in this log",
        "read that rank's stderr.log in torchrun's --log-dir: `python -m ddp_helpers diagnose DIR` "
        "reads them all; or start with --tee 3, so that errors come here, too",
        (quote(root.line),),
    )
    return [meaning]
