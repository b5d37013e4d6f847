"""Two machines on one: two network namespaces joined by a cable of their own (a veth pair)."""

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

ADDRESSES = ("10.99.0.1", "10.99.0.2")  # they exist within the two namespaces only


def ip(*words: str) -> None:
    """Run the command ip; raises with what it said."""
    done = subprocess.run(["ip", *words], capture_output=True, text=True, timeout=10)
    if done.returncode:
        raise OSError(f"ip {' '.join(words)}: {done.stderr.strip()}")


def why_not() -> str:
    """Why this process can't make network namespaces; empty if it can."""
    if not shutil.which("ip"):
        return "no command ip: apt install iproute2"
    if os.geteuid() != 0:
        return "network namespaces need root"
    name = f"ddp-probe-{os.getpid()}"
    try:
        ip("netns", "add", name)
        ip("netns", "delete", name)
    except OSError as problem:
        return str(problem)
    return ""


@dataclass(frozen=True)
class Ended:
    """What a command on a node left."""

    code: int
    out: str
    err: str
    seconds: float


@dataclass
class Running:
    """A command that runs on a node."""

    process: subprocess.Popen
    folder: Path
    begin: float = field(default_factory=time.monotonic)

    def text(self, name: str = "out.txt") -> str:
        return (self.folder / name).read_text()

    def wait_for(self, text: str, seconds: float = 90) -> None:
        limit = time.monotonic() + seconds
        while text not in self.text():
            assert self.process.poll() is None, self.text("err.txt")
            assert time.monotonic() < limit, f"no {text!r} after {seconds} s: {self.text()}"
            time.sleep(0.05)

    def end(self, seconds: float = 100) -> Ended:
        code = self.process.wait(seconds)
        took = time.monotonic() - self.begin
        return Ended(code, self.text(), self.text("err.txt"), took)


@dataclass
class Node:
    """One of the two machines: its namespace, its network card, its address, its folder."""

    namespace: str
    card: str
    address: str
    folder: Path
    runs: list[Running] = field(default_factory=list)

    def start(self, *command: object, **variables: str) -> Running:
        """Start a command there, in a process group of its own."""
        folder = self.folder / f"run-{len(self.runs)}"
        folder.mkdir(parents=True)
        words = ["ip", "netns", "exec", self.namespace, *map(str, command)]
        with (folder / "out.txt").open("w") as out, (folder / "err.txt").open("w") as err:
            process = subprocess.Popen(
                words,
                cwd=self.folder,
                env=os.environ | variables,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.runs.append(Running(process, folder))
        return self.runs[-1]

    def processes(self) -> list[psutil.Process]:
        """Every living process on this node: those in its namespace, whoever started them."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.namespace], capture_output=True, text=True, timeout=10
        )
        found = []
        for pid in listed.stdout.split():
            with contextlib.suppress(psutil.Error):
                found.append(psutil.Process(int(pid)))
        return found

    def pull_the_plug(self) -> None:
        """Kill all that runs there, at once."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                process.kill()
        for run in self.runs:
            run.process.wait(10)


@contextlib.contextmanager
def two_nodes(folder: Path) -> Iterator[tuple[Node, Node]]:
    """Two joined nodes for the length of a `with` block; both are gone after it in every case."""
    pid = os.getpid()  # a name of a card has 15 letters at most
    nodes = tuple(
        Node(f"ddp-{pid}-{n}", f"ddp{pid}-{n}", address, folder / f"node-{n}")
        for n, address in enumerate(ADDRESSES)
    )
    try:
        for node in nodes:
            ip("netns", "add", node.namespace)
        a, b = nodes
        joined = ("type", "veth", "peer", "name", b.card, "netns", b.namespace)
        ip("link", "add", a.card, "netns", a.namespace, *joined)
        for node in nodes:
            ip("-n", node.namespace, "addr", "add", f"{node.address}/24", "dev", node.card)
            ip("-n", node.namespace, "link", "set", node.card, "up")
            ip("-n", node.namespace, "link", "set", "lo", "up")
        yield nodes
    finally:
        for node in nodes:
            with contextlib.suppress(Exception):
                node.pull_the_plug()
            with contextlib.suppress(Exception):
                ip("netns", "delete", node.namespace)  # its card goes with it
