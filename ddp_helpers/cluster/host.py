"""A host that runs real commands: a network namespace, or a "node" on the loopback."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from ddp_helpers.cluster.namespaces import Namespace, sent_bytes
from ddp_helpers.ranks.interrupts import HeldInterrupts

MARK = "DDP_HELPERS_HOST"  # in the environment of every process of a host


@dataclass(frozen=True)
class Ended:
    """What a command on a host left: its exit code, what it printed, the seconds it took."""

    code: int
    out: str
    err: str
    seconds: float


@dataclass
class Running:
    """A command that runs on a host."""

    process: subprocess.Popen
    folder: Path
    begin: float = field(default_factory=time.monotonic)

    def text(self, name: str = "out.txt") -> str:
        """What it has printed so far; "err.txt" for its errors."""
        return (self.folder / name).read_text(errors="replace")

    def wait_for(self, text: str, seconds: float = 90) -> None:
        """Wait until it has printed this.

        Raises:
            RuntimeError: it ended without that; the text holds its errors.
            TimeoutError: not within these seconds; the text holds what it printed.
        """
        limit = time.monotonic() + seconds
        while True:
            ended = self.process.poll() is not None  # asked before the look at the text
            if text in self.text():
                return
            if ended:
                raise RuntimeError(f"ended without {text!r}: {self.text('err.txt')[-3000:]}")
            if time.monotonic() > limit:
                raise TimeoutError(f"no {text!r} within {seconds} s: {self.text()[-3000:]}")
            time.sleep(0.05)

    def end(self, seconds: float = 100) -> Ended:
        """Wait for its end.

        Raises:
            TimeoutError: it still runs after these seconds; the text holds what it printed.
        """
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            said = self.text()[-1500:] + self.text("err.txt")[-1500:]
            raise TimeoutError(f"still runs after {seconds} s: {said}") from None
        return Ended(code, self.text(), self.text("err.txt"), time.monotonic() - self.begin)


@dataclass
class Host:
    """One of the two: name, address, network card, a folder that only it uses, its node_rank."""

    name: str
    node_rank: int
    address: str
    card: str
    port: int  # where the two may meet, on the first one
    folder: Path
    namespace: Namespace | None = None
    runs: list[Running] = field(default_factory=list)
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    ended: bool = False

    def start(self, *command: object, **variables: str) -> Running:
        """Start a command there in the host's folder, with these environment variables added.

        Raises:
            RuntimeError: the host has ended; the text says how to get another.
        """
        if self.ended:  # its folder may be gone: another must not come to lie there
            raise RuntimeError(f"host {self.name!r} has ended: first run hosts = TwoHosts() again")
        place = self.folder / f"run-{len(self.runs)}"
        place.mkdir(parents=True)
        ours = {MARK: self.mark, "TMPDIR": str(place)}  # torchrun leaves its logs there
        words = self._words(command)
        with (
            (place / "out.txt").open("w") as out,
            (place / "err.txt").open("w") as err,
            HeldInterrupts(),
        ):
            process = subprocess.Popen(
                words,
                cwd=self.folder,
                env=os.environ | ours | variables,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
            self.runs.append(Running(process, place))
        return self.runs[-1]

    def sent_bytes(self) -> int:
        """What has left by the card so far; on loopback, what this machine says to itself."""
        return self.namespace.sent_bytes() if self.namespace else sent_bytes(self.card)

    def limit(self, mbit: float | None) -> None:
        """Let the card send no more than so many megabits per second; None takes that away.

        Raises:
            OSError: it can't be limited here; the text says why.
        """
        if not self.namespace:
            raise OSError("the loopback of the whole machine is not to be slowed down")
        self.namespace.limit(mbit)

    def processes(self) -> list[psutil.Process]:
        """Every living process of this host, whoever started it."""
        return self.namespace.processes() if self.namespace else list(_marked(self.mark))

    def _words(self, command: tuple[object, ...]) -> list[str]:
        if self.namespace:
            return self.namespace.enter(*command, folder=self.folder)
        # a namespace ends with this process, even a killed one; this does it for a node on loopback
        ends_with_us = ["setpriv", "--pdeathsig=KILL"] if shutil.which("setpriv") else []
        return [*ends_with_us, *map(str, command)]

    def pull_the_plug(self) -> None:
        """Kill all that runs there, at once; the host can be used again."""
        while alive := self.processes():
            for process in alive:  # again, if one has started another meanwhile
                with contextlib.suppress(psutil.Error):
                    process.kill()
            time.sleep(0.01)  # not psutil.wait_procs, which would take our children's exit codes
        self._reap()

    def end(self) -> None:
        """Pull the plug for good: a namespace is gone after it."""
        self.ended = True
        if self.namespace:
            self.namespace.end()
        else:
            self.pull_the_plug()
        self._reap()

    def _reap(self) -> None:
        for run in self.runs:
            run.process.wait(10)


def _marked(mark: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process
