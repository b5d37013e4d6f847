"""`python script.py` in a process that has torch already: forked, where a new one imports for 3 s.

For what a script does; how Python starts it is for a test with a real process. The script gets its
own process group, folder, environment, arguments and output, and what it starts with mp.spawn is
forked from it, too, without its memory of `__main__`.
"""

import atexit
import contextlib
import multiprocessing
import os
import re
import runpy
import signal
import subprocess
import sys
import traceback
import types
from collections.abc import Mapping, Sequence
from multiprocessing import process, spawn, util
from pathlib import Path

SPAWNED = re.compile(r"spawn_main\(tracker_fd=(\d+), pipe_handle=(\d+)\)")


class WarmPython:
    """What subprocess.Popen would give for `python words...`, or for `python -c code`."""

    def __init__(
        self,
        words: Sequence[object],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdout: Path,
        stderr: Path | None = None,
    ) -> None:
        from ddp_helpers.ranks import fork_server

        fork_server.warm_up()
        self.args = [str(word) for word in words]
        files = [str(Path(file).absolute()) for file in (stdout, stderr or stdout)]
        context = multiprocessing.get_context("forkserver")
        child = context.Process(target=_run, args=(self.args, str(cwd), dict(env), *files))
        main, sys.modules["__main__"] = sys.modules["__main__"], types.ModuleType("__main__")
        try:  # pytest's own __main__ is nothing for the child
            child.start()
        finally:
            sys.modules["__main__"] = main
        self._child = child
        self.pid = child.pid

    @property
    def returncode(self) -> int | None:
        """The exit code, or minus the signal that ended it; None while it runs."""
        return self._child.exitcode

    def poll(self) -> int | None:
        """The same."""
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; raises subprocess.TimeoutExpired."""
        self._child.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it still runs."""
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send it SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send it SIGKILL."""
        self.send_signal(signal.SIGKILL)


def _run(words: list[str], cwd: str, env: dict[str, str], stdout: str, stderr: str) -> None:
    """In the child: be that script, to the exit code."""
    os.setsid()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for name, descriptor in ((stdout, 1), (stderr, 2)):
        file = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.dup2(file, descriptor)
        os.close(file)
    if env.get("PYTHONUNBUFFERED"):
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(write_through=True)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
    process._parent_process = None
    process.ORIGINAL_DIR = cwd  # where mp.spawn looks for a script that was named without a folder
    util.spawnv_passfds = _fork_instead
    torch = sys.modules["torch"]  # the server was told to load with one thread
    torch.set_num_threads(int(env.get("OMP_NUM_THREADS", len(os.sched_getaffinity(0)))))
    try:
        if words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = words
            sys.path[0] = os.path.dirname(os.path.abspath(words[0]))
            runpy.run_path(words[0], run_name="__main__")
    except KeyboardInterrupt:  # Python ends itself by the signal
        traceback.print_exc()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        util._exit_function()
        atexit._run_exitfuncs()


_spawnv_passfds = util.spawnv_passfds


def _fork_instead(path: bytes, args: list[str], passfds: tuple[int, ...]) -> int:
    """Where multiprocessing would execute Python anew for a child of mp.spawn."""
    match = SPAWNED.search(" ".join(map(str, args)))
    if match is None:  # its resource tracker: cheap
        return _spawnv_passfds(path, args, passfds)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        kept = {0, 1, 2, *passfds}
        for descriptor in map(int, os.listdir("/proc/self/fd")):
            if descriptor not in kept:
                with contextlib.suppress(OSError):  # that of the listing itself
                    os.close(descriptor)
        for number in signal.valid_signals():  # a new program has none of its parent's handlers
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.modules["__main__"] = types.ModuleType("__main__")
        sys.argv = ["-c", "--multiprocessing-fork"]
        tracker, pipe = map(int, match.groups())
        spawn.spawn_main(tracker_fd=tracker, pipe_handle=pipe)
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)
