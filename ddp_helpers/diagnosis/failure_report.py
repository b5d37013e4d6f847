"""The text a learner sees when a launch fails: the cause first, in at most twenty lines."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence

from ddp_helpers.diagnosis.causes import diagnose, is_consequence
from ddp_helpers.diagnosis.hang_causes import child_waited_for
from ddp_helpers.diagnosis.log_files import read_text
from ddp_helpers.diagnosis.log_ignored import without_ignored
from ddp_helpers.diagnosis.log_text import WRAPPING, chain_of_rank, read_errors
from ddp_helpers.diagnosis.raised import NOT_THEIRS, LoggedError
from ddp_helpers.diagnosis.rule_files import consequences
from ddp_helpers.diagnosis.rules import recognise
from ddp_helpers.diagnosis.slips import find_slips
from ddp_helpers.evidence.records import (
    LaunchResult,
    RankError,
    RankResult,
    innermost_user_frame,
    name_ranks,
)
from ddp_helpers.evidence.waits import waiting_in

MOST_LINES = 20  # fit under a cell, or in a terminal of 24 lines, without scrolling
MOST_RANKS = 4  # of a group that gets a line each; what more of them did adds nothing
MOST_STANDING = 8  # when ranks hang, where they stand is all there is: a node's worth of them
MOST_CAUSES = 2  # the surest first; more of them push the failure itself out of sight
FIRST_LINES = 3  # who failed, at which line, and the line itself
LOST = "lost the connection to another rank"
TIMED_OUT = re.compile(r"Timed out waiting|Socket Timeout|[Ww]ait timeout")
LONGEST = 300  # characters of one message line; three lines of a terminal


def failure_report(
    ranks: Sequence[RankResult],
    *,
    timeout: float | None = None,
    stranded: bool = False,
    kept_in: str | None = None,
) -> str:
    """Say which rank failed, where, why, and what to do.

    Args:
        ranks: what each rank left.
        timeout: the limit in seconds that ran out, if it did.
        stranded: some ranks waited for others that had ended.
        kept_in: the file that has the full tracebacks, if there is one.
    """
    hang = bool(timeout) or stranded
    causes = [] if hang else find_causes(ranks)
    found = _finding_lines(ranks, causes)
    if found:
        return "\n".join(found[:MOST_LINES])
    if hang:
        lines = _hang_lines(ranks, timeout)
    else:
        lines = _cause_lines(causes, ranks)
        lines += _other_lines(ranks, causes, lines[0])
    for diagnosis in (find_slips(ranks) or diagnose(ranks, hang=bool(timeout)))[:MOST_CAUSES]:
        lines += [f"why: {diagnosis.cause}", f"what to do: {diagnosis.advice}"]
    lines = lines[: MOST_LINES - 1]
    if any(rank.traceback for rank in causes):
        asked = f"print(sys.last_value.result[{causes[0].rank}].traceback)"
        lines.append(f"full traceback: {kept_in or asked}")
    return "\n".join(lines)


def _finding_lines(ranks: Sequence[RankResult], causes: Sequence[RankResult]) -> list[str]:
    """What the sanitizer found, if that ended the run."""
    if not causes or causes[0].error is None or causes[0].error.type_name != "SanitizerError":
        return []
    findings = [finding for finding in LaunchResult(tuple(ranks)).findings if finding.serious]
    lines = [line for finding in findings[:1] for line in f"sanitizer: {finding}".splitlines()]
    late = findings[0].ranks if findings and findings[0].kind == "rank-did-not-come" else ()
    lines[1:1] = [f"  {_stands(rank)}" for rank in ranks if rank.rank in late and rank.stack]
    return lines + [f"also: {finding.cause} [{finding.kind}]" for finding in findings[1:]]


def find_causes(ranks: Sequence[RankResult]) -> list[RankResult]:
    """The ranks that failed for a reason of their own, the first to fail first."""
    failed = [rank for rank in ranks if not rank.ok and not _was_ended(rank)]
    own = [rank for rank in failed if not (rank.error and is_consequence(rank.error))]
    # a rank that died raised nothing, so nobody knows when: it may have been first
    own.sort(key=lambda rank: rank.error.at if rank.error else 0.0)
    return own or failed  # if all were cut off, there is nothing better to show


def _was_ended(rank: RankResult) -> bool:
    """True if the rank was well, and the launcher ended it."""
    return rank.error is None and rank.exit_code is None


def _cause_lines(causes: Sequence[RankResult], ranks: Sequence[RankResult]) -> list[str]:
    first = causes[0]
    alike = [rank for rank in causes if _how(rank) == _how(first)]
    finished = [rank for rank in ranks if rank.ok]
    lines = [f"{_named(alike)} {_how(first)}"]
    if finished and _lost_the_connection(first):
        lines = [f"{_named(finished)} had finished: {_named(alike)} {LOST}"]
    late = [rank for rank in ranks if rank.stack and not (rank.ok or waiting_in(rank.stack))]
    if late and TIMED_OUT.search(str(first.error)) and _lost_the_connection(first):
        lines = [f"{_stands(late[0])}, and {_named(alike)} gave up waiting for it"]
    if first.error:
        lines += _rest_of(first.error) if not _lost_the_connection(first) else []
        lines += _place(first.error)
    lines += [f"also, {line}" for line in _thread_lines(causes)]
    for rank in causes:
        if _how(rank) != _how(first) and len(lines) < FIRST_LINES + MOST_RANKS:
            lines.append(f"also, {_named([rank])} {_how(rank)}")
    return lines


def _rest_of(error: RankError) -> list[str]:
    """Further lines of the message, and the exceptions that led to it or are in its group."""
    chain = chain_of_rank(error)
    if error.type_name in WRAPPING:
        return [f"  {_cut(str(each))}" for each in chain[:MOST_RANKS]]
    lines = [f"  {line.strip()}" for line in chain[-1].whole()[1:]]
    return lines + [
        f"  it came from {_cut(str(each))}" for each in reversed(chain[:-1][-MOST_CAUSES:])
    ]


def _place(error: RankError) -> list[str]:
    """The reader's own line; if a loader's worker raised it, the line in the worker."""
    last = chain_of_rank(error)[-1:]
    inside = [place for each in last if each.worker for place in each.places]
    theirs = [place for place in inside if not NOT_THEIRS.search(place.file)]
    if theirs:
        where, source = str(theirs[-1]), theirs[-1].source
    elif error.user_frame:
        where, source = str(error.user_frame), error.user_frame.source
    else:
        return []
    return [f"  at {where}"] + ([f"    {_cut(source)}"] if source else [])


def _lost_the_connection(rank: RankResult) -> bool:
    """True if all it has to tell is that another rank went away, which is never the cause."""
    return rank.error is not None and is_consequence(rank.error)


def _how(rank: RankResult) -> str:
    if rank.error and rank.error.type_name == "SystemExit":
        return f"called sys.exit({rank.error.message})"
    if _lost_the_connection(rank):
        return LOST
    if rank.error and rank.error.type_name in WRAPPING:
        return f"failed: {_cut(str(rank.error))}"
    if rank.error:
        return f"failed: {chain_of_rank(rank.error)[-1].whole()[0]}"
    if rank.exit_code is not None and rank.exit_code < 0:
        return f"was ended by {signal_in_words(-rank.exit_code)}"
    return f"ended with exit code {rank.exit_code} before its function returned (os._exit?)"


def signal_in_words(number: int) -> str:
    """`SIGSEGV (a crash in compiled code)`."""
    words: dict[int, str] = {
        signal.SIGKILL: "killed from outside",
        signal.SIGSEGV: "a crash in compiled code",
        signal.SIGABRT: "compiled code gave up; its message is in the rank's output",
        signal.SIGTERM: "somebody asked it to end",
        signal.SIGBUS: "a bad memory access; perhaps /dev/shm is full",
    }
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    return f"{name} ({words[number]})" if number in words else name


def _other_lines(ranks: Sequence[RankResult], causes: Sequence[RankResult], told: str) -> list[str]:
    """The rest in a line each: consequences are named, not quoted; but for who is told already."""
    named = {rank.rank for rank in causes} | {rank.rank for rank in ranks if rank.ok}
    rest = [rank for rank in ranks if rank.rank not in named]
    lost = [rank for rank in rest if rank.error]
    lines = [f"{_named(lost)} then lost the connection"] if lost else []
    ended = [rank for rank in rest if _was_ended(rank) and _stands(rank) not in told]
    lines += [f"{_stands(rank)}, and was ended" for rank in ended[:MOST_RANKS]]
    if len(ended) > MOST_RANKS:
        lines.append(f"{len(ended) - MOST_RANKS} more ranks were ended")
    return lines


def stopped_report(ranks: Sequence[RankResult], seconds: float) -> str:
    """Say where each rank stood when the reader stopped them after so many seconds."""
    lines = [f"stopped after {seconds:.1f} s, and all ranks have ended", *_standing_lines(ranks)]
    return "\n".join(lines[:MOST_LINES])


def _hang_lines(ranks: Sequence[RankResult], timeout: float | None) -> list[str]:
    """Where each rank stands; without a timeout, some wait for others that have ended."""
    first = (
        f"the ranks did not end within {timeout:g} s, and were ended"
        if timeout
        else "a rank waited for others that had already ended"
    )
    return [first, *_thread_lines(ranks), *_standing_lines(ranks)]


def _thread_lines(ranks: Sequence[RankResult]) -> list[str]:
    """The threads that died: a rank goes on without them, and then waits for what never comes."""
    lines = []
    for rank in ranks:
        if rank.ok or "Exception in thread" not in rank.output:
            continue
        printed = read_errors(without_ignored(read_text(rank.output)))
        found = [each for each in printed if _is_of_a_thread(each)][:1]
        for error in found:
            theirs = [place for place in error.places if not NOT_THEIRS.search(place.file)]
            where = f", at {theirs[-1]}" if theirs else ""
            lines.append(f"{_named([rank])} had lost a thread: {error.whole()[0]}{where}")
    return lines[:MOST_RANKS]


def _is_of_a_thread(error: LoggedError) -> bool:
    """True but for the loader's own thread, which breaks when the rank ends before it."""
    own = error.worker.startswith("thread ") and "_pin_memory_loop" not in error.worker
    return own and recognise(error, consequences()) is None


