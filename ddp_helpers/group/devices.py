"""nccl or gloo: all ranks tell which GPUs they see, and all take what follows from that.

A rank that looks at its own GPUs alone can't know: with one GPU for each task, or with the ranks'
own CUDA_VISIBLE_DEVICES, each of them sees a single one, which may be its own or everybody's.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store

# for ranks that wait for nothing else
_TO_READ = timedelta(seconds=10)


@dataclass(frozen=True)
class Seen:
    """What one rank tells the others."""

    rank: int
    local_rank: int
    host: str
    gpus: tuple[str, ...]
    """The GPUs that it sees, in its order; a name means the same GPU on all ranks."""
    backend: str | None = None
    """What it was asked for."""
    has_nccl: bool = True
    hidden_by: str | None = None
    """Its CUDA_VISIBLE_DEVICES."""
    trouble: str = ""
    """Why its GPUs could not be asked."""

    @property
    def index(self) -> int | None:
        """The number of the GPU that it would use, among those that it sees."""
        return self.local_rank % len(self.gpus) if self.gpus else None

    @property
    def gpu(self) -> str | None:
        """That GPU's name."""
        return None if self.index is None else self.gpus[self.index]


@dataclass(frozen=True)
class Decision:
    """The same on all ranks."""

    backend: str
    note: str = ""
    """For rank 0 to say, where GPUs are left unused."""
    error: str = ""


def choose_backend(backend: str | None, local_world_size: int) -> str:
    """nccl where this machine has a GPU for each of its ranks, otherwise gloo.

    For a program that is about to start ranks; ranks themselves compare what they see.

    Raises:
        ValueError: an unknown backend, or nccl where it can't work.
    """
    import torch

    check_backend(backend)
    gpus = tuple(map(str, range(torch.cuda.device_count()))) if has_nccl() else ()
    one = Seen(0, 0, socket.gethostname(), gpus, backend, has_nccl(), _hidden_by())
    decision = decide([replace(one, rank=n, local_rank=n) for n in range(local_world_size)])
    if decision.error:
        raise ValueError(decision.error)
    return decision.backend


def check_backend(backend: str | None) -> None:
    """Raise ValueError unless it is one that we know."""
    if backend not in (None, "nccl", "gloo"):
        raise ValueError(f'backend="{backend}": expected "nccl" (GPUs) or "gloo" (CPU)')


def look(rank: int, local_rank: int, backend: str | None) -> Seen:
    """What this rank has to tell. GPUs are not asked where nobody wants them."""
    gpus: tuple[str, ...] = ()
    trouble = ""
    if has_nccl() and backend != "gloo":
        try:
            gpus = visible_gpus()
        except RuntimeError as error:  # a driver that is broken, or too old
            trouble = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return Seen(
        rank,
        local_rank,
        socket.gethostname(),
        gpus,
        backend,
        has_nccl(),
        _hidden_by(),
        trouble,
    )


def agree(store: Store, mine: Seen, world_size: int, limit: timedelta) -> Decision:
    """Tell rank 0, which decides for all; every rank gets the same within `limit`.

    Raises:
        DistStoreError: not all ranks came in time.
    """
    from torch.distributed import DistStoreError, PrefixStore

    store = PrefixStore("gpus", store)
    store.set(str(mine.rank), json.dumps(asdict(mine)))
    if mine.rank == 0:
        names = [str(rank) for rank in range(world_size)]
        _wait(store, names, limit)
        decision = decide([_seen(store.get(name)) for name in names])
        store.set("decision", json.dumps(asdict(decision)))
        if decision.error:  # this rank is about to end, and mostly it serves the store
            with contextlib.suppress(DistStoreError):
                _wait(store, [f"{name} knows" for name in names[1:]], min(limit, _TO_READ))
        return decision
    _wait(store, ["decision"], limit)
    decision = Decision(**json.loads(store.get("decision")))
    if decision.error:
        store.set(f"{mine.rank} knows", "")
    return decision


def decide(told: Sequence[Seen]) -> Decision:
    """nccl if each rank has a GPU of its own, otherwise gloo; of what they tell, and nothing else.

    Args:
        told: of each rank, in their order.
    """
    asked = {seen.backend: seen.rank for seen in reversed(told) if seen.backend}
    if len(asked) > 1:
        texts = [f'rank {rank} asks for backend="{name}"' for name, rank in sorted(asked.items())]
        return Decision("gloo", error=f"{', '.join(texts)}: give all ranks the same")
    if "gloo" in asked:
        return Decision("gloo")
    why, way_out = _why_not_nccl(told)
    if not why:
        return Decision("nccl")
    if "nccl" in asked:
        joined = f" with {why}" if why[0].isdigit() else f", but {why}"
        ways = " or ".join(filter(None, [f"{way_out}," * bool(way_out), 'backend="gloo"']))
        return Decision("nccl", error=f'backend="nccl"{joined}: use {ways}')
    if not any(seen.gpus or seen.trouble for seen in told):
        return Decision("gloo")  # nobody here expects a GPU to be used
    for_nccl = f"; for nccl use {way_out}" * bool(way_out)
    return Decision("gloo", note=f"note: {why}: all ranks take gloo on the CPU{for_nccl}")


