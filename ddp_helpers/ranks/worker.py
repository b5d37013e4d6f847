"""The first thing that runs inside a rank.

A rank connects to its launcher, receives its files (output pipe, lifeline, job, outcome, stacks),
takes over the environment that torchrun would give it, runs the function and leaves an `Outcome`.
"""

from __future__ import annotations

import array
import contextlib
import ctypes
import faulthandler
import fcntl
import importlib.util
import io
import linecache
import multiprocessing
import multiprocessing.util
import os
import pickle
import re
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from ddp_helpers.evidence.frames import make_frame
from ddp_helpers.evidence.last_call import keep_last_call
from ddp_helpers.evidence.records import Finding, Frame, RankError
from ddp_helpers.group.torch_mends import mend_destroy_process_group, mend_rendezvous
from ddp_helpers.ranks import progress

STACK_SIGNAL = signal.SIGRTMIN + 5  # rarely used by others; USR1 and USR2 often are


@dataclass(frozen=True)
class Job:
    """What every rank of one launch is told."""

    function: bytes
    """`(fn, args, kwargs)` by cloudpickle; fn may be a text `path/script.py:name`."""
    nprocs: int
    env: dict[str, str]
    cwd: str
    argv: list[str]
    threads: int
    sources: dict[str, str] = field(default_factory=dict)
    """The text of notebook cells by file name, so that a traceback can quote them."""
    names: dict[str, str] = field(default_factory=dict)
    """How the reader knows those files: `cell In[4]`."""
    temporary: str = ""
    """Where multiprocessing keeps its sockets: a folder that is there already, or, with
    `own_temporary`, what the name of a rank's own begins with. A rank that is killed can't remove
    it; the launcher does."""
    own_temporary: bool = False
    sanitize: int = 0
    """Watch the run, and look at weights and data on each n-th step; 0 is off."""


@dataclass(frozen=True)
class Outcome:
    """How the function ended on one rank: a value by cloudpickle, or an error."""

    value: bytes | None
    error: RankError | None
    exit_code: int
    seconds: float
    findings: tuple[Finding, ...] = ()


def main(rank: int, address: str) -> None:
    """Run one rank of a launch; `torch.multiprocessing.start_processes` calls this."""
    os.setsid()  # a group of its own: Ctrl-C reaches the launcher only, and it ends them all
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # blocked while ranks start
    signal.signal(STACK_SIGNAL, signal.SIG_IGN)  # asked for its stack too early, it must not die
    with contextlib.suppress(OSError):
        link = _connect(address, rank)
        files = _receive_files(link)
        _tie_to_launcher(files["lifeline"])
        _redirect_output(files["output"])
        faulthandler.register(STACK_SIGNAL, file=files["stacks"], all_threads=False)
        progress.connect(link)
        job = pickle.loads(_read_all(files["job"]))
        outcome = _run(rank, job, files["last call"])
        _leave(outcome, files["outcome"], link)
    os._exit(1)  # the launcher is gone


def _connect(address: str, rank: int) -> socket.socket:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link.connect("\0" + address)
    link.send(str(rank).encode())
    return link


def _receive_files(link: socket.socket) -> dict[str, int]:
    names = ("output", "lifeline", "job", "outcome", "stacks", "last call")
    room = socket.CMSG_SPACE(len(names) * array.array("i").itemsize)
    message, ancillary, _, _ = link.recvmsg(16, room, socket.MSG_CMSG_CLOEXEC)
    if not message:
        raise ConnectionError("the launcher hung up")
    descriptors = array.array("i")
    for _, _, data in ancillary:
        descriptors.frombytes(data)
    return dict(zip(names, descriptors, strict=True))


