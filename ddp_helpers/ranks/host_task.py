"""What the ranks of one host do: a launcher puts it together, and the host makes a job of it."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ddp_helpers.environment.cards import UNKNOWN, card_of, cards, own_address, variables_for
from ddp_helpers.evidence.frames import LIBRARY_FOLDERS, is_user_file
from ddp_helpers.ranks.messages import Job
from ddp_helpers.ranks.notebook import ipython_shell, notebook_cells
from ddp_helpers.ranks.readiness import check_open_files, check_tasks
from ddp_helpers.ranks.starting import make_job


@dataclass(frozen=True)
class Task:
    """What the ranks of one host do."""

    function: bytes
    """As of `Job`."""
    script: str
    """The file of a function that came as a text, or nothing."""
    nprocs: int
    """Ranks here."""
    timeout: float
    threads_per_rank: int | None
    start_method: str
    cwd: str
    argv: list[str]
    path: tuple[str, ...]
    """Folders of the reader's own modules, which a host may have, too."""
    node_rank: int = 0
    nnodes: int = 1
    address: str = ""
    """Where the ranks meet."""
    port: int = 0
    env: dict[str, str] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    sanitize: int = 0
    ignore: tuple[str, ...] = ()

    @property
    def first_rank(self) -> int:
        """Of this host's ranks."""
        return self.node_rank * self.nprocs


# ---- the launcher's side


def make_task(
    fn: Callable[..., Any] | str,
    packed: bytes,
    nprocs: int,
    timeout: float,
    threads_per_rank: int | None,
    start_method: str,
    env: Mapping[str, str] | None,
) -> Task:
    """What the ranks of each host are told, in the surroundings of this very call."""
    sources, names = notebook_cells()
    return Task(
        function=packed,
        nprocs=nprocs,
        timeout=timeout,
        threads_per_rank=threads_per_rank,
        start_method=start_method,
        env=dict(env or {}),
        argv=list(sys.argv) if ipython_shell() is None else [""],
        script=fn.rpartition(":")[0] if isinstance(fn, str) else "",
        cwd=os.getcwd(),
        path=tuple(folder for folder in sys.path if _is_readers(folder)),
        sources=sources | _source_of(fn),
        names=names,
    )


def _is_readers(folder: str) -> bool:
    return bool(folder) and not os.path.join(folder, "").startswith(LIBRARY_FOLDERS)


def _source_of(fn: object) -> dict[str, str]:
    """The file of a reader's function, so that a host without it can quote a line of it."""
    filename = getattr(getattr(fn, "__code__", None), "co_filename", "")
    with contextlib.suppress(OSError, ValueError):
        if is_user_file(filename):
            return {filename: Path(filename).read_text(encoding="utf-8")}
    return {}


# ---- the host's side


def job_of(task: Task) -> tuple[Job, str]:
    """What the ranks of this host are told, and a note for the reader.

    Raises:
        OSError: they can't run here.
    """
    check_open_files(task.nprocs)
    check_tasks(task.nprocs)
    note = _go_to(task.cwd)
    if task.script and not os.path.isfile(task.script):
        raise OSError(
            f"there is no file {task.script} in {os.getcwd()}: copy it to the same folder of each "
            "host, or keep it where all of them see it"
        )
    sys.path[:0] = [folder for folder in task.path if os.path.isdir(folder)]
    env = _card_variables(task) | {
        "MASTER_ADDR": task.address,
        "GROUP_RANK": str(task.node_rank),
        "GROUP_WORLD_SIZE": str(task.nnodes),
        "TORCHELASTIC_RUN_ID": f"launch-{task.address}-{task.port}",
    }
    job = make_job(
        task.function,
        task.nprocs,
        task.port,
        task.threads_per_rank,
        env | task.env,
        task.start_method,
    )
    job = replace(job, argv=task.argv, sources=task.sources, names=task.names)
    job = replace(job, first_rank=task.first_rank, world_size=task.nnodes * task.nprocs)
    return replace(job, sanitize=task.sanitize, ignore=task.ignore), note


def _go_to(folder: str) -> str:
    """The launcher's working folder, if there is one here; else a note."""
    try:
        os.chdir(folder)
    except OSError:
        return f"there is no folder {folder}, so its ranks are in {os.getcwd()}"
    return ""


def _card_variables(task: Task) -> dict[str, str]:
    """Have gloo and NCCL take the card that leads to the first host.

    They would take the one that this host's own name leads to; on Debian that is the loopback.
    """
    card = card_of(own_address(task.address), cards())
    if card == UNKNOWN:
        return {}
    if card == "lo":
        return {"GLOO_SOCKET_IFNAME": "lo"}
    return {name: value for name, value in variables_for(card).items() if name not in os.environ}
