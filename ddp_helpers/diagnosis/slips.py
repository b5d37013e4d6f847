"""Common slips of the first launches, read from what each rank called last, or raised."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Mapping, Sequence

from ddp_helpers.diagnosis.rule_files import known_errors
from ddp_helpers.diagnosis.rules import Diagnosis, recognise
from ddp_helpers.evidence.records import LastCall, RankResult
from ddp_helpers.evidence.waits import waiting_in

CUT_OFF = re.compile(r"torch/distributed/|torch/autograd/|torch/nn/parallel/")
WORKER_CRASHED = re.compile(r"ERROR: Unexpected ([\w -]+) encountered in worker")
NOT_IMPORTABLE = re.compile(r"(?:class|function|attribute) '?(?:__main__\.)?(\w+).*__main__")


def find_slips(ranks: Sequence[RankResult]) -> list[Diagnosis]:
    """The slips that the evidence shows; none of them can be anything else."""
    found = [look(rank) for rank in ranks if rank.error for look in (_of_error, _of_worker)]
    if all(_is_stuck(rank) for rank in ranks if not rank.ok):
        found += [_different_tensors(ranks), _different_roots(ranks), _half_a_message(ranks)]
    return list(dict.fromkeys(filter(None, found)))


def _is_stuck(rank: RankResult) -> bool:
    """True unless it had trouble of its own: an error that no call to other ranks has raised."""
    if rank.error:
        return bool(rank.error.frames and CUT_OFF.search(rank.error.frames[-1].filename))
    return rank.exit_code in (None, -signal.SIGABRT)  # gloo ends the process when sizes differ


def _meetings(ranks: Sequence[RankResult]) -> list[dict[int, LastCall]]:
    """Where ranks met, or should have: the same call of the same group, the latest first."""
    calls: dict[tuple, dict[int, LastCall]] = {}
    for rank in ranks:
        last = rank.last_call
        for call in (last, *last.before) if last and not rank.ok else ():
            if call.tensors:
                calls.setdefault((call.number, call.name, call.group), {})[rank.rank] = call
    return [met for met in calls.values() if len(met) > 1]


def _told(met: Mapping[int, LastCall], what: Callable[[LastCall], object]) -> str:
    return ", ".join(f"{what(call)} on rank {rank}" for rank, call in list(met.items())[:4])


def _different_tensors(ranks: Sequence[RankResult]) -> Diagnosis | None:
    for met in _meetings(ranks):
        if len({call.tensors for call in met.values()}) > 1:
            call = next(iter(met.values()))
            return Diagnosis(
                "mismatched-collectives",
                f"{call.name} got different tensors: {_told(met, lambda each: each.tensors)}",
                f"give every rank the same shape and dtype at {call.frame}; what differs between "
                "ranks must be padded, or sent with all_gather_object",
            )
    return None


def _different_roots(ranks: Sequence[RankResult]) -> Diagnosis | None:
    for met in _meetings(ranks):
        call = next(iter(met.values()))
        rooted = call.name not in ("send", "recv", "recv_anysource", "batch_isend_irecv")
        if rooted and len({each.peer for each in met.values()}) > 1:
            word = "src" if call.name.startswith(("broadcast", "scatter")) else "dst"
            return Diagnosis(
                "different-roots",
                f"{call.name} names another {word} on each: {_told(met, lambda each: each.peer)}",
                f"give the same {word} on every rank, such as {word}=0: it says who has the data, "
                "not who calls",
            )
    return None


def _half_a_message(ranks: Sequence[RankResult]) -> Diagnosis | None:
    """A rank waits to receive from one that does not send to it, or the reverse."""
    for rank in ranks:
        call, other = rank.last_call, {"recv": "send", "send": "recv"}
        if not call or _waits_in(rank) != call.name or call.name not in other:
            continue
        if call.peer is None or not call.group.endswith(f" of {len(ranks)}"):
            continue  # of a smaller group, whose ranks have other numbers
        peer = ranks[call.peer]
        there = peer.last_call
        now = "has finished" if peer.ok else _place(peer)
        if now and (there is None or (there.name, there.peer) != (other[call.name], rank.rank)):
            word = "from" if call.name == "recv" else "to"
            side = "src" if call.name == "send" else "dst"
            return Diagnosis(
                "half-a-message",
                f"rank {rank.rank} waits in {call.name} {word} rank {peer.rank}, and rank "
                f"{peer.rank} {now}",
                f"rank {peer.rank} must call {other[call.name]}(tensor, {side}={rank.rank}); or "
                f"take the {call.name} away at {call.frame}",
            )
    return None


def _waits_in(rank: RankResult) -> str | None:
    """The call in which it stood, or in which it was cut off."""
    return waiting_in(rank.stack) or (waiting_in(rank.error.frames) if rank.error else None)


def _place(rank: RankResult) -> str | None:
    """What it waits in instead; one that is elsewhere may still come."""
    call = _waits_in(rank)
    return f"waits in {call}" if call else None


def _of_worker(rank: RankResult) -> Diagnosis | None:
    """Why a loader's worker `exited unexpectedly`, which only its rank's output tells."""
    hit = WORKER_CRASHED.search(rank.output)
    if not hit or not rank.error or "exited unexpectedly" not in rank.error.message:
        return None
    text = f"RuntimeError: DataLoader worker (pid 1) is killed by signal: {hit[1].capitalize()}."
    return recognise(text, known_errors())


def _of_error(rank: RankResult) -> Diagnosis | None:
    error = rank.error
    assert error is not None
    if error.type_name == "BdbQuit" or (
        error.type_name == "EOFError" and "reading a line" in error.message
    ):
        return Diagnosis(
            "no-keyboard",
            "a rank has no keyboard here: input() and breakpoint() find nothing to read",
            "run it in a notebook or a terminal, where they ask you; here, pass in what they would "
            "read, and print or return what you want to see",
        )
    hit = NOT_IMPORTABLE.search(error.message)
    if hit and error.type_name in ("PicklingError", "AttributeError"):
        return Diagnosis(
            "class-in-main",
            f"a loader's worker that is not forked has to import {hit[1]}, and what a notebook or "
            "a running script defines can't be imported",
            f"put {hit[1]} into a file and import it from there, or launch the file's function: "
            '`launch("FILE.py:FUNCTION")`; or give the loader multiprocessing_context="fork"',
        )
    return None
