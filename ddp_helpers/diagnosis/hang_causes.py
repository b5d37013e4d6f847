"""Why ranks do not end: read from where each of them stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ddp_helpers.diagnosis.rules import Diagnosis
from ddp_helpers.evidence.records import Frame, RankResult, name_ranks
from ddp_helpers.evidence.waits import waiting_in


def find_hang_cause(ranks: Sequence[RankResult]) -> Diagnosis | None:
    """Why a run went on until it was ended, or None where the stacks do not tell."""
    stacks = {rank.rank: rank.stack for rank in ranks if rank.stack}
    if not stacks:
        return Diagnosis(
            "never-began",
            "no rank had begun its function: the machine is busy, or the limit is short",
            "try again with a larger timeout=",
        )
    waits = {rank: call for rank, stack in stacks.items() if (call := waiting_in(stack))}
    # before the waits: a rank that waits for its child makes the others wait in a collective
    for_child = [rank for rank, stack in stacks.items() if child_waited_for(stack)]
    if for_child:
        return _stuck_child(for_child)
    if not waits:
        return _other_numbers_of_calls(ranks) or Diagnosis(
            "takes-longer",
            "no rank waits for another: the work itself takes longer than the limit",
            "give launch() a larger timeout=",
        )
    return _waiting(waits, len(ranks))


def _other_numbers_of_calls(ranks: Sequence[RankResult]) -> Diagnosis | None:
    """Under nccl, and with async_op, a rank waits in no collective but at a later line."""
    calls = {rank.rank: rank.last_call.number if rank.last_call else 0 for rank in ranks}
    if len(set(calls.values())) == 1:
        return None
    told = ", ".join(f"rank {rank}: {number}" for rank, number in calls.items())
    return Diagnosis(
        "calls-differ",
        "no rank stands in a collective, but they have not called equally many "
        f"({told}): one is missing, or the work takes longer than the limit",
        "let every rank make the same calls (under nccl, and with async_op=True, a rank waits at "
        "the line that needs the result), or give launch() a larger timeout=",
    )


def child_waited_for(stack: Sequence[Frame]) -> str | None:
    """The process of its own that a rank waits for: one that it joins, or its loader's workers."""
    if any(
        frame.filename.endswith("torch/utils/data/dataloader.py")
        and frame.function in ("_get_data", "_try_get_data")
        for frame in stack
    ):
        return "its loader's workers"
    fork = any(frame.filename.endswith("multiprocessing/popen_fork.py") for frame in stack)
    return "its child process" if fork else None


def _verb(ranks: Sequence[int]) -> str:
    return "waits" if len(ranks) == 1 else "wait"


def _stuck_child(ranks: Sequence[int]) -> Diagnosis:
    return Diagnosis(
        "child-stuck",
        f"{name_ranks(ranks)} {_verb(ranks)} for a child process that does not end: a fork of "
        "a process with threads or CUDA in use often freezes",
        'start children with "spawn" or "forkserver", or before the threads; '
        "for a loader try num_workers=0",
    )


def _waiting(waits: Mapping[int, str], world_size: int) -> Diagnosis | None:
    calls = sorted(set(waits.values()), key=list(waits.values()).index)
    if len(calls) > 1:
        where = ", ".join(
            f"{call} on {name_ranks([rank for rank in waits if waits[rank] == call])}"
            for call in calls
        )
        return Diagnosis(
            "different-collective",
            f"the ranks wait in different calls ({where})",
            "all ranks must make the same collectives in the same order: look for one under "
            "`if rank == ...`, or for loops of different lengths",
        )
    if len(waits) < world_size:
        return Diagnosis(
            "rank-did-not-come",
            f"{name_ranks(list(waits))} {_verb(list(waits))} in {calls[0]}, and not all ranks came",
            "let every rank make that call: look for an `if rank == ...` around it, a slow rank, "
            "or ranks with different numbers of batches",
        )
    return _all_wait_in(calls[0])


def _all_wait_in(call: str) -> Diagnosis | None:
    if call == "init_process_group":
        return Diagnosis(
            "rank-missing",
            "all ranks wait in init_process_group for more ranks than were started",
            "leave world_size to the launcher, or start as many ranks as it says",
        )
    if call in ("recv", "send"):
        other = "sends" if call == "recv" else "receives"
        return Diagnosis(
            "all-wait",
            f"every rank waits in {call}, and none {other}",
            "let one half of the ranks send while the other half receives, "
            "or use dist.batch_isend_irecv",
        )
    return None
