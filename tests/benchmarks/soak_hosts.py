"""The soak's hosts: long-living processes that launch ranks, and what may be left of them."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
from jupyter_client import KernelManager
from jupyter_client.kernelspec import KernelSpec

RANKS_FILE = Path(__file__).with_name("soak_ranks.py")
SHARED_MEMORY = Path("/dev/shm")
# of torch, of multiprocessing, of OpenMP; other people keep their files there, too
SHARED_NAMES = ("torch_", "sem.soak", "psm_", "__KMP_")
KNOWN = set(os.listdir(SHARED_MEMORY))
PREFIX = f"soak-{os.getpid()}-"
# a machine that is busy with other work is slow, and that alone is no fault
PATIENCE = 300.0  # seconds for a host to start or to end, and beyond a launch's own limit
LATE_REPLY = 20.0  # seconds after which a kernel that says it is idle will not answer any more
SETTLE = 120.0  # seconds in which everything must be gone; a fork server first loads torch
COMPLAINTS = ("Traceback", "Exception ignored", "leaked", "Fatal Python", "Error:")


@dataclass
class Reply:
    """How a command ended: the name and text of its error, or its answer; or the host died."""

    ename: str = ""
    evalue: str = ""
    answer: object = None
    died: bool = False
    traceback: str = ""


class Host:
    """A process that obeys, with a temporary folder and a working folder of its own.

    Whatever it starts carries its TMPDIR in its environment, so nothing escapes a look at /proc.
    """

    kind = ""

    def __init__(self) -> None:
        self._own = tempfile.TemporaryDirectory(prefix=PREFIX, ignore_cleanup_errors=True)
        self.folder = Path(self._own.name)
        self.tmp, self.cwd = self.folder / "tmp", self.folder / "cwd"
        for name in ("tmp", "cwd", "runtime", "ipython"):
            (self.folder / name).mkdir()
        self.environment = os.environ | {
            "TMPDIR": str(self.tmp),
            "JUPYTER_RUNTIME_DIR": str(self.folder / "runtime"),
            "IPYTHONDIR": str(self.folder / "ipython"),
        }
        self._marker = f"TMPDIR={self.tmp}\0".encode()
        self.complaints = (self.folder / "stderr").open("w+", errors="replace")
        self.streamed = ""
        self._known: set[str] = set()
        self.baseline: dict | None = None
        self.used = 0

    # ---- to be filled in

    pid = 0
    at_prompt: Callable[[], None] | None = None
    """What the reader does when a kernel asks for a line."""

    def start(self, code: str, answer: str = "None") -> None:
        """Begin to run `code`; its reply carries the value of the expression `answer`."""
        raise NotImplementedError

    def reply(self, seconds: float) -> Reply:
        """Wait for the command to end, or for the host to die. Raises: TimeoutError."""
        raise NotImplementedError

    def interrupt(self, group: bool) -> None:
        """Press stop, or Ctrl-C."""
        raise NotImplementedError

    def end(self) -> None:
        """A normal end."""
        raise NotImplementedError

    # ---- for all

    def run(self, code: str, answer: str = "None", seconds: float = PATIENCE) -> Reply:
        """Run `code` and wait for it."""
        self.start(code, answer)
        return self.reply(seconds)

    def kill(self, signum: int, group: bool) -> None:
        """Send a signal to the host, or to its process group."""
        with contextlib.suppress(ProcessLookupError):
            (os.killpg if group else os.kill)(self.pid, signum)

    def dies(self, seconds: float = PATIENCE) -> bool:
        """True if the host ends within this time."""
        with contextlib.suppress(psutil.NoSuchProcess, psutil.TimeoutExpired):
            psutil.Process(self.pid).wait(seconds)
        return not psutil.pid_exists(self.pid) or is_zombie(self.pid)

    def processes(self) -> dict[int, str]:
        """Everything that this host, or a process of its, has started and that still runs."""
        return marked(self._marker)

    def ranks(self) -> list[psutil.Process]:
        """The processes of ranks, in the order of their start, without those that stand by."""
        with contextlib.suppress(psutil.NoSuchProcess):
            mine = psutil.Process(self.pid).children()
            spawned = [p for p in mine if "spawn_main" in " ".join(p.cmdline())]
            forked = [p for p in self._forked() if not stands_by(p.pid)]
            return sorted(spawned + forked, key=lambda p: p.pid)
        return []

    def standby(self) -> list[int]:
        """The process numbers of the ranks that stand by."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return [process.pid for process in self._forked() if stands_by(process.pid)]
        return []

    def _forked(self) -> list[psutil.Process]:
        mine = psutil.Process(self.pid).children()
        servers = [p for p in mine if "forkserver import main" in " ".join(p.cmdline())]
        return [child for server in servers for child in server.children()]

    def left(self, alive: bool, folder: str) -> list[str]:
        """What should be gone, once everything had time to settle."""
        limit = time.monotonic() + SETTLE
        while (found := self._left(alive, folder)) and time.monotonic() < limit:
            time.sleep(0.02)
        KNOWN.update(os.listdir(SHARED_MEMORY))  # told once is enough
        self._known |= set(os.listdir(self.tmp)) - {folder}
        return found

    def _left(self, alive: bool, folder: str) -> list[str]:
        running = self.processes()
        helpers = ("forkserver import main", "resource_tracker import main")
        ready = self.standby() if alive and self.kind == "kernel" else []
        found = []
        for pid, command in running.items():
            if alive and (pid == self.pid or pid in ready):
                continue
            if alive and any(h in command for h in helpers) and parent(pid) == self.pid:
                continue
            found.append(f"process {pid} (parent {parent(pid)}): {command}")
        known = {folder, *self._known}
        temporary = [path for path in self.tmp.iterdir() if path.name not in known]
        temporary = [path for path in temporary if not is_empty_cache(path)]
        if not alive:
            temporary = [path for path in temporary if not is_unguarded(path)]
        found += [f"temporary {path.name}" for path in temporary]
        found += [f"file {name}" for name in os.listdir(self.cwd)]
        new = sorted(set(os.listdir(SHARED_MEMORY)) - KNOWN)
        new = [name for name in new if may_be_ours(name, running)]
        found += [f"{len(new)} in /dev/shm: {' '.join(new)[:200]}"] if new else []
        return found + (self._zombies() if alive else [])

    def _zombies(self) -> list[str]:
        with contextlib.suppress(psutil.NoSuchProcess):
            below = psutil.Process(self.pid).children(recursive=True)
            return [f"zombie {p.pid}" for p in below if p.status() == psutil.STATUS_ZOMBIE]
        return []

    def told(self) -> str:
        """What was written to stderr by others than the ranks, if it complains."""
        self.complaints.seek(0)
        text = self.complaints.read() + self.streamed
        self.complaints.seek(0)
        self.complaints.truncate()
        self.streamed = ""
        return text if any(word in text for word in COMPLAINTS) else ""

    def close(self) -> None:
        """End it by force, if it still runs, and everything that it has started."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.complaints.close()
        self._own.cleanup()


def marked(marker: bytes) -> dict[int, str]:
    """The processes whose environment, when they were started, held this text; not zombies."""
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if marker in Path(f"/proc/{name}/environ").read_bytes() + b"\0":
                command = Path(f"/proc/{name}/cmdline").read_bytes()
                if command:
                    found[int(name)] = command.replace(b"\0", b" ").decode()[:120]
    return found


def stands_by(pid: int) -> bool:
    """True for a rank that waits for a launch that will need it."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text() == "ddp-standby\n"
    return False