def _tie_to_launcher(lifeline: int) -> None:
    """When the launcher ends, however it ends, the kernel kills this rank and its children.

    The launcher holds the other end of the pipe. No thread and no interpreter lock are needed,
    so this works also while the rank is stuck in C++.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:  # it hung up before we listened
        raise ConnectionError("the launcher hung up")


def _redirect_output(output: int) -> None:
    """Send everything that this process prints into the launcher's pipe, C++ included."""
    for standard in (1, 2):
        os.dup2(output, standard)
    os.close(output)
    for name, standard in (("stdout", 1), ("stderr", 2)):
        raw = io.FileIO(standard, "w", closefd=False)
        text = io.TextIOWrapper(
            io.BufferedWriter(raw), "utf-8", errors="backslashreplace", line_buffering=True
        )
        setattr(sys, name, text)
    libc = ctypes.CDLL(None)
    for name in ("stdout", "stderr"):  # C would keep 4 KiB back before it wrote to a pipe
        libc.setvbuf(ctypes.c_void_p.in_dll(libc, name), None, 1, 0)


def _run(rank: int, job: Job, last_call: int) -> Outcome:
    started = time.monotonic()
    value: object = None
    error, exit_code = None, 0
    findings: list[Finding] = []
    try:
        _settle_in(rank, job, last_call)
        with _watched(job) as findings:
            fn, args, kwargs = pickle.loads(job.function)
            value = load_function(fn)(*args, **kwargs)
    except SystemExit as stop:
        exit_code = _exit_code(stop)
        if exit_code:
            error = describe(stop, job.names)
    except BaseException as raised:
        error, exit_code = describe(raised, job.names), 1
    packed = None
    if error is None:
        try:
            packed = dump_value(value)
        except Exception as raised:
            error, exit_code = _cannot_travel(value, raised), 1
    return Outcome(packed, error, exit_code, time.monotonic() - started, tuple(findings))


def _settle_in(rank: int, job: Job, last_call: int) -> None:
    os.environ.clear()
    os.environ.update(job.env)
    os.environ.update(rank_environment(rank, job.nprocs))
    os.chdir(job.cwd)
    # as under torchrun: otherwise DataLoader workers would start the way this rank was started
    multiprocessing.set_start_method(None, force=True)
    _use_temporary_folder(job, rank)
    sys.argv = list(job.argv)
    for name, text in job.sources.items():  # no time stamp: linecache never drops these
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    import torch

    torch.distributed.set_debug_level_from_env()  # read when torch was loaded, long before
    mend_rendezvous()
    mend_destroy_process_group()
    keep_last_call(last_call)
    torch.set_num_threads(job.threads)
    # forked ranks would all draw the same numbers, unlike processes of torchrun; CUDA's generators
    # seed themselves when CUDA starts, and torch.seed() takes 3 ms to ask for it
    torch.default_generator.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


def temporary_folder(job: Job, rank: int) -> str:
    """Where multiprocessing keeps this rank's sockets."""
    return f"{job.temporary}{rank}" if job.own_temporary else job.temporary


def _use_temporary_folder(job: Job, rank: int) -> None:
    folder, config = temporary_folder(job, rank), multiprocessing.current_process()._config

    def get_temp_dir() -> str:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        config["tempdir"] = folder
        return folder

    if job.own_temporary:  # few ranks need one: make it then
        multiprocessing.util.get_temp_dir = get_temp_dir
    else:
        config["tempdir"] = folder


@contextlib.contextmanager
def _watched(job: Job) -> Iterator[list[Finding]]:
    """The sanitizer around the function, if it is asked for; what it finds, also after an error."""
    if not job.sanitize:
        yield []
        return
    from ddp_helpers.sanitizer import FAILED, Options, install, uninstall

    session = install(Options(every=job.sanitize), job.names)
    try:
        yield session.findings
    except BaseException:
        uninstall(session, FAILED)
        raise
    uninstall(session)


def rank_environment(rank: int, nprocs: int) -> dict[str, str]:
    """The variables that differ between ranks, as torchrun sets them on one machine."""
    return {name: str(rank) for name in ("RANK", "LOCAL_RANK", "ROLE_RANK")} | {
        name: str(nprocs) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "ROLE_WORLD_SIZE")
    }


