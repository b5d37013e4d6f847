"""The process that ranks are forked from: started early, and ready before it is asked.

multiprocessing's own fork server does the work; this module starts it with torch preloaded, knows
when it is ready, and tidies up after one that was killed.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import select
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

from ddp_helpers.ranks import wire
from ddp_helpers.ranks.interrupts import interrupts_blocked
from ddp_helpers.ranks.messages import INSIDE_A_RANK
from ddp_helpers.ranks.notebook import is_kernel
from ddp_helpers.ranks.temporary import socket_folder

READY = "DDP_HELPERS_READY"
WARM_UP = "DDP_HELPERS_WARM_UP"  # "0": in a notebook, wait for the first launch
# a fork copies an entry for each page in memory: of 2 MiB there are fewer than of 4 KiB, and the
# fork and the end of a rank take half the time; other C libraries than glibc do not look at it
HUGE_PAGES = "glibc.malloc.hugetlb=1"
# how the names of variables begin that are read while torch and OpenMP load, so by the server; but
# a launch sets the number of threads itself
READ_AT_IMPORT = (
    *("OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "LD_PRELOAD", "LD_LIBRARY_PATH"),
    *("TORCH_LOGS", "TORCH_CPP_LOG_LEVEL", "TORCHDYNAMO_", "TORCHINDUCTOR_", "TORCH_COMPILE_"),
)
LONGEST_START = 120.0  # seconds for torch to load, on the busiest of machines
TIDY_SIGNAL = signal.SIGALRM  # a timer of the server itself sends it, too
LOOK = 0.1  # seconds between looks at a server that still loads
LONGEST_END = 1.0  # seconds for ranks that stood by to end
ENDED = (
    "the fork server ended while it started the ranks, perhaps because memory ran out: launch "
    'again, or use start_method="spawn"'
)
# both guard what belongs to the whole process, while a thread has changed it for a moment
_variables_lock = threading.Lock()
_spawn_lock = threading.RLock()
_listener: socket.socket | None = None  # open while the server that we started still loads
_started_pid: int | None = None
_started_with: dict[str, str] = {}


def warm_up() -> None:
    """Start the fork server, if it does not run yet; returns at once, torch loads meanwhile."""
    global _started_pid, _started_with
    from multiprocessing import forkserver, set_forkserver_preload

    tidy_up()
    server = _server()
    set_forkserver_preload(["ddp_helpers.ranks.preload"])
    start_resource_tracker()
    if server._forkserver_pid is not None:  # ours, or one that somebody else has started
        return
    socket_folder()  # before multiprocessing makes one of a name that may be too long
    name = _listen()
    threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
    huge = {"GLIBC_TUNABLES": _tunables_with(HUGE_PAGES)}
    # a pool of threads would not survive the fork, nor the server a Ctrl-C while it loads
    with _variables(**threads, **huge, **{READY: name}), interrupts_blocked(), _own_session():
        forkserver.ensure_running()
    _started_pid, _started_with = server._forkserver_pid, _read_at_import()


def warm_up_in_a_kernel() -> None:
    """In a notebook, start the fork server while the reader still reads; elsewhere do nothing.

    DDP_HELPERS_WARM_UP=0, set before the import, leaves it to the first launch: for notebooks that
    start their ranks in another way, or on a machine with little memory.
    """
    if is_kernel() and INSIDE_A_RANK not in os.environ and os.environ.get(WARM_UP) != "0":
        warm_up()


def is_stale() -> bool:
    """True if torch would read other variables now than when it was loaded for the ranks."""
    pid = server_pid()
    return pid is not None and pid == _started_pid and _started_with != _read_at_import()


def end() -> None:
    """End the fork server, unless processes run that it must tell the end of."""
    pid = server_pid()
    limit = time.monotonic() + LONGEST_END
    while pid is not None and has_children(pid):
        if time.monotonic() > limit:
            return
        time.sleep(LOOK / 10)
    if pid is not None:
        os.kill(pid, signal.SIGKILL)  # at an ordinary end it would remove the next one's socket
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        tidy_up()


def _read_at_import() -> dict[str, str]:
    names = [name for name in os.environ if name.startswith(READ_AT_IMPORT)]
    return {name: os.environ[name] for name in names if not name.endswith("_NUM_THREADS")}


def ask_to_tidy() -> None:
    """Have the server tidy its memory now, if it has not yet: for when a launch's ranks have ended.

    A timer of its own does so before the first launch, unless that waits already.
    """
    server = _server()
    with server._lock:  # nobody fetches its exit code meanwhile, so the number is still its own
        pid = server._forkserver_pid
        if pid is not None and pid == _started_pid and _listener is None:
            os.kill(pid, TIDY_SIGNAL)


def has_children(pid: int) -> bool:
    """True unless the system says that it has none."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{pid}/children") as file:
        return bool(file.read())
    return True  # it may have some


