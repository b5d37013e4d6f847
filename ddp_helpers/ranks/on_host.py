"""What a launch starts on each of its hosts: `python -m ddp_helpers.ranks.on_host`.

It starts, watches and ends the ranks of its host as `launch()` does on one machine, tells the
launcher what they do and leave (host_wire.py), and ends with it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from ddp_helpers.environment.cards import cards, own_address
from ddp_helpers.environment.facts import check_before_torch
from ddp_helpers.evidence.records import RankResult
from ddp_helpers.ranks import fork_server, host_wire
from ddp_helpers.ranks.host_task import Task, job_of
from ddp_helpers.ranks.host_wire import (
    Beat,
    Began,
    End,
    Hello,
    Left,
    Looked,
    Meet,
    Met,
    Opened,
    Printed,
    RankEnded,
    Refused,
    Reported,
    Stop,
)
from ddp_helpers.ranks.launched import Events, LaunchedRank
from ddp_helpers.ranks.messages import Job
from ddp_helpers.ranks.stacks import LOOK, STACK_WAIT, StrandedLook
from ddp_helpers.ranks.stall import StallWatch
from ddp_helpers.ranks.starting import prepare, rendezvous_store
from ddp_helpers.ranks.supervisor import Supervisor
from ddp_helpers.ranks.travel import Loaded

M = TypeVar("M")
LONGEST_END = 5.0  # seconds for the ranks to end once the launcher is gone; then the kernel does it
LONGEST_LOOK = 3.0  # seconds for all hosts to have looked where their ranks stand
LONGEST_WAIT = 120.0  # seconds for the launcher to say what to do; another host may be slow
FAR = "192.0.2.1"  # an address that nobody has (RFC 5737): the way there is the way out


class LauncherGone(Exception):
    """Nobody is left to work for."""


class Launcher:
    """The launcher, as its host sees it: words that come, words to send."""

    def __init__(self) -> None:
        self.stop_asked = self.end_asked = False
        self._words: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._heard_at = time.monotonic()
        # what anything else here prints must not come between our lines, nor read the launcher's
        self._out, self._in = os.dup(1), os.dup(0)
        os.dup2(2, 1)
        nowhere = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nowhere, 0)
        os.close(nowhere)
        for work in (self._hear, self._beat, self._watch_silence):
            threading.Thread(target=work, daemon=True).start()

    def send(self, *messages: object) -> None:
        """Tell it; one that is gone needs no word."""
        data = memoryview(b"".join(map(host_wire.encode, messages)))
        with self._lock, contextlib.suppress(OSError):
            while data:
                data = data[os.write(self._out, data) :]

    def next(self, kind: type[M]) -> M:
        """Its next word, which must be of this kind.

        Raises:
            LauncherGone: no such word will come.
        """
        with contextlib.suppress(queue.Empty):
            word = self._words.get(timeout=LONGEST_WAIT)
            if isinstance(word, kind):
                return word
        raise LauncherGone

    def _hear(self) -> None:
        reader = host_wire.Reader()
        with contextlib.suppress(Exception):
            while data := os.read(self._in, host_wire.READ_AT_ONCE):
                self._heard_at = time.monotonic()
                for word in reader.read(data):
                    if isinstance(word, Stop):
                        self.stop_asked = True
                    elif isinstance(word, End):
                        self.end_asked = True
                    elif not isinstance(word, Beat):
                        self._words.put(word)
        self._leave()

    def _beat(self) -> None:
        while True:
            time.sleep(host_wire.BEAT)
            self.send(Beat())

    def _watch_silence(self) -> None:
        """In a thread of its own: where the network is gone, a word may take for ever to send."""
        while time.monotonic() < self._heard_at + host_wire.LONGEST_SILENCE_OF_LAUNCHER:
            time.sleep(host_wire.BEAT)
        print("nothing was heard from the launcher any more, so the ranks were ended", flush=True)
        self._leave()

    def _leave(self) -> None:
        """The launcher is gone: end the ranks in good order, or at once if that takes too long."""
        self.stop_asked = self.end_asked = True
        self._words.put(None)
        time.sleep(LONGEST_END)
        os._exit(1)  # with the lifelines that this process holds the kernel kills the ranks


class Told:
    """A view that tells the launcher."""

    def __init__(self, launcher: Launcher, first_rank: int) -> None:
        self._launcher = launcher
        self._first_rank = first_rank

    def output(self, rank: int, lines: list[str]) -> None:
        """A rank printed whole lines."""
        self._launcher.send(Printed(self._first_rank + rank, lines))

    def report(self, rank: int, step: int, total: int | None, loss: float | str | None) -> None:
        """A rank told how far it is."""
        self._launcher.send(Reported(self._first_rank + rank, step, total, loss))

    def end(self, rank: int, how: str) -> None:
        """A rank ended."""
        self._launcher.send(RankEnded(self._first_rank + rank, how))

    def tick(self) -> None:
        """Nothing is drawn here."""

    def close(self) -> None:
        """Nothing is drawn here."""

    def is_stop_asked(self) -> bool:
        """True once the launcher says so, or is gone."""
        return self._launcher.stop_asked


class OfOneHost(Supervisor):
    """The ranks of this host. Whether they wait in vain can't be told here: others may come yet."""

    @staticmethod
    def load(data: bytes) -> Loaded:
        """Values go on to the launcher as they are."""
        return data, None

    def __init__(self, job: Job, task: Task, launcher: Launcher) -> None:
        super().__init__(job, task.start_method, task.timeout, Told(launcher, job.first_rank))
        self._stranded, self._stall = _NeverStranded(), _NeverStalled()
        self._launcher = launcher

    def _take_stacks(self, patience: float = STACK_WAIT) -> None:
        """The last thing before the ranks are ended: wait until other hosts have looked, too."""
        super()._take_stacks(patience)
        self._launcher.send(Looked())
        limit = time.monotonic() + LONGEST_LOOK
        while not self._launcher.end_asked and time.monotonic() < limit:
            self._events.pump(LOOK)