def load_function(fn: Callable | str) -> Callable:
    """The function itself, or the one that `path/script.py:name` names."""
    if callable(fn):
        return fn
    path, _, name = fn.rpartition(":")
    module_name = Path(path).stem
    sys.argv = [path, *sys.argv[1:]]
    sys.path.insert(0, str(Path(path).resolve().parent))
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # spawned helpers (DataLoader workers) import it by name
    spec.loader.exec_module(module)
    return getattr(module, name)


def dump_value(value: object) -> bytes:
    """Pickle a value so that it can be read in a process that never touches a GPU."""
    import cloudpickle
    import torch

    class Pickler(cloudpickle.Pickler):
        def reducer_override(self, obj: object):
            plain = type(obj) in (torch.Tensor, torch.nn.Parameter)
            if plain and (obj.is_cuda or _is_small_view(obj)):
                return obj.detach().cpu().clone().requires_grad_(obj.requires_grad).__reduce_ex__(2)
            return super().reducer_override(obj)

    file = io.BytesIO()
    Pickler(file).dump(value)
    return file.getvalue()


def _is_small_view(tensor) -> bool:
    """A slice drags its whole storage along; copy it first."""
    if tensor.layout is not sys.modules["torch"].strided:
        return False
    return tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()


def _cannot_travel(value: object, raised: Exception) -> RankError:
    kind = type(value)
    return RankError(
        "TypeError",
        f"the function returned a {kind.__module__}.{kind.__qualname__}, which can't leave its "
        f"rank ({raised}): return plain values, tensors, or model.state_dict() instead",
        traceback.format_exc(),
        at=time.monotonic(),
    )


def describe(raised: BaseException, names: dict[str, str]) -> RankError:
    """An exception as text, without the launcher's own lines at its top."""
    trace = raised.__traceback__
    while trace and trace.tb_frame.f_code.co_filename == __file__ and trace.tb_next:
        trace = trace.tb_next
    try:
        lines = traceback.format_exception(type(raised), raised, trace)
    except Exception as failure:  # an exception whose own __str__ raises
        lines = [f"{type(raised).__name__}: (no text: {failure!r})\n"]
    text = "".join(lines)
    for filename, name in names.items():
        text = text.replace(f'File "{filename}"', name)
    return RankError(
        type(raised).__name__, _text(raised), text, tuple(_frames(trace, names)), time.monotonic()
    )


def _text(raised: BaseException) -> str:
    """The message, without the place in torch's own C++ sources that gloo puts in front."""
    try:
        return re.sub(r"^\[(enforce fail at )?/__w/[^\]]*\]\s*", "", str(raised))
    except Exception:
        return "(its text can't be shown)"


def _frames(trace: TracebackType | None, names: dict[str, str]) -> list[Frame]:
    return [
        make_frame(entry.filename, entry.lineno or 0, entry.name, names, entry.line or "")
        for entry in traceback.extract_tb(trace)
    ]


def _exit_code(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return stop.code or 0
    print(stop.code, file=sys.stderr)  # sys.exit("text") prints it and means 1
    return 1


def _leave(outcome: Outcome, file: int, link: socket.socket) -> None:
    """Hand over the outcome and end, without the interpreter's teardown.

    A gloo thread that still runs there now and then aborts a correct script.
    """
    _flush()
    _write_all(file, pickle.dumps(outcome))
    link.setblocking(True)
    link.send(b"done")
    with contextlib.suppress(Exception):
        multiprocessing.util._exit_function()  # joins the rank's own child processes
    _flush()
    os._exit(outcome.exit_code & 0xFF)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the rank may have closed it
            stream.flush()
    ctypes.CDLL(None).fflush(None)


def _read_all(file: int) -> bytes:
    with open(os.dup(file), "rb") as whole:
        return os.pread(whole.fileno(), os.fstat(file).st_size, 0)


def _write_all(file: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]
