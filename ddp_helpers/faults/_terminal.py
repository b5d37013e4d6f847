"""Run a command as a learner would in a terminal, with a hard limit and nothing left behind."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MARK = "DDP_HELPERS_FAULT"  # in the environment of every process that the command starts
OURS = ("DDP_HELPERS", "TORCHELASTIC", "SLURM")
RANK_VARIABLES = (
    "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE GROUP_RANK MASTER_ADDR MASTER_PORT".split()
)


@dataclass(frozen=True)
class Ended:
    """How a command ended: all that it printed, and its exit code (None: the limit ended it)."""

    output: str
    exit_code: int | None


def terminal(
    command: Sequence[str],
    *,
    files: Mapping[str, str] | None = None,
    stdin: str = "",
    env: Mapping[str, str] | None = None,
    limit: float = 30.0,
) -> Ended:
    """Run a command in an empty folder and return how it ended.

    Args:
        command: its words; `python` and `torchrun` are those of this environment.
        files: scripts to write into the folder first, text by name.
        stdin: what is typed into it.
        env: variables to add.
        limit: seconds after which it is ended, with every process that it started.
    """
    mark = secrets.token_hex(8)
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (files or {}).items():
            Path(folder, name).write_text(text, encoding="utf-8")
        Path(folder, ".typed").write_text(stdin, encoding="utf-8")
        with open(f"{folder}/.printed", "w") as printed, open(f"{folder}/.typed") as typed:
            process = subprocess.Popen(
                command,
                cwd=folder,
                env=_environment(env, mark),
                stdin=typed,
                stdout=printed,
                stderr=subprocess.STDOUT,
            )
            try:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(limit)
                code = process.returncode
            finally:
                end_marked(mark)
                process.wait()
        output = Path(folder, ".printed").read_text(encoding="utf-8", errors="replace")
    return Ended(output.replace(f"{folder}/", ""), code)


def _environment(extra: Mapping[str, str] | None, mark: str) -> dict[str, str]:
    plain = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(OURS) and name not in RANK_VARIABLES
    }
    path = f"{Path(sys.executable).parent}:{plain.get('PATH', '')}"  # its python and torchrun
    ours = {
        "PATH": path,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONUNBUFFERED": "1",
    }
    return plain | ours | {MARK: mark} | dict(extra or {})


def end_marked(mark: str) -> None:
    """Kill every process that carries the mark, also those whose parent is gone."""
    limit = time.monotonic() + 5
    while (left := find_marked(mark)) and time.monotonic() < limit:
        for process in left:
            with contextlib.suppress(OSError):
                os.kill(process, 9)
        time.sleep(0.02)


def find_marked(mark: str) -> list[int]:
    """The living processes, except this one, whose environment carries the mark."""
    word, found = f"{MARK}={mark}".encode(), []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # another user's, or just gone
            if word in entry.read_bytes().split(b"\0") and int(entry.parent.name) != os.getpid():
                found.append(int(entry.parent.name))
    return found


def start_alone(name: str) -> None:
    """Start the ranks of a fault as a plain script does, with torch.multiprocessing."""
    from torch.multiprocessing import start_processes

    from ddp_helpers.faults import load

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    nprocs = load(name).FAULT.nprocs
    start_processes(_rank_alone, args=(name, port), nprocs=nprocs, start_method="fork")


def _rank_alone(rank: int, name: str, port: int) -> None:
    from datetime import timedelta

    from ddp_helpers.faults import load
    from ddp_helpers.torch_private import DEFAULT_TIMEOUT

    module = load(name)
    variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": module.FAULT.nprocs}
    variables |= {"LOCAL_WORLD_SIZE": module.FAULT.nprocs, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in variables.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1"} | dict(module.FAULT.env)
    DEFAULT_TIMEOUT.put(timedelta(seconds=2))  # 30 minutes otherwise
    module.faulty()
