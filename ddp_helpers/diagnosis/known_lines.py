"""Lines of a log that are no exceptions, and yet tell the cause: signals, limits, watchdogs."""

from __future__ import annotations

import re
import signal
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from ddp_helpers.diagnosis.log_marks import Line
from ddp_helpers.diagnosis.rule_files import known_lines
from ddp_helpers.diagnosis.rules import Diagnosis

WATCHDOG = re.compile(
    r"(?:Rank (\d+)\] )?Watchdog caught collective operation timeout: "
    r"WorkNCCL\((?:SeqNum=(\d+), )?OpType=(\w+)"
)
MEMBER = re.compile(r"Initializing distributed: GLOBAL_RANK: \d+, MEMBER: (\d+)/(\d+)")
# nvidia-smi's table: the GPU, perhaps the instance, the process; C is for compute
ON_GPU = re.compile(r"(?:^|\|)\s*(\d+)\s+(?:N/A\s+N/A\s+)?(\d+)\s+C\s+\S.*?\s(\d+)MiB \|")
# torchrun's summary, perhaps with a logger's words in front
FAILURES = re.compile(r"(?:^|.*[\]\s])(Failures:|Root Cause \(first observed failure\):)\s*$")
IN_FAILURE = re.compile(r"(?:^|.*[\]\s])(rank|exitcode)\s*: (-?\d+) \(")
# a text of our own checker: its first line, the way out, and the name of the finding
FINDING = re.compile(r"(.+?)\nwhat to do: ([^\n]+)\n(?:[^\n]*\n)*?\[([a-z][a-z0-9-]+)\]", re.DOTALL)
PRINTED = re.compile(r"sanitizer(, a note)?: (?!watched )(.+)")  # one that no rank raised
LONGEST_FINDING = 30  # lines
SHELL_ADDS = 128  # to a signal's number, to make it an exit code: POSIX asks for more than 128
LONGEST = 200  # characters of a line of the log: two lines of a terminal say which one it is


@dataclass(frozen=True)
class RootCause:
    """What torchrun's last lines say of the rank that failed first."""

    rank: str
    exit_code: int
    line: Line


def recognise_lines(lines: Sequence[Line]) -> list[Diagnosis]:
    """The causes that single lines of a log tell, and those that several tell together."""
    told = _watchdog(lines)  # says more than the rule for what other ranks print of the same
    told += _by_rules(_without_other_failures(lines))
    for look in (_findings, _missing_members, _all_on_gpu_0):
        told += look(lines)
    return told


def recognise_exit_code(code: int | None) -> Diagnosis | None:
    """What an exit code alone tells: a signal as -9, or as a shell counts it, 128 + 9."""
    number = -code if code and code < 0 else (code or 0) - SHELL_ADDS
    told = [rule for rule in known_lines() if rule.signal]
    return next((r.meaning for r in told if signal.Signals[r.signal] == number), None)


def line_means(kind: str) -> Diagnosis:
    """The meaning of the known line of that kind, for who has other evidence of the same."""
    return next(rule.meaning for rule in known_lines() if rule.kind == kind)


def find_root_cause(lines: Sequence[Line]) -> RootCause | None:
    """The rank that torchrun saw fail first, from the summary that it prints at the end."""
    inside, rank = False, ""
    for line in lines:
        if section := FAILURES.match(line.text):
            inside = section[1].startswith("Root")
        elif inside and (value := IN_FAILURE.match(line.text)):
            if value[1] == "exitcode":
                return RootCause(rank, int(value[2]), line)
            rank = value[2]
    return None


def _without_other_failures(lines: Sequence[Line]) -> list[Line]:
    """Without the ranks that torchrun ended because another had failed: theirs is no cause."""
    kept, inside = [], False
    for line in lines:
        if section := FAILURES.match(line.text):
            inside = section[1] == "Failures:"
        if not inside:
            kept.append(line)
    return kept if any("Root Cause" in line.text for line in kept) else list(lines)


