"""Run a command as if it stood alone: it gets our signals, and what it leaves behind is ended."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence

import psutil

PASSED_ON = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
GRACE = 5.0  # seconds for what is left behind to end by itself
SET_DEATH_SIGNAL, SET_SUBREAPER = 1, 36  # of prctl


def run_child(words: Sequence[str], env: Mapping[str, str]) -> int:
    """Run a command and return its exit code, 128+n if signal n ended it.

    Then, or after a signal of ours, no descendant of it goes on.

    Raises:
        OSError: it can't be started.
    """
    libc = ctypes.CDLL(None)
    libc.prctl(SET_SUBREAPER, 1)  # what loses its parent becomes our child
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [*PASSED_ON, signal.SIGCHLD])

    def in_child() -> None:
        libc.prctl(SET_DEATH_SIGNAL, signal.SIGTERM)  # if we are killed
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    alone = not _has_terminal()
    try:
        child = subprocess.Popen(
            words, env=env, preexec_fn=in_child, process_group=0 if alone else None
        )
        code, stopped = _wait(child, alone)
        if stopped or code < 0:
            _end_descendants()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return 128 - code if code < 0 else code


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR))
    except OSError:
        return False
    return True


def _wait(child: subprocess.Popen, alone: bool) -> tuple[int, bool]:
    """Its exit code, negative for a signal; and whether one was sent to us.

    A terminal sends Ctrl-C to its whole foreground group, the child in it: passed on, it would
    come twice, and interrupt the child's clean-up. Without a terminal the child has a group of its
    own, so what is sent to our group (a notebook's stop button) reaches it by us only.
    """
    stopped = False
    while True:
        info = signal.sigwaitinfo([*PASSED_ON, signal.SIGCHLD])
        if info.si_signo != signal.SIGCHLD:
            stopped = stopped or info.si_signo not in (signal.SIGUSR1, signal.SIGUSR2)
            by_a_process = info.si_code <= 0
            if alone or by_a_process:
                child.send_signal(info.si_signo)
        elif (code := child.poll()) is not None:
            return code, stopped


def _end_descendants() -> None:
    left = psutil.Process().children(recursive=True)
    for process in left:
        _signal(process, signal.SIGTERM)
    _, alive = psutil.wait_procs(left, GRACE)
    for process in alive:
        _signal(process, signal.SIGKILL)


def _signal(process: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.Error):  # it has ended
        process.send_signal(number)
