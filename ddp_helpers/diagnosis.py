"""From evidence to a cause and a way out.

`diagnose()` looks at what a run left (exceptions, exit codes, stacks) and names the causes it
recognises. What it does not recognise it leaves alone: a guess costs a learner more than silence.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ddp_helpers.records import Frame, RankError, RankResult

PEER_IS_GONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Timed out waiting",
    "Broken pipe",
    "connectFullMesh failed",
    "remote process exited or there was a network error",
    "Software caused connection abort",
)
WAITING_FUNCTIONS = (
    "all_reduce all_gather all_gather_into_tensor all_gather_object all_to_all all_to_all_single "
    "barrier broadcast broadcast_object_list gather gather_object reduce reduce_scatter "
    "reduce_scatter_tensor scatter scatter_object_list send recv monitored_barrier "
    "init_process_group"
).split()


@dataclass(frozen=True)
class Diagnosis:
    """A cause, and what to do about it."""

    cause: str
    advice: str


def is_consequence(error: RankError) -> bool:
    """True if the rank failed only because another rank went away or never came."""
    return any(text in error.message for text in PEER_IS_GONE)


def waiting_in(stack: Sequence[Frame]) -> str | None:
    """The collective that a rank waits in, from its Python stack (outermost line first)."""
    if any(frame.function == "cleanup_distributed" for frame in stack):
        return "the clean-up of its process group"
    for frame in stack:
        if "torch/distributed/" in frame.filename and frame.function in WAITING_FUNCTIONS:
            return frame.function
        if frame.function == "backward" and frame.filename.endswith("torch/_tensor.py"):
            return "backward"
    return None


def diagnose(ranks: Sequence[RankResult], *, hang: bool = False) -> list[Diagnosis]:
    """Name the causes that the evidence shows, the surest first.

    Args:
        ranks: what each rank left.
        hang: the run was ended because it went on for too long.
    """
    found = [rule(ranks) for rule in RULES]
    if hang:
        found.append(_hang(ranks))
    return [diagnosis for diagnosis in found if diagnosis]


def _on_text(pattern: str, cause: str, advice: str) -> Callable:
    """A rule that looks for a text in any rank's error."""

    def rule(ranks: Sequence[RankResult]) -> Diagnosis | None:
        texts = [str(rank.error) for rank in ranks if rank.error]
        hit = next(filter(None, (re.search(pattern, text) for text in texts)), None)
        return Diagnosis(hit.expand(cause), hit.expand(advice)) if hit else None

    return rule


def _killed(ranks: Sequence[RankResult]) -> Diagnosis | None:
    killed = [rank for rank in ranks if rank.exit_code == -signal.SIGKILL]
    if any(rank.out_of_memory for rank in killed):
        return Diagnosis(
            "memory ran out, and the system killed the rank (its count of such kills went up)",
            "try a smaller batch, fewer ranks, or fewer loader workers",
        )
    if killed:
        return Diagnosis(
            "something outside killed the rank; the system's out-of-memory count did not change",
            "look for a `kill -9`, a scheduler's limit, or a container's limit in `dmesg | tail`",
        )
    return None


def _mismatch(ranks: Sequence[RankResult]) -> Diagnosis | None:
    aborted = any(rank.exit_code == -signal.SIGABRT for rank in ranks)
    if aborted and any("gloo::EnforceNotMet" in rank.output for rank in ranks):
        return Diagnosis(
            "the ranks called collectives that do not match: another shape, dtype or order",
            "print tensor.shape and tensor.dtype on each rank just before the collective",
        )
    return None


def _left_early(ranks: Sequence[RankResult]) -> Diagnosis | None:
    lost = [rank.rank for rank in ranks if rank.error and is_consequence(rank.error)]
    waiting = lost + [rank.rank for rank in ranks if not rank.error and waiting_in(rank.stack)]
    finished = [rank.rank for rank in ranks if rank.ok]
    own = [rank for rank in ranks if not rank.ok and rank.rank not in waiting]
    if waiting and finished and not own:
        return Diagnosis(
            f"{name_ranks(finished)} finished while {name_ranks(waiting)} still waited for it",
            "every rank must make the same collective calls: look for one under `if rank == 0`, "
            "or for ranks with different numbers of batches",
        )
    return None