def is_zombie(pid: int) -> bool:
    """True for a process that has ended and that its parent has not asked about yet."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


def is_empty_cache(path: Path) -> bool:
    """True for the folder that `import torch._dynamo` makes: one a user, and nothing in it."""
    return path.name.startswith("torchinductor_") and not any(path.iterdir())


def is_unguarded(path: Path) -> bool:
    """True for a folder of sockets that a killed host had just made.

    Its fork server, which puts its own socket there, removes it; before that starts, nobody can.
    """
    return path.name.startswith("pymp-") and not any(path.iterdir())


def parent(pid: int) -> int:
    """The parent of a process, or 0 if it is gone."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    return 0


def may_be_ours(name: str, running: dict[int, str]) -> bool:
    """False for shared memory that somebody else on this machine has made.

    The soak's own semaphores have a prefix; `sem.mp-` is everybody else's.
    """
    if not name.startswith(SHARED_NAMES):
        return False
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if int(pid) not in running and f"/{name}" in Path(f"/proc/{pid}/maps").read_text():
                return False
    return True


class ScriptHost(Host):
    """A Python script that launches again and again."""

    kind = "script"

    def __init__(self) -> None:
        super().__init__()
        answers, theirs = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, str(RANKS_FILE), "--host", str(theirs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self.complaints,
            env=self.environment,
            cwd=self.cwd,
            pass_fds=[theirs],
            start_new_session=True,
        )
        os.close(theirs)
        self.pid = self._process.pid
        self._answers: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._listen, args=(answers,), daemon=True).start()
        assert not self.run("pass").died  # from here on a signal finds it ready

    def _listen(self, answers: int) -> None:
        with open(answers) as lines:
            for line in lines:
                self._answers.put(Reply(**json.loads(line)))
        self._answers.put(Reply(died=True))

    def start(self, code: str, answer: str = "None") -> None:
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"code": code, "answer": answer}).encode() + b"\n")
            self._process.stdin.flush()

    def reply(self, seconds: float) -> Reply:
        try:
            reply = self._answers.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None
        if reply.died:
            self._process.wait(PATIENCE)
        elif reply.answer is not None:
            reply.answer = json.loads(reply.answer)
        return reply

    def interrupt(self, group: bool) -> None:
        self.kill(signal.SIGINT, group)

    def end(self) -> None:
        self._process.stdin.close()
        self._process.wait(PATIENCE)