class _NeverStranded(StrandedLook):
    def is_so(self, ranks: Sequence[LaunchedRank], job: Job, events: Events) -> bool:
        return False


class _NeverStalled(StallWatch):
    def tell(self, ranks: Sequence[LaunchedRank], job: Job, events: Events) -> str | None:
        return None


def main(place: str, start_method: str) -> None:
    """Be a host of one launch.

    Args:
        place: host_wire.FIRST for the host that has the store, or OTHER.
        start_method: as of `launch()`.
    """
    launcher = Launcher()
    launcher.send(Hello(host_wire.versions(), _addresses(), time.monotonic()))
    with contextlib.suppress(LauncherGone), contextlib.ExitStack() as files:
        try:
            check_before_torch()
            if start_method == "forkserver":
                fork_server.warm_up()  # torch loads there while the hosts meet
            if place == host_wire.FIRST:
                launcher.send(Opened(files.enter_context(rendezvous_store(""))))
            else:
                launcher.send(Met(_reached(launcher.next(Meet))))
            _do(launcher, launcher.next(Task))
        except (OSError, RuntimeError, ValueError) as problem:
            launcher.send(Refused(str(problem)))


def _do(launcher: Launcher, task: Task) -> None:
    job, note = job_of(task)
    prepare(task.start_method)
    supervisor = OfOneHost(job, task, launcher)
    launcher.send(Began(note))
    ranks = supervisor.run()
    launcher.send(Left(tuple(_of_all(ranks, task.first_rank)), supervisor.ending))


def _addresses() -> tuple[str, ...]:
    """Where others may reach this host, the likeliest first; last of all from this very machine."""
    known = [address for addresses in cards().values() for address in addresses]
    likely = os.environ.get("SSH_CONNECTION", "").split()[2:3]  # where the launcher has reached it
    with contextlib.suppress(OSError):
        likely.append(own_address(FAR))
    here = dict.fromkeys([address for address in likely if address in known] + known)
    return tuple(sorted(here, key=lambda address: address.startswith("127.")))


def _reached(meet: Meet) -> str:
    """The first of the addresses where somebody answers at the port, or nothing."""
    seconds = host_wire.LONGEST_MEETING / max(1, len(meet.addresses))
    for address in meet.addresses:
        with contextlib.suppress(OSError):
            socket.create_connection((address, meet.port), seconds).close()
            return address
    return ""


def _of_all(ranks: Sequence[RankResult], first_rank: int) -> list[RankResult]:
    return [replace(rank, rank=first_rank + rank.rank) for rank in ranks]


if __name__ == "__main__":
    main(*sys.argv[1:])
    os._exit(0)  # the interpreter's own end would take half a second, which the reader waits for
