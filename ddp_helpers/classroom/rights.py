"""What lessons ask the system for, tried as they do it: namespaces, py-spy; and tasks left."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys
from pathlib import Path

from ddp_helpers.cluster.namespaces import NoNamespaces
from ddp_helpers.cluster.two_hosts import TwoHosts
from ddp_helpers.environment import facts as machine
from ddp_helpers.environment.report import Check

SECONDS = 20
# as the lesson has it: a strict system lets py-spy look where the process itself allows it
SLEEPER = "import ctypes, time; ctypes.CDLL(None).prctl(0x59616D61, -1); print(1, flush=True); "
SLEEPER += "time.sleep(60)"


def namespaces() -> Check:
    """Make the two machines of notebook 06, and end them."""
    try:
        with TwoHosts(kind="namespaces"):
            return Check("Namespaces", "pass", "two machines in one can be made")
    except NoNamespaces as error:
        reason = str(error).splitlines()[0]
    advice = (
        "Notebook 06 runs all the same, on loopback: only its slow cable is missing. With them: "
        "`sysctl kernel.unprivileged_userns_clone=1`, or in Docker `--cap-add SYS_ADMIN NET_ADMIN`."
    )
    return Check("Namespaces", "warn", f"not allowed: {reason}", advice)


def py_spy() -> Check:
    """Look into a process that sleeps, as notebook 05 does."""
    program = Path(sys.executable).with_name("py-spy")
    name = "py-spy"
    if not program.exists():
        return Check(name, "warn", "not installed", "`pip install py-spy`: notebook 05 shows it.")
    with subprocess.Popen([sys.executable, "-c", SLEEPER], stdout=subprocess.PIPE) as sleeper:
        try:
            assert sleeper.stdout  # it is a pipe
            sleeper.stdout.readline()
            command = [str(program), "dump", "--pid", str(sleeper.pid)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            return Check(name, "warn", f"no answer within {SECONDS} s", "Try it yourself.")
        finally:
            sleeper.kill()
    if done.returncode == 0:
        return Check(name, "pass", "may look into a process")
    said = (done.stderr.strip().splitlines() or ["no reason given"])[0]
    advice = "`sysctl kernel.yama.ptrace_scope=0`, or in Docker `--cap-add SYS_PTRACE`; without it "
    return Check(name, "warn", said, advice + "notebook 05 prints this line in its place.")


def tasks_left() -> float:
    """Processes and threads that may still be started; inf where nothing limits them.

    The tightest of `ulimit -u`, the system's own limits, and pids.max of every control group above.
    """
    running = sum(map(_threads, machine.PROC.glob("[0-9]*")))
    left = [math.inf]
    own, mine = machine.tasks()
    left.append(own - mine)
    for name in ("threads-max", "pid_max"):
        with contextlib.suppress(OSError, ValueError):
            left.append(int((machine.PROC / "sys/kernel" / name).read_text()) - running)
    for group in machine.cgroup_dirs("pids"):
        with contextlib.suppress(OSError, ValueError):  # "max", or no such file
            most = int((group / "pids.max").read_text())
            left.append(most - int((group / "pids.current").read_text()))
    return max(0, min(left))


def _threads(process: Path) -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir(process / "task"))
    return 0