class KernelHost(Host):
    """A Jupyter kernel, which runs the soak's text as its first cell."""

    kind = "kernel"

    def __init__(self, patience: float = PATIENCE) -> None:
        super().__init__()
        self._patience = patience
        self.manager = KernelManager(
            connection_file=str(self.folder / "runtime" / "kernel.json"),
            kernel_name="python3",
            transport="ipc",  # of many kernels that start at once, two may pick the same port
            ip=str(self.folder / "runtime" / "kernel"),
        )
        # this interpreter's kernel, wherever a kernel spec of that name points
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        self.manager._kernel_spec = KernelSpec(argv=argv, display_name="soak", language="python")
        self.manager.start_kernel(env=self.environment, cwd=str(self.cwd), stderr=self.complaints)
        self._connect()

    def _connect(self) -> None:
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=self._patience)
        self.pid = self.manager.provisioner.pid
        reply = self.run(RANKS_FILE.read_text(), seconds=self._patience)
        assert not reply.ename, reply
        self.run("print('y' * 200_000)")  # pyzmq starts a thread for large messages, once

    def restart(self, now: bool) -> None:
        """What a notebook's restart button does; a new process with the same connection file."""
        self.client.stop_channels()
        self.manager.restart_kernel(now=now)
        self.baseline = None  # a new process
        self._connect()

    def start(self, code: str, answer: str = "None") -> None:
        self._interrupts, self._idle_at = 0, float("inf")
        self._asked = self.client.execute(
            code, user_expressions={"answer": f"json.dumps({answer})"}, stop_on_error=False
        )

    def reply(self, seconds: float) -> Reply:
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            self._drain()
            try:
                message = self.client.get_shell_msg(timeout=0.05)
            except queue.Empty:
                self._look_for_a_prompt()
                if not self.manager.is_alive():
                    self.client.stop_channels()
                    return Reply(died=True)
                # one that comes while ipykernel answers ends the answer ("KeyboardInterrupt caught
                # in kernel"); without our package, too, in one of five pairs
                if self._interrupts > 1 and time.monotonic() > self._idle_at + LATE_REPLY:
                    return Reply("KeyboardInterrupt", "no reply")
                continue
            if self._is_ours(message):
                return self._read(message["content"])
        raise TimeoutError

    def _look_for_a_prompt(self) -> None:
        with contextlib.suppress(queue.Empty):
            self.client.get_stdin_msg(timeout=0)
            if self.at_prompt is not None:
                self.at_prompt()

    def type(self, line: str) -> None:
        """Answer a prompt."""
        self.client.input(line)

    def _is_ours(self, message: dict) -> bool:
        return message["parent_header"].get("msg_id") == self._asked

    def _drain(self) -> None:
        with contextlib.suppress(queue.Empty):
            while True:
                message = self.client.get_iopub_msg(timeout=0)
                content = message["content"]
                if content.get("execution_state") == "idle" and self._is_ours(message):
                    self._idle_at = time.monotonic()
                if message["msg_type"] == "stream" and content["name"] == "stderr":
                    self.streamed += content["text"]

    def _read(self, content: dict) -> Reply:
        if content["status"] != "ok":
            trace = "\n".join(content.get("traceback", []))
            return Reply(
                content.get("ename", "aborted"), content.get("evalue", ""), traceback=trace
            )
        answer = content["user_expressions"]["answer"]
        if answer["status"] != "ok":
            return Reply(answer["ename"], answer["evalue"])
        return Reply(answer=json.loads(ast.literal_eval(answer["data"]["text/plain"])))

    def interrupt(self, group: bool) -> None:
        self._interrupts += 1
        self.manager.interrupt_kernel()

    def end(self) -> None:
        self.client.stop_channels()
        self.manager.shutdown_kernel()

    def close(self) -> None:
        super().close()
        with contextlib.suppress(Exception):
            self.client.stop_channels()
            self.manager.shutdown_kernel(now=True)
            self.manager.cleanup_resources()


class MemoryWatch:
    """Samples what the soak's own processes need; memory that they share is counted once."""

    def __enter__(self) -> MemoryWatch:
        self.peak = 0.0
        self.most_processes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        marker = f"TMPDIR={tempfile.gettempdir()}/{PREFIX}".encode()
        while not self._stop.wait(2):
            pids = marked(marker)
            self.most_processes = max(self.most_processes, len(pids))
            self.peak = max(self.peak, sum(map(proportional_set_size, pids)))


def private_memory(pid: int) -> float:
    """What only this process needs, in MB; 0 if it is gone."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return sum(map(int, re.findall(r"^Private_\w+:\s+(\d+)", text, re.M))) / 1024
    return 0.0


def proportional_set_size(pid: int) -> float:
    """Memory of a process in MB, or 0 if it is gone; of shared pages its share counts."""
    with contextlib.suppress(OSError, TypeError):
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        return int(re.search(r"^Pss:\s+(\d+)", text, re.M)[1]) / 1024
    return 0.0
