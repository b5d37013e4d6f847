"""Start the processes of a launch, and read of them what only the system knows."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from multiprocessing.process import BaseProcess

from ddp_helpers.ranks import worker
from ddp_helpers.ranks.fork_server import ENDED


def start_processes(nprocs: int, address: str, start_method: str) -> list[BaseProcess]:
    """Start the ranks; each will call `address`. Ctrl-C must be blocked meanwhile.

    Raises:
        RuntimeError: the fork server ended meanwhile.
    """
    with _without_main_import():
        processes = _start(nprocs, address, start_method)
    if processes is None:  # raised out here, the error does not hold on to their pipes
        raise RuntimeError(ENDED)
    return processes


def _start(nprocs: int, address: str, start_method: str) -> list[BaseProcess] | None:
    from torch.multiprocessing import start_processes as torchs

    with contextlib.suppress(EOFError):
        context = torchs(
            worker.main,
            args=(address,),
            nprocs=nprocs,
            join=False,
            daemon=False,
            start_method=start_method,
        )
        return list(context.processes)
    return None


def count_memory_kills() -> int:
    """How many processes the system has killed because memory ran out, or 0 if it can't tell."""
    with contextlib.suppress(OSError), open("/proc/vmstat") as file:
        return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    return 0


def has_exited(pid: int) -> bool:
    """True for a process that has come to its end, even if its exit code has not arrived yet."""
    return _state(pid) in "ZX"


def is_stopped(pid: int) -> bool:
    """True for a process that was paused from outside, and so can't tell its stack."""
    return _state(pid) in "Tt"


def _state(pid: int) -> str:
    """The letter that `ps` shows for a process; X if there is none."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]
    return "X"


_main_import = threading.local()


@contextlib.contextmanager
def _without_main_import() -> Iterator[None]:
    """Start ranks without running the caller's script again in each of them.

    multiprocessing would import `__main__` anew, and a script without a main guard would then
    launch ranks from within its ranks. Functions travel by value, so nobody needs that import.
    """
    from multiprocessing import spawn

    if not hasattr(spawn.get_preparation_data, "before_ddp_helpers"):
        original = spawn.get_preparation_data

        def get_preparation_data(name: str) -> dict:
            data = original(name)
            if getattr(_main_import, "off", False):
                data.pop("init_main_from_name", None)
                data.pop("init_main_from_path", None)
            return data

        get_preparation_data.before_ddp_helpers = original  # type: ignore[attr-defined]
        spawn.get_preparation_data = get_preparation_data
    # of this thread only: another one may start processes of its own meanwhile
    _main_import.off = True
    try:
        yield
    finally:
        _main_import.off = False