def tell(decision: Decision, rank: int) -> None:
    """Print the note, on rank 0 alone, or raise the error, on all.

    Raises:
        ValueError: the ranks can't have what they were asked for.
    """
    if decision.error:
        raise ValueError(decision.error)
    if decision.note and rank == 0:
        print(decision.note, file=sys.stderr, flush=True)


def has_nccl() -> bool:
    """Whether this build of torch has it."""
    import torch.distributed as dist

    return dist.is_nccl_available()


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that torch can use here, by a name that no other GPU anywhere has."""
    import torch

    if torch.cuda.device_count() == 0:
        return ()
    return tuple(map(_name_of_gpu, range(torch.cuda.device_count())))


def _name_of_gpu(index: int) -> str:
    import torch

    uuid = getattr(torch.cuda.get_device_properties(index), "uuid", None)
    if uuid is not None:
        return str(uuid)
    listed = [part for part in (_hidden_by() or "").split(",") if part]
    return f"{socket.gethostname()}:{listed[index] if index < len(listed) else index}"


def _wait(store: Store, names: list[str], limit: timedelta) -> None:
    from torch.distributed import DistNetworkError, DistStoreError

    try:
        store.wait(names, limit)
    except DistNetworkError:
        raise
    except RuntimeError as error:  # that of a FileStore has no type of its own
        raise DistStoreError(str(error)) from error


def _hidden_by() -> str | None:
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def _seen(text: bytes) -> Seen:
    values = json.loads(text)
    return Seen(**{**values, "gpus": tuple(values["gpus"])})


def _why_not_nccl(told: Sequence[Seen]) -> tuple[str, str]:
    """What stands against it, and the way out, if there is one; ("", "") if nothing does."""
    for seen in told:
        if not seen.has_nccl:
            who = "this" if all(not each.has_nccl for each in told) else f"rank {seen.rank}'s"
            return f"{who} PyTorch build has no NCCL", ""
        if seen.trouble:
            why = f"rank {seen.rank} can't ask its GPUs ({seen.trouble})"
            return why, "a driver that works (nvidia-smi tells)"
    hosts = {seen.host: [each for each in told if each.host == seen.host] for seen in told}
    for host, ranks in hosts.items():
        gpus = {gpu for seen in ranks for gpu in seen.gpus}
        if len(gpus) < len(ranks):
            where = "this machine" if len(hosts) == 1 else host
            way_out = f"{_many(len(gpus), 'rank')}{'' if len(hosts) == 1 else ' there'}"
            hidden = _hidden(ranks)
            if not gpus:
                way_out = "the GPUs after `unset CUDA_VISIBLE_DEVICES`" if hidden else ""
            has = f"{_many(len(gpus), 'GPU')}{hidden}"
            return f"{_many(len(ranks), 'rank')}, but {where} has {has}", way_out
    blind = [seen.rank for seen in told if seen.gpu is None]
    if blind:
        why = f"{_ranks(blind)} no GPU{_hidden([seen for seen in told if seen.gpu is None])}"
        return why, "a GPU for each rank (Slurm: --gpus-per-task=1)"
    by_gpu: dict[str | None, list[int]] = {}
    for seen in told:
        by_gpu.setdefault(seen.gpu, []).append(seen.rank)
    for gpu, ranks_of_it in by_gpu.items():
        if len(ranks_of_it) > 1:
            numbers = " and ".join(map(str, ranks_of_it[:2]))
            why = f"ranks {numbers} would share the GPU {gpu}"
            return why, "the same CUDA_VISIBLE_DEVICES in all of them, or another GPU in each"
    return "", ""


def _hidden(ranks: Iterable[Seen]) -> str:
    """Why a rank sees none, if a variable says so."""
    for seen in ranks:
        if not seen.gpus and seen.hidden_by is not None and seen.hidden_by.strip() in ("", "-1"):
            return f" (CUDA_VISIBLE_DEVICES={seen.hidden_by!r} hides them)"
    return ""


def _many(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _ranks(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"rank {numbers[0]} sees"
    return f"ranks {', '.join(map(str, numbers[:-1]))} and {numbers[-1]} see"