def wait_until_ready(seconds: float) -> bool:
    """Wait until the fork server has loaded torch; False if it takes longer than that.

    Raises:
        RuntimeError: it ended instead.
    """
    limit = time.monotonic() + seconds
    pid = _server()._forkserver_pid
    # a server that we did not start tells nobody when it is ready
    while _listener is not None and pid is not None and pid == _started_pid:
        if has_ended(pid):
            raise RuntimeError(ENDED)
        if _has_called(pid):
            _hang_up()
        elif time.monotonic() > limit:
            return False
    return True


def _has_called(pid: int) -> bool:
    """True once the server says that it is ready; waits a moment for it."""
    listener = _listener
    # OSError, ValueError: another thread was first, and has closed it
    with contextlib.suppress(OSError, ValueError):
        if listener is not None and select.select([listener], [], [], LOOK)[0]:
            with listener.accept()[0] as caller:
                return wire.peer_of(caller).pid == pid
    return False


def tidy_up() -> None:
    """Forget a fork server that was killed, as multiprocessing does when it needs the next one.

    multiprocessing would notice only then, and a launch by spawn never asks it.
    """
    server = _server()
    with server._lock:
        if server._forkserver_pid is None or not has_ended(server._forkserver_pid):
            return
        os.waitpid(server._forkserver_pid, 0)  # else it would stay as a zombie
        os.close(server._forkserver_alive_fd)
        with contextlib.suppress(OSError):  # the next server could not remove the folder
            os.unlink(server._forkserver_address)
        server._forkserver_address = None
        server._forkserver_alive_fd = None
        server._forkserver_pid = None
    _hang_up()


def server_pid() -> int | None:
    """The number of the fork server that runs, if one does."""
    pid = _server()._forkserver_pid
    return None if pid is None or has_ended(pid) else pid


def _server() -> Any:
    """multiprocessing's one fork server; what it knows of its process has no public name."""
    from multiprocessing import forkserver

    return forkserver._forkserver


def has_ended(pid: int) -> bool:
    """True for a child that has ended, also if nobody has asked for its exit code yet."""
    # WNOWAIT leaves the exit code to who is to have it
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return False  # not our child: nothing to tidy up


def start_resource_tracker() -> None:
    """Start multiprocessing's helper outside of the kernel's process group.

    It ignores SIGTERM. Inside the group, a kernel that shuts down asks it to end for five
    seconds, and is then killed before it could tidy up.
    """
    from multiprocessing import resource_tracker

    with _own_session():
        resource_tracker.ensure_running()


@contextlib.contextmanager
def _own_session() -> Iterator[None]:
    """What multiprocessing starts in the block outlives a kill of this process's group.

    Jupyter kills a kernel's whole group. These helpers must stay a moment longer, because they
    remove what the kernel can't remove any more.
    """
    from multiprocessing import util

    def spawn(path: str, args: Sequence[Any], passfds: Sequence[int]) -> int:
        process = subprocess.Popen(args, executable=path, pass_fds=passfds, start_new_session=True)
        process.returncode = 0  # multiprocessing waits for it, not this object
        return process.pid

    with _spawn_lock:
        before = util.spawnv_passfds
        util.spawnv_passfds = spawn  # type: ignore[assignment]  # its own takes bytes, too
        try:
            yield
        finally:
            util.spawnv_passfds = before


def _tunables_with(setting: str) -> str:
    """What the reader has set stands."""
    given = os.environ.get("GLIBC_TUNABLES", "")
    return given if setting.partition("=")[0] in given else f"{given}:{setting}".lstrip(":")


def _listen() -> str:
    """A socket on which the next server says that it is ready; its name."""
    global _listener
    _hang_up()
    name = f"ddp_helpers-ready-{os.getpid()}-{secrets.token_hex(16)}"
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.setblocking(False)
    listener.bind("\0" + name)
    listener.listen(1)
    _listener = listener
    return name


def _hang_up() -> None:
    global _listener
    listener, _listener = _listener, None
    if listener is not None:
        listener.close()


@contextlib.contextmanager
def _variables(**values: str) -> Iterator[None]:
    """Set variables for a process that is started in the block; multiprocessing takes none."""
    with _variables_lock:
        before = {name: os.environ.get(name) for name in values}
        os.environ.update(values)
        try:
            yield
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
