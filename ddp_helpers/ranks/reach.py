"""How a launch reaches its hosts: by ssh or, in an allocation of Slurm, by srun."""

from __future__ import annotations

import contextlib
import os
import queue
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from ddp_helpers.arguments import check_whole
from ddp_helpers.ranks import host_wire, wire
from ddp_helpers.ranks.host_wire import Beat, Hello, Left, Reader

SLURM = "slurm"
PYTHON = "DDP_HELPERS_PYTHON"  # in the launcher's environment: the path of Python on the hosts
SECONDS = 10  # for a look at the allocation; it takes milliseconds
# no question is asked that nobody could answer; a way that is lost is noticed
SSH_OPTIONS = {"BatchMode": "yes", "ConnectTimeout": 10, "LogLevel": "ERROR"}
SSH_OPTIONS |= {"ServerAliveInterval": 5, "ServerAliveCountMax": 3}
SRUN = ("srun", "--overlap", "--nodes=1", "--ntasks=1", "--cpu-bind=none")
CANT_SSH, NOT_FOUND, CANT_EXECUTE = 255, 127, 126  # exit codes of ssh and of a shell
LONGEST_END = 3.0  # seconds for ssh to end once its host has said all


def checked_hosts(hosts: object, nprocs_per_host: object, nprocs: object) -> list[str]:
    """The names of the hosts; `"slurm"` means all of the allocation.

    Raises:
        ValueError: no such hosts or numbers can be; or these are not of the allocation.
    """
    if hosts is None:
        raise ValueError(
            f"nprocs_per_host={nprocs_per_host!r} without hosts=: name them, hosts=['a', 'b'], or "
            "give nprocs= for this machine"
        )
    if nprocs is not None:
        raise ValueError(
            f"nprocs={nprocs!r} together with hosts=: give nprocs_per_host=, the ranks of each host"
        )
    if nprocs_per_host is None:
        raise ValueError(f"hosts={hosts!r} without nprocs_per_host=: how many ranks has each host?")
    check_whole("nprocs_per_host", nprocs_per_host, least=1)
    nodes = allocated()
    names = nodes if hosts == SLURM else hosts
    if hosts == SLURM and not nodes:
        raise ValueError('hosts="slurm", but this is no allocation of Slurm: see salloc, sbatch')
    if isinstance(names, str) or not isinstance(names, Sequence) or not names:
        raise ValueError(f'hosts={hosts!r}: expected names, hosts=["a", "b"], or "slurm"')
    for name in names:
        # ssh would take one that begins with a dash for an option
        if not isinstance(name, str) or not name or name.startswith("-") or name.split() != [name]:
            raise ValueError(f"hosts has {name!r}: expected the name or address of a machine")
        if list(names).count(name) > 1:
            raise ValueError(f'hosts has "{name}" twice: each host once, with more ranks on each')
        if nodes and name not in nodes:
            raise ValueError(
                f'hosts has "{name}", which is not of this Slurm allocation ({", ".join(nodes)})'
            )
    return list(names)