def _standing_lines(ranks: Sequence[RankResult]) -> list[str]:
    finished = [rank for rank in ranks if rank.ok]
    lines = [f"{_named(finished)} had finished"] if finished else []
    standing = [rank for rank in ranks if not rank.ok]
    for rank in standing[:MOST_STANDING]:
        frame = innermost_user_frame(rank.stack)
        source = f": {_cut(frame.source)}" if frame and frame.source else ""
        lines.append(f"{_stands(rank)}{source}")
        if rank.last_call and not waiting_in(rank.stack):
            lines.append(f"  its last collective was {rank.last_call}")
    return lines


def _stands(rank: RankResult) -> str:
    name = _named([rank])
    if rank.stopped:
        return f"{name} was paused from outside (SIGSTOP: `kill -CONT` wakes it)"
    if (rank.error or rank.exit_code is not None) and not (
        rank.stack and _lost_the_connection(rank)
    ):
        return f"{name} {_how(rank)}"
    if not rank.stack and rank.last_call:
        return f"{name} did not tell where it was"
    if not rank.stack:
        return f"{name} was still starting"
    place = innermost_user_frame(rank.stack) or rank.stack[-1]
    if place.is_launcher:
        return f"{name} was on its way into its function, or out of it"
    call, child = waiting_in(rank.stack), child_waited_for(rank.stack)
    waited = f"waited in {call}" if call else f"waited for {child}" if child else "was"
    return f"{name} {waited} at {place}"


def _named(ranks: Sequence[RankResult]) -> str:
    """`ranks 0 and 1`; of several hosts `rank 1 on host a and ranks 2 and 3 on host b`."""
    on_hosts: dict[str, list[int]] = {}
    for rank in sorted(ranks, key=lambda rank: rank.rank):
        on_hosts.setdefault(rank.host, []).append(rank.rank)
    return " and ".join(
        name_ranks(numbers) + (f" on host {host}" if host else "")
        for host, numbers in on_hosts.items()
    )


def _cut(text: str) -> str:
    first = (text.strip().splitlines() or [""])[0]
    return first if len(first) <= LONGEST else first[: LONGEST - 3] + "..."
