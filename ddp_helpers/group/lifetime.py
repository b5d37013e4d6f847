"""Start and end a process group without the usual traps.

`with process_group() as pg:` is the whole life of a group: it reads the environment that
torchrun, `launch()` or Slurm left, picks nccl or gloo, and cleans up in every case.
`init_distributed_mode()` and `cleanup_distributed()` are the plain pair under it.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from types import ModuleType
from typing import TYPE_CHECKING

from ddp_helpers.arguments import check_whole
from ddp_helpers.group.devices import agree, check_backend, choose_backend, decide, look, tell
from ddp_helpers.group.rendezvous import (
    check_init_method,
    check_slurm_step,
    default_init_method,
)
from ddp_helpers.group.torch_mends import hold_ended_group, mend_rendezvous, release_ended_groups

if TYPE_CHECKING:
    import torch


DEFAULT_TIMEOUT = timedelta(minutes=10)
_kept: ProcessGroup | None = None  # a session's: it outlives the blocks of what runs in it


@dataclass(frozen=True)
class ProcessGroup:
    """Who this process is within its group."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    backend: str
    gpu: int | None = field(default=None, repr=False)
    """The number of its GPU among those that it sees; None under gloo."""

    @property
    def is_main(self) -> bool:
        """True on rank 0, the one that prints and saves."""
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        """This rank's own GPU under nccl, otherwise the CPU."""
        import torch

        if self.backend != "nccl":
            return torch.device("cpu")
        return torch.device("cuda", self.local_rank if self.gpu is None else self.gpu)


def init_distributed_mode(
    backend: str | None = None,
    init_method: str | None = None,
    world_size: int | None = None,
    rank: int | None = None,
    *,
    local_rank: int | None = None,
    timeout: timedelta | float = DEFAULT_TIMEOUT,
) -> ProcessGroup:
    """Join this process to its process group and say who it is.

    Each value is taken from the argument, else from the variables that torchrun and `launch()`
    set (RANK, WORLD_SIZE, LOCAL_RANK, ...), else from Slurm's (SLURM_PROCID, ...).

    Args:
        backend: "nccl" or "gloo"; by default nccl where every rank has a GPU of its own,
            otherwise gloo. The ranks compare the GPUs that they see, so all take the same; rank 0
            says on stderr why GPUs are left unused.
        init_method: `env://` (the default), `tcp://host:port` or `file:///path`.
        world_size: the number of ranks in all, at least 1.
        rank: this process's number, 0 to world_size - 1.
        local_rank: its number on this machine, and of its GPU, if all ranks see all GPUs; where
            each sees its own alone (Slurm's --gpus-per-task), that one is taken.
        timeout: the limit of one collective, a timedelta or seconds.

    Raises:
        ValueError: a value is missing or wrong; the text says which and what to do.
        RuntimeError: a group is already running, the port is busy, or a peer never came.
    """
    import torch.distributed as dist

    if dist.is_initialized():
        raise RuntimeError(
            f"a process group is already running (rank {dist.get_rank()} of "
            f"{dist.get_world_size()}): use it, or call cleanup_distributed() first"
        )
    limit = timeout if isinstance(timeout, timedelta) else timedelta(seconds=timeout)
    if limit <= timedelta(0):
        raise ValueError(f"timeout={timeout}: expected more than 0 seconds")
    if backend == "nccl":
        choose_backend(backend, 1)  # where even one rank can't have it, none need wait for others
    check_backend(backend)
    group = _who(os.environ, world_size, rank, local_rank)
    release_ended_groups()
    method = init_method or default_init_method(os.environ, group.world_size)
    check_init_method(method, hosting=group.rank == 0)
    return _init(group, backend, method, limit)


def cleanup_distributed(*, wait: bool = True) -> None:
    """End the process group, if one is running; safe to call twice.

    Args:
        wait: let all ranks arrive before anyone hangs up. Without it gloo now and then aborts
            a correct script at exit. Pass False when an error is on its way up: a failing rank
            must not wait for the others.
    """
    dist = _running_group()
    if dist is None:
        return
    try:
        if wait and dist.get_world_size() > 1:
            _barrier(dist)
    except RuntimeError:
        pass  # a peer has already gone: nothing is left to wait for
    finally:
        hold_ended_group()
        dist.destroy_process_group()


@contextlib.contextmanager
def process_group(
    backend: str | None = None,
    init_method: str | None = None,
    world_size: int | None = None,
    rank: int | None = None,
    *,
    local_rank: int | None = None,
    timeout: timedelta | float = DEFAULT_TIMEOUT,
) -> Iterator[ProcessGroup]:
    """`init_distributed_mode()` for the length of a `with` block, then `cleanup_distributed()`.

    Takes the same arguments and raises the same errors. After a normal end the ranks wait for one
    another. After an error this rank leaves at once; under nccl, whose end can't be had without
    the other ranks, the group then ends with the process.

    In a session of ranks that stay, it hands out the session's group, and leaves it running.
    """
    if _kept is not None:
        yield _kept
        return
    group = init_distributed_mode(
        backend, init_method, world_size, rank, local_rank=local_rank, timeout=timeout
    )
    try:
        yield group
    except BaseException:
        if group.backend != "nccl":  # it would wait in there for ranks that are still at work
            cleanup_distributed(wait=False)
        raise
    cleanup_distributed()