def allocated() -> list[str]:
    """The hosts of the allocation of Slurm that this process is in; none outside of one."""
    nodes = os.environ.get("SLURM_JOB_NODELIST")
    if not nodes or not shutil.which("srun"):
        return []
    command = ["scontrol", "show", "hostnames", nodes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    return done.stdout.split()


def command_for(host: str, words: Sequence[str], *, by_srun: bool) -> list[str]:
    """What runs our module on a host, with these arguments."""
    python = os.environ.get(PYTHON, sys.executable)
    # -P: nothing is imported from the folder where a login begins
    module = [python, "-P", "-m", "ddp_helpers.ranks.on_host", *words]
    if by_srun:
        return [*SRUN, f"--nodelist={host}", *module]
    path = os.environ.get("PYTHONPATH")
    variables = ["env", f"PYTHONPATH={path}"] if path else []
    options = [f"-o{name}={value}" for name, value in SSH_OPTIONS.items()]
    return ["ssh", "-T", *options, host, f"exec {shlex.join([*variables, *module])}"]


@dataclass(eq=False)
class Host:
    """The launcher's side of one host: a process, ssh or srun, that carries words both ways."""

    name: str
    number: int
    command: list[str]
    hello: Hello | None = None
    left: Left | None = None
    lost: str = ""
    """Why its words no longer come, or nothing."""
    over_at: float = 0.0
    """When it had left, or was lost."""
    heard_at: float = field(default_factory=time.monotonic)
    clock_ahead: float = 0.0
    """Seconds that its monotonic clock is ahead of ours."""

    def start(self) -> None:
        """Call it; `hear` takes its words from `output`.

        Raises:
            OSError: there is no such program here.
        """
        self._errors = os.memfd_create("ddp_helpers-errors")
        self._words: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._reader = Reader()
        try:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                start_new_session=True,  # a Ctrl-C is for the launcher
            )
        except FileNotFoundError:
            os.close(self._errors)
            raise OSError(f"there is no `{self.command[0]}` here, which reaches hosts") from None
        assert self._process.stdout is not None
        self.output = self._process.stdout.fileno()
        # in a thread: a host that does not read must not hold the others up
        self._writer = threading.Thread(target=self._write, daemon=True)
        self._writer.start()

    def send(self, message: object) -> None:
        """Tell it something."""
        self._words.put(message)

    def hear(self) -> list[object]:
        """What it says now; call it when `output` can be read. At its end, `lost` says why."""
        data = os.read(self.output, host_wire.READ_AT_ONCE)
        self.heard_at = time.monotonic()
        if not data:
            self.lose(self._how_it_ended())
            return []
        try:
            messages = list(self._reader.read(data))
        except Exception:
            self.lose("it has another version of ddp_helpers, whose words can't be read")
            return []
        for message in messages:
            if isinstance(message, Hello):
                self.hello, self.clock_ahead = message, message.clock - self.heard_at
            if isinstance(message, Left):
                self.left, self.over_at = message, self.heard_at
        return messages

    @property
    def is_over(self) -> bool:
        """Nothing more is to be heard of it."""
        return self.left is not None or bool(self.lost)

    def lose(self, why: str) -> None:
        """It can't be heard any more; what it has left counts all the same."""
        if not self.is_over:
            self.lost, self.over_at = why, time.monotonic()

    def hang_up(self) -> None:
        """Have what runs there end; `close` waits for it."""
        self._words.put(None)

    def close(self) -> None:
        """Hang up, and see that no process stays here."""
        self.hang_up()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(LONGEST_END)
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._writer.join(LONGEST_END)  # it has closed the other pipe
        if self._process.stdout is not None:
            self._process.stdout.close()
        os.close(self._errors)

    def last_word(self) -> str:
        """What it, or ssh, said last of its errors."""
        said = wire.read_whole(self._errors).decode("utf-8", "replace").strip().splitlines()
        return said[-1] if said else ""

    def _write(self) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        message: object = Beat()
        with contextlib.suppress(OSError):
            while message is not None:
                pipe.write(host_wire.encode(message))
                pipe.flush()
                message = Beat()
                with contextlib.suppress(queue.Empty):
                    message = self._words.get(timeout=host_wire.BEAT)
        with contextlib.suppress(OSError):
            pipe.close()

    def _how_it_ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(LONGEST_END)
        code = self._process.poll()
        last = self.last_word() or f"exit code {code}"
        if self.hello is not None:
            return f"{self.command[0]} ended: {last}"
        return _why_not_reached(self.name, self.command[0], code, last)


def _why_not_reached(name: str, program: str, code: int | None, last: str) -> str:
    python = os.environ.get(PYTHON, sys.executable)
    if "No module named" in last:
        return f"its Python ({python}) says {last!r}: install the same there as here"
    if code in (NOT_FOUND, CANT_EXECUTE):
        return (
            f"it can't run {python} ({last}): install the same Python at the same path, or set "
            f"{PYTHON} here to its path there"
        )
    if program == "ssh" and code == CANT_SSH:
        return (
            f"ssh can't reach it ({last}): see that `ssh -o BatchMode=yes {name} true` works, with "
            "a key in place of a password, and with the host's own key known"
        )
    return f"{program} ended: {last}"