def _by_rules(lines: Sequence[Line]) -> Iterator[Diagnosis]:
    text = "\n".join(line.text for line in lines)
    starts = list(accumulate((len(line.text) + 1 for line in lines), initial=0))
    for rule in known_lines():
        if hit := rule.find(text):
            begin = hit.start() + len(hit[0]) - len(hit[0].lstrip())  # ^\s* may begin above
            line = lines[bisect_right(starts, begin) - 1]
            yield replace(rule.meaning, seen=(quote(line),))


def quote(line: Line) -> str:
    """A line of the log, with its rank and its place."""
    return f"{line.where}: {line.text.strip()[:LONGEST]}"


def _findings(lines: Sequence[Line]) -> list[Diagnosis]:
    """What the sanitizer printed at the end of a run."""
    found = []
    for at, line in enumerate(lines):
        if not (head := PRINTED.match(line.text)):
            continue
        rest = [
            each.text for each in lines[at + 1 : at + LONGEST_FINDING] if each.source == line.source
        ]
        if told := FINDING.match("\n".join([head[2], *rest])):
            cause, *details = told[1].splitlines()
            seen = (f"{line.where}: {cause}", *(f"  {text.strip()}" for text in details))
            found.append(Diagnosis(told[3], cause, told[2], seen, "note" if head[1] else ""))
    return found


def _watchdog(lines: Sequence[Line]) -> list[Diagnosis]:
    """NCCL's watchdog says which collective each rank waited in, until the limit."""
    calls: dict[int, tuple[int, str]] = {}
    first: Line | None = None
    for line in lines:
        if "Watchdog caught" in line.text and (hit := WATCHDOG.search(line.text)):
            first = first or line
            # each rank's first: the others of its communicators run out after it
            calls.setdefault(int(hit[1] or line.rank or 0), (int(hit[2] or 0), hit[3]))
    if first is None:
        return []
    return [replace(_waited(calls), seen=(quote(first),), comes="after")]


def _waited(calls: Mapping[int, tuple[int, str]]) -> Diagnosis:
    where = ", ".join(
        f"rank {rank} in {call}{f' number {n}' if n else ''}" for rank, (n, call) in calls.items()
    )
    if len(set(calls.values())) > 1:
        return Diagnosis(
            "different-collective",
            f"the ranks waited in different collectives: {where}",
            "all ranks must make the same collectives in the same order",
        )
    return Diagnosis(
        "rank-did-not-come",
        f"not all ranks came to a collective: {where}",
        "look at what the silent ranks did: an error, an `if rank == ...`, or slow work; if none "
        "was silent, at the network between them (NCCL_DEBUG=INFO)",
    )


def _missing_members(lines: Sequence[Line]) -> list[Diagnosis]:
    """Lightning's ranks say who they are, and then wait for those that were never started."""
    came: dict[int, Line] = {}
    world = 0
    for line in lines:
        if "MEMBER: " in line.text and (hit := MEMBER.search(line.text)):
            came.setdefault(int(hit[1]), line)
            world = int(hit[2])
    all_came = any("distributed processes registered" in line.text for line in lines)
    if len(came) < 2 or len(came) >= world or all_came:
        return []
    last = list(came.values())[-1]
    meaning = Diagnosis(
        "rank-missing",
        f"only {len(came)} of {world} ranks were started, and they waited for the others",
        "start one task for each rank: srun's --nodes and --ntasks-per-node must be those of "
        "Trainer(num_nodes=, devices=)",
        (quote(last),),
    )
    return [meaning]


def _all_on_gpu_0(lines: Sequence[Line]) -> list[Diagnosis]:
    """nvidia-smi shows processes of other GPUs on GPU 0, too."""
    gpus: dict[str, set[str]] = defaultdict(set)
    first: Line | None = None
    for line in lines:
        if "MiB |" in line.text and (hit := ON_GPU.search(line.text)):
            first = first or line
            gpus[hit[2]].add(hit[1])
    twice = [pid for pid, on in gpus.items() if "0" in on and len(on) > 1]
    if first is None or not twice:
        return []
    meaning = Diagnosis(
        "all-ranks-on-gpu-0",
        f"processes of other GPUs hold memory on GPU 0, too: {', '.join(twice)}",
        "call torch.cuda.set_device(local_rank) before anything else touches CUDA, and load "
        'checkpoints with map_location="cpu"',
        (quote(first),),
        "note",
    )
    return [meaning]
