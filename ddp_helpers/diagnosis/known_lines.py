"""Lines of a log that are no exceptions, and yet tell the cause: signals, limits, watchdogs."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping

from ddp_helpers.diagnosis.rule_files import known_lines
from ddp_helpers.diagnosis.rules import Diagnosis

WATCHDOG = re.compile(
    r"Rank (\d+)\] Watchdog caught collective operation timeout: "
    r"WorkNCCL\(SeqNum=(\d+), OpType=(\w+)"
)
SHELL_ADDS = 128  # to a signal's number, to make it an exit code: POSIX asks for more than 128


def recognise_lines(text: str) -> list[Diagnosis]:
    """The causes that single lines of a log tell."""
    found = [meaning for rule in known_lines() if (meaning := rule.match(text))]
    calls = {int(rank): (int(number), call) for rank, number, call in WATCHDOG.findall(text)}
    return ([_watchdog(calls)] if calls else []) + found


def recognise_exit_code(code: int | None) -> Diagnosis | None:
    """What an exit code alone tells: a signal as -9, or as a shell counts it, 128 + 9."""
    number = -code if code and code < 0 else (code or 0) - SHELL_ADDS
    told = [rule for rule in known_lines() if rule.signal]
    return next((r.meaning for r in told if signal.Signals[r.signal] == number), None)


def line_means(kind: str) -> Diagnosis:
    """The meaning of the known line of that kind, for who has other evidence of the same."""
    return next(rule.meaning for rule in known_lines() if rule.kind == kind)


def _watchdog(calls: Mapping[int, tuple[int, str]]) -> Diagnosis:
    """NCCL's watchdog says which collective each rank waited in, until the limit."""
    where = ", ".join(f"rank {rank} in {call} number {n}" for rank, (n, call) in calls.items())
    if len(set(calls.values())) > 1:
        return Diagnosis(
            "different-collective",
            f"the ranks waited in different collectives: {where}",
            "all ranks must make the same collectives in the same order",
        )
    return Diagnosis(
        "rank-did-not-come",
        f"not all ranks came to a collective: {where}",
        "look at what the silent ranks did: an error, an `if rank == ...`, or slow work",
    )