def _hang(ranks: Sequence[RankResult]) -> Diagnosis | None:
    if not any(rank.stack for rank in ranks):
        return Diagnosis(
            "no rank had begun its function: the machine is busy, or the limit is short",
            "try again with a larger timeout=",
        )
    where = {rank.rank: waiting_in(rank.stack) for rank in ranks if rank.stack}
    waiting = {rank: call for rank, call in where.items() if call}
    if not waiting:
        return Diagnosis(
            "no rank waits for another: the work itself takes longer than the limit",
            "give launch() a larger timeout=",
        )
    if len(set(waiting.values())) > 1:
        groups = {call: [r for r in waiting if waiting[r] == call] for call in waiting.values()}
        calls = ", ".join(f"{call} on {name_ranks(group)}" for call, group in groups.items())
        return Diagnosis(
            f"the ranks wait in different calls ({calls})",
            "all ranks must make the same collectives in the same order",
        )
    if len(waiting) < len(ranks):
        call = next(iter(waiting.values()))
        return Diagnosis(
            f"{name_ranks(list(waiting))} waits in {call}, and not all ranks came",
            "let every rank make that call: look for an `if rank == ...` around it, a slow rank, "
            "or ranks with different numbers of batches",
        )
    return None


def name_ranks(ranks: Sequence[int]) -> str:
    """`rank 1`, `ranks 0 and 2`, `ranks 0, 1 and 2`."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    return f"ranks {', '.join(map(str, ranks[:-1]))} and {ranks[-1]}"


RULES: tuple[Callable[[Sequence[RankResult]], Diagnosis | None], ...] = (
    _killed,
    _mismatch,
    _left_early,
    _on_text(
        r"EADDRINUSE|Address already in use",
        "the port is taken by another program, or by a run that was left over",
        "leave init_method out under launch(), or choose another port",
    ),
    _on_text(
        r"Unable to find address for: (\S+)",
        r"the network interface \1 does not exist, or has no address",
        "unset GLOO_SOCKET_IFNAME, or name an interface that `ip -brief address` shows",
    ),
    _on_text(
        r"environment variable (\w+) expected, but not set",
        r"\1 is not set, so the ranks can't find one another",
        "start with launch() or torchrun, which set it",
    ),
    _on_text(
        r"Default process group has not been initialized",
        "a collective was called before the process group was started",
        "put it inside `with process_group():`",
    ),
    _on_text(
        r"trying to initialize the default process group twice",
        "the process group was started twice",
        "start it once, or call dist.destroy_process_group() in between",
    ),
    _on_text(
        r"doesn't have NCCL built in",
        "this PyTorch build has no NCCL",
        'use backend="gloo", or leave the backend out of process_group()',
    ),
    _on_text(
        r"DDP expects same model across all ranks|appears not to match sizes of the same param",
        "the ranks wrapped different models, or one of them had already failed",
        "build the same model on every rank before DistributedDataParallel(...)",
    ),
    _on_text(
        r"Expected to have finished reduction in the prior iteration",
        "some parameters took no part in the loss, so their gradients were never ready",
        "use every parameter in forward, or pass find_unused_parameters=True",
    ),
    _on_text(
        r"Cannot re-initialize CUDA in forked subprocess",
        "CUDA was used before the process was forked",
        'start ranks with launch() or mp.spawn, never with "fork"',
    ),
    _on_text(
        r"invalid device ordinal|Duplicate GPU detected",
        "there are more ranks than GPUs, or a rank chose another rank's GPU",
        "use one rank per GPU and torch.cuda.set_device(local_rank)",
    ),
    _on_text(
        r"CUDA out of memory",
        "a GPU ran out of memory",
        "use a smaller batch, or load checkpoints with map_location",
    ),
)