def keep_group(group: ProcessGroup | None) -> None:
    """From now on `process_group()` hands out this one and does not end it; None: no longer."""
    global _kept
    _kept = group


def get_rank() -> int:
    """This process's rank, or 0 where no group is running."""
    dist = _running_group()
    return dist.get_rank() if dist else 0


def get_world_size() -> int:
    """The number of ranks, or 1 where no group is running."""
    dist = _running_group()
    return dist.get_world_size() if dist else 1


def is_main_process() -> bool:
    """True on rank 0, and where no group is running."""
    return get_rank() == 0


def _who(
    env: Mapping[str, str], world_size: int | None, rank: int | None, local_rank: int | None
) -> ProcessGroup:
    """Argument, then torchrun's variables, then Slurm's."""
    if rank is None and "RANK" not in env and "SLURM_PROCID" in env:
        check_slurm_step(env)
    size = _pick(env, "world_size", world_size, "WORLD_SIZE", "SLURM_NTASKS")
    number = _pick(env, "rank", rank, "RANK", "SLURM_PROCID")
    if number is None or size is None:
        given = (("RANK", number), ("WORLD_SIZE", size))
        missing = [name for name, value in given if value is None]
        raise ValueError(
            f"{' and '.join(missing)} not set, so this process can't tell which rank it is: "
            "start it with launch(fn, nprocs=2), with torchrun --nproc-per-node=2 SCRIPT, "
            "or pass rank= and world_size="
        )
    if size < 1:
        raise ValueError(f"world_size={size}: expected at least 1")
    if not 0 <= number < size:
        raise ValueError(
            f"rank={number} with world_size={size}: expected a rank from 0 to {size - 1}"
        )
    local_size = _pick(env, "local_world_size", None, "LOCAL_WORLD_SIZE", None)
    local_size = local_size or _slurm_local_size(env) or size
    local = _pick(env, "local_rank", local_rank, "LOCAL_RANK", "SLURM_LOCALID")
    local = number if local is None else local
    if not 0 <= local < local_size:
        raise ValueError(
            f"local_rank={local} with local_world_size={local_size}: expected a local_rank "
            f"from 0 to {local_size - 1}"
        )
    return ProcessGroup(number, size, local, local_size, backend="")


def _pick(
    env: Mapping[str, str], name: str, given: int | None, variable: str, slurm: str | None
) -> int | None:
    if given is not None:
        check_whole(name, given)
        return given
    for source in (variable, slurm):
        if source and source in env:
            try:
                return int(env[source])
            except ValueError:
                raise ValueError(f"{source}={env[source]!r}: expected a whole number") from None
    return None


def _slurm_local_size(env: Mapping[str, str]) -> int | None:
    """Slurm writes `4` or `4(x2)`; of uneven nodes (`4,3`) the largest counts.

    The step's numbers first: it may be smaller than its job.
    """
    if "RANK" in env or "SLURM_PROCID" not in env:
        return None
    told = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_TASKS_PER_NODE", "")
    counts = re.findall(r"(\d+)(?:\(x\d+\))?", told)
    return max(map(int, counts), default=None)


def _init(
    group: ProcessGroup, backend: str | None, init_method: str, timeout: timedelta
) -> ProcessGroup:
    """Meet the others, agree on a backend, and start; the group with its backend and its GPU."""
    import torch
    import torch.distributed as dist

    try:
        mend_rendezvous()
        meeting = dist.rendezvous(init_method, group.rank, group.world_size, timeout=timeout)
        store = next(iter(meeting))[0]
        store.set_timeout(timeout)
        mine = look(group.rank, group.local_rank, backend)
        if group.world_size == 1:
            decision = decide([mine])
        else:
            decision = agree(store, mine, group.world_size, timeout)
        tell(decision, group.rank)
        device = None
        if decision.backend == "nccl" and mine.index is not None:
            group = replace(group, gpu=mine.index)
            device = torch.device("cuda", mine.index)
            torch.cuda.set_device(device)  # without it every rank lands on GPU 0
        dist.init_process_group(
            decision.backend,
            store=dist.PrefixStore("default_pg", store),
            world_size=group.world_size,
            rank=group.rank,
            timeout=timeout,
            device_id=device,
        )
        return replace(group, backend=decision.backend)
    except dist.DistNetworkError as error:
        busy = "EADDRINUSE" in str(error)
        why = "the port is busy: choose another one" if busy else "is rank 0 running there?"
        raise RuntimeError(f"{init_method} can't be used: {why} ({_first_line(error)})") from error
    except dist.DistStoreError as error:
        raise RuntimeError(
            f"rank {group.rank} of {group.world_size}: not all ranks came within "
            f"{timeout.total_seconds():g} s: start {group.world_size} ranks with the same "
            f"address, or lower world_size ({_first_line(error)})"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _barrier(dist: ModuleType) -> None:
    if dist.get_backend() == "nccl":
        import torch

        dist.barrier(device_ids=[torch.cuda.current_device()])
    else:
        dist.barrier()


def _running_group() -> ModuleType | None:
    """torch.distributed if a group is running; does not import torch to find out."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.distributed.is_available():
        return None
    return torch.distributed if torch.distributed.is_initialized() else None
