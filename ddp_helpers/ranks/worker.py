"""The first thing that runs inside a rank.

A rank finds its launcher, receives its files (wire.py), takes over the environment that torchrun
would give it, runs the function and leaves an `Outcome`.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import fcntl
import io
import linecache
import multiprocessing
import multiprocessing.util
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ddp_helpers.evidence.last_call import keep_last_call
from ddp_helpers.evidence.patches import Patches
from ddp_helpers.evidence.records import Finding, Watched
from ddp_helpers.evidence.timed_calls import TimedCalls
from ddp_helpers.group.torch_mends import mend_destroy_process_group, mend_rendezvous
from ddp_helpers.ranks import breakpoints, progress, stay, wire
from ddp_helpers.ranks.fork_server import TIDY_SIGNAL
from ddp_helpers.ranks.messages import Job, Outcome
from ddp_helpers.ranks.rehearsal import rehearse
from ddp_helpers.ranks.surroundings import take_over
from ddp_helpers.ranks.travel import cannot_travel, describe, dump_value, unpack

LONGEST_IDLE = 1800.0  # seconds that a rank stands by: a notebook left open overnight needs none
STANDBY_NAME, RANK_NAME = b"ddp-standby", b"python"
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15


def main(rank: int, address: str) -> None:
    """Run one rank of a launch; `torch.multiprocessing.start_processes` calls this."""
    _become_a_rank()
    with contextlib.suppress(OSError):
        link = wire.call(address, rank)
        _serve(link)
    os._exit(1)  # the launcher is gone


def stand_by(link: socket.socket, variables: Mapping[str, str] | None) -> None:
    """Wait to be needed, and run one rank of a launch then; the fork server calls this.

    Args:
        link: to the launcher.
        variables: those under which to rehearse; None where a launch waits already.
    """
    _become_a_rank()
    # when the fork server is killed, nobody would learn of this process's end
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(OSError):
        link.send(wire.HERE)
        if variables is not None:
            _prepare(link, variables)
        if not wire.wait_for_word(link, LONGEST_IDLE):
            os._exit(0)
        if variables is not None:
            _call_it(RANK_NAME)
        _serve(link)
    os._exit(1)


def _prepare(link: socket.socket, variables: Mapping[str, str]) -> None:
    """Rehearse, unseen. A rank that can't ends, unless a launch has it already: that goes on, if
    slowly, and says what is wrong."""
    _call_it(STANDBY_NAME)
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for standard in (1, 2):  # they are the reader's, and gloo of torch 2.8 greets
        os.dup2(nowhere, standard)
    try:
        rehearse(variables, lambda job: _settle_in(0, job))
    except Exception:
        if not wire.wait_for_word(link, 0.0):
            os._exit(0)
    _record_calls_in(nowhere)
    _flush()  # before these files are the rank's


def _call_it(name: bytes) -> None:
    """For those who look with ps or top."""
    ctypes.CDLL(None).prctl(PR_SET_NAME, name)


def _become_a_rank() -> None:
    os.setsid()  # a group of its own: Ctrl-C reaches the launcher only, and it ends them all
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])  # blocked while ranks start
    signal.signal(wire.STACK_SIGNAL, signal.SIG_IGN)  # asked too early, it must not die of it
    signal.signal(TIDY_SIGNAL, signal.SIG_DFL)  # the fork server's own


def _serve(link: socket.socket) -> None:
    """Do what the launcher asks for, and end.

    Raises:
        OSError: the launcher is gone.
    """
    rank, files = wire.receive_files(link)
    _tie_to_launcher(files.lifeline)
    _redirect_output(files.output)
    faulthandler.register(wire.STACK_SIGNAL, file=files.stacks, all_threads=False)
    progress.connect(link)
    job = wire.read_job(files.job)
    breakpoints.connect(link, job.names)
    stay.connect(link, files.outcome, job)
    outcome = _run(rank, job, files.last_call)
    # by os._exit, without the interpreter's teardown: a gloo thread that still runs there now
    # and then aborts a correct script
    _flush()
    wire.leave_outcome(outcome, files.outcome, link)
    with contextlib.suppress(Exception):
        # joins the rank's own child processes
        multiprocessing.util._exit_function()  # type: ignore[attr-defined]  # no public name
    _flush()
    os._exit(outcome.exit_code & 0xFF)


_calls_file: int | None = None


def _record_calls_in(file: int) -> None:
    """From now on this rank's collectives are noted there."""
    global _calls_file
    if _calls_file is None:
        _calls_file = file
        keep_last_call(file)
    else:  # it has rehearsed
        os.dup2(file, _calls_file, inheritable=False)


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
    said = Said()
    try:
        _settle_in(rank, job)
        _record_calls_in(last_call)
        if job.draw:
            TimedCalls(last_call).install(Patches())  # for good: the rank ends with the run
        with _watched(job, said):
            fn, args, kwargs = unpack(job.function)
            value = fn(*args, **kwargs)
    except SystemExit as stop:
        exit_code = _exit_code(stop)
        if exit_code:
            error = describe(stop, job.names)
    except BaseException as raised:
        error, exit_code = describe(raised, job.names), 1
        if job.post_mortem:
            breakpoints.after_failure(raised, error)
    packed = None
    if error is None:
        try:
            packed = dump_value(value)
        except Exception as raised:
            error, exit_code = cannot_travel(value, raised), 1
    seconds = time.monotonic() - started
    return Outcome(packed, error, exit_code, seconds, said.findings, said.watched)


