"""From evidence to a cause and a way out.

`diagnose()` looks at what a run of `launch()` left (exceptions, exit codes, stacks, output);
log_causes.py looks at the log of any other run. They name the causes they recognise. What they do
not recognise they leave alone: a guess costs a learner more than silence.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterable, Sequence

from ddp_helpers.diagnosis.hang_causes import find_hang_cause
from ddp_helpers.diagnosis.known_lines import line_means, recognise_exit_code, recognise_lines
from ddp_helpers.diagnosis.log_files import read_text
from ddp_helpers.diagnosis.log_text import chain_of_rank, read_errors
from ddp_helpers.diagnosis.raised import LoggedError
from ddp_helpers.diagnosis.rule_files import consequences, known_errors
from ddp_helpers.diagnosis.rules import Diagnosis, is_of_cleaning_up, recognise
from ddp_helpers.evidence.records import RankError, RankResult, name_ranks
from ddp_helpers.evidence.waits import waiting_in

# where a rank takes a batch from a loader worker of its own: one that is gone is no other rank
LOADER_WORKER = "multiprocessing/resource_sharer.py"


def is_consequence(error: RankError) -> bool:
    """True if the rank failed only because another rank went away or never came."""
    if any(frame.filename.endswith(LOADER_WORKER) for frame in error.frames):
        return False
    chain = chain_of_rank(error)
    meant = recognise(chain[0], consequences())
    if meant and meant.kind == "helper-process-gone":  # why it is gone, the last one may tell
        meant = recognise(chain[-1], consequences())
    return meant is not None


def diagnose(ranks: Sequence[RankResult], *, hang: bool = False) -> list[Diagnosis]:
    """Name the causes that the evidence shows, the surest first.

    Args:
        ranks: what each rank left.
        hang: the run was ended because it went on for too long.
    """
    raised = sorted((rank.error for rank in ranks if rank.error), key=lambda error: error.at)
    crashed = [rank for rank in ranks if not rank.error and rank.exit_code]
    # what the system did to a rank is sure; what a log says may be about something else
    found = [_killed(crashed)]
    found += [_cause_of(error) for error in raised if not is_consequence(error)]
    found += [_last_words(rank) for rank in crashed]
    printed = recognise_lines(read_text("".join(rank.output for rank in ranks if not rank.ok)))
    found += [told for told in printed if told.comes != "note"]
    waits = [_ended_early(ranks), _came_late(ranks)]
    if hang and not any(waits):
        waits.append(find_hang_cause(ranks))
    return _distinct(found + waits)


def _cause_of(error: RankError) -> Diagnosis | None:
    known = ((_meaning(each), each) for each in chain_of_rank(error))
    return next((told for told, each in known if told and not is_of_cleaning_up(told, each)), None)


def _meaning(error: LoggedError) -> Diagnosis | None:
    return recognise(error, known_errors())


def _distinct(found: Iterable[Diagnosis | None]) -> list[Diagnosis]:
    """One of each kind, the first."""
    by_kind: dict[str, Diagnosis] = {}
    for diagnosis in filter(None, found):
        by_kind.setdefault(diagnosis.kind, diagnosis)
    return list(by_kind.values())


def _killed(crashed: Sequence[RankResult]) -> Diagnosis | None:
    killed = [rank for rank in crashed if rank.exit_code == -signal.SIGKILL]
    if any(rank.out_of_memory for rank in killed):
        return line_means("out-of-memory")
    if killed:
        return Diagnosis(
            "killed",
            "something outside killed the rank; the system's out-of-memory count did not change",
            "look for a `kill -9`, a scheduler's limit, or a container's limit in `dmesg | tail`",
        )
    return None


def _last_words(rank: RankResult) -> Diagnosis | None:
    """The last error that a rank printed before it ended without a Python exception."""
    code = rank.exit_code or 0
    if code == -signal.SIGABRT or code > 0:
        errors = read_errors(read_text(rank.output))  # the rank went on after all but the last
        return _meaning(errors[-1]) if errors else None
    return recognise_exit_code(code)


def _ended_early(ranks: Sequence[RankResult]) -> Diagnosis | None:
    # a rank that finished leaves the others in one of two ways: cut off, or waiting still
    lost = [rank.rank for rank in ranks if rank.error and is_consequence(rank.error)]
    open_ended = [rank for rank in ranks if not (rank.error or rank.ok)]
    waiting = lost + [rank.rank for rank in open_ended if waiting_in(rank.stack)]
    finished = [rank.rank for rank in ranks if rank.ok]
    own = [rank for rank in ranks if not rank.ok and rank.rank not in waiting]
    if waiting and finished and not own:  # one with trouble of its own is the cause instead
        return Diagnosis(
            "rank-ended-early",
            f"{name_ranks(finished)} finished while {name_ranks(waiting)} still waited for it",
            "every rank must make the same collective calls: look for one under `if rank == 0`, "
            "or for ranks with different numbers of batches",
        )
    return None


def _came_late(ranks: Sequence[RankResult]) -> Diagnosis | None:
    """A rank lost patience while another was still busy with something else."""
    errors = [rank.error for rank in ranks if rank.error]
    impatient = any(re.search(r"Timed out waiting|Socket Timeout", str(error)) for error in errors)
    if not impatient or not all(map(is_consequence, errors)):
        return None
    busy = [r.rank for r in ranks if not r.error and r.stack and not waiting_in(r.stack)]
    if not busy:
        return None
    return Diagnosis(
        "rank-did-not-come",
        f"{name_ranks(busy)} did not come to the collective within the group's limit",
        "prepare data once and before the run, or give process_group() a larger timeout=",
    )