def _settle_in(rank: int, job: Job) -> None:
    _take_over_environment(dict(job.env) | rank_environment(rank, job))
    os.chdir(job.cwd)
    if job.surroundings is not None:
        take_over(job.surroundings)
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
    breakpoints.replace_torchs()
    torch.set_num_threads(job.threads)
    # forked ranks would all draw the same numbers, unlike processes of torchrun; CUDA's generators
    # seed themselves when CUDA starts, and torch.seed() takes 3 ms to ask for it
    torch.default_generator.seed()
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


def _take_over_environment(wanted: Mapping[str, str]) -> None:
    """One that has rehearsed has nearly all of it: to set it all anew takes half a millisecond."""
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _use_temporary_folder(job: Job, rank: int) -> None:
    folder = job.temporary_folder(rank)
    # the private place where multiprocessing looks for it; it has no public one
    config = multiprocessing.current_process()._config  # type: ignore[attr-defined]

    def get_temp_dir() -> str:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        config["tempdir"] = folder
        return folder

    if job.own_temporary:  # few ranks need one: make it then
        multiprocessing.util.get_temp_dir = get_temp_dir
    else:
        config["tempdir"] = folder


@dataclass
class Said:
    """What the sanitizer says of one rank, also after an error."""

    findings: tuple[Finding, ...] = ()
    watched: Watched | None = None


@contextlib.contextmanager
def _watched(job: Job, said: Said) -> Iterator[None]:
    """The sanitizer around the function, if it is asked for."""
    if not job.sanitize:
        yield
        return
    from ddp_helpers.sanitizer import FAILED, Options, install, uninstall

    session = install(Options(job.sanitize, job.ignore), job.names)
    try:
        yield
    except BaseException:
        uninstall(session, FAILED)
        raise
    else:
        uninstall(session)
    finally:
        said.findings, said.watched = tuple(session.findings), session.watched()


def rank_environment(local_rank: int, job: Job) -> dict[str, str]:
    """The variables that differ between ranks, as torchrun sets them."""
    rank, world_size = job.first_rank + local_rank, job.world_size or job.nprocs
    values = {"RANK": rank, "LOCAL_RANK": local_rank, "ROLE_RANK": rank}
    values |= {"WORLD_SIZE": world_size, "ROLE_WORLD_SIZE": world_size}
    values |= {"LOCAL_WORLD_SIZE": job.nprocs}
    return {name: str(value) for name, value in values.items()}


def _exit_code(stop: SystemExit) -> int:
    if stop.code is None or isinstance(stop.code, int):
        return stop.code or 0
    print(stop.code, file=sys.stderr)  # sys.exit("text") prints it and means 1
    return 1


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # the rank may have closed it
            stream.flush()
    ctypes.CDLL(None).fflush(None)
