"""One launch on several hosts: the launcher's side.

Each host runs what one machine runs in a launch: a supervisor of its own that starts, watches and
ends its ranks (on_host.py). Here their words come together: what is shown, the first failure, which
ends the others, and the results of all ranks.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ddp_helpers.evidence.records import RankError, RankResult
from ddp_helpers.ranks import host_wire
from ddp_helpers.ranks.host_task import Task
from ddp_helpers.ranks.host_wire import (
    Began,
    End,
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
from ddp_helpers.ranks.interrupts import HeldInterrupts
from ddp_helpers.ranks.launched import Events
from ddp_helpers.ranks.reach import Host, allocated, command_for
from ddp_helpers.ranks.supervisor import Ending
from ddp_helpers.ranks.travel import load_value
from ddp_helpers.ranks.view import PER_SECOND, View, show
from ddp_helpers.words import shown

LONGEST_CALL = 60.0  # seconds for all hosts to answer, and to find one another
LONGEST_START = 180.0  # seconds for each to load torch
GRACE = 1.0  # seconds in which other hosts may still tell what became of their ranks
LONGEST_END = 15.0  # seconds for a host to end its ranks once it is told to
LATE = 15.0  # seconds after which a host that should have ended its ranks by itself is told to
HOST_LOST = "HostLostError"  # as the type of an error; no Python raises it


class HostsRun:
    """One launch on hosts; it has what `conclude()` asks of a supervisor.

    Args:
        names: of the hosts; the first one has rank 0, and the store where the ranks meet.
        task: what the ranks do; all that differs between hosts is filled in here.
        view: what the reader sees while the ranks run; None keeps quiet.
    """

    def __init__(self, names: Sequence[str], task: Task, view: View | None) -> None:
        self.task = replace(task, nnodes=len(names))
        self.start_method, self.timeout = task.start_method, task.timeout
        self.ending = Ending.ALL_ENDED
        self.seconds = 0.0
        self.quit_by = None
        by_srun = bool(allocated())
        words = [host_wire.FIRST] + [host_wire.OTHER] * (len(names) - 1)
        self._hosts = [
            Host(name, number, command_for(name, (word, task.start_method), by_srun=by_srun))
            for number, (name, word) in enumerate(zip(names, words, strict=True))
        ]
        self._called: list[Host] = []
        self._view = view
        self._events = Events()
        self._interrupts = HeldInterrupts()
        self._told: dict[type, dict[int, Any]] = {kind: {} for kind in (Opened, Met, Began, Looked)}
        self._refused: dict[int, str] = {}

    def run(self) -> list[RankResult[Any]]:
        """Start, watch and end the ranks of all hosts; results in rank order.

        Raises:
            OSError: ranks can't start there; the text says on which hosts, and why.
        """
        started_at = time.monotonic()
        with self._interrupts, contextlib.ExitStack() as files:
            files.callback(self._events.close)
            if self._view:
                files.callback(self._view.close)
            try:
                self._call(files)
                self._start()
                self._watch()
            except KeyboardInterrupt:
                self.ending = Ending.INTERRUPTED
            finally:
                for host in self._called:
                    host.hang_up()
                files.close()
                self.seconds = time.monotonic() - started_at
            if self.ending is Ending.INTERRUPTED:
                self._interrupts.forget()
        return [rank for host in self._hosts for rank in self._results(host)]

    # ---- start

    def _call(self, files: contextlib.ExitStack) -> None:
        """Reach all hosts, and see that they are fit.

        Raises:
            OSError: one is not.
        """
        for host in self._hosts:
            host.start()
            self._called.append(host)
            files.callback(host.close)
            self._events.on(host.output, self._hears(host))
        self._wait(lambda host: host.hello is not None, LONGEST_CALL)
        ours = host_wire.versions()
        for host in self._hosts:
            assert host.hello
            for name, theirs in host.hello.versions.items():
                if theirs != ours.get(name):
                    self._refused.setdefault(
                        host.number,
                        f"{name} is {theirs} there and {ours.get(name)} here: install the same "
                        "version on all hosts",
                    )
        self._raise_refused()

    def _start(self) -> None:
        """Have them meet, and give them their work.

        Raises:
            OSError: they can't.
        """
        first, others = self._hosts[0], self._hosts[1:]
        self._wait(lambda host: host is not first or 0 in self._told[Opened], LONGEST_CALL)
        address, port = "127.0.0.1", self._told[Opened][0].port
        if others:
            assert first.hello
            for host in others:
                host.send(Meet(first.hello.addresses, port))
            self._wait(lambda host: host is first or host.number in self._told[Met], LONGEST_CALL)
            address = self._meeting_place(others, port)
        for host in self._hosts:
            host.send(replace(self.task, node_rank=host.number, address=address, port=port))
        self._wait(lambda host: host.number in self._told[Began], LONGEST_START)
        for host in self._hosts:
            if note := self._told[Began][host.number].note:
                show(f"{shown(f'note: on host {host.name} {note}')}\n")

    def _meeting_place(self, others: Sequence[Host], port: int) -> str:
        first = self._hosts[0]
        assert first.hello
        reached = {host: self._told[Met][host.number].address for host in others}
        for host, address in reached.items():
            if address != next(iter(reached.values())) or not address:
                tried = ", ".join(first.hello.addresses)
                self._refused[host.number] = (
                    f"it can't reach host {first.name} ({tried}; port {port}) as the others do: "
                    "let each host reach all ports of the others"
                )
        self._raise_refused()
        return reached[others[0]]

    def _wait(self, is_done: Callable[[Host], bool], seconds: float) -> None:
        """Wait for all hosts.

        Raises:
            OSError: one refused, was lost or took too long.
            KeyboardInterrupt: the reader has stopped it.
        """
        limit = time.monotonic() + seconds
        while waited := [host for host in self._hosts if not (is_done(host) or host.is_over)]:
            self._interrupts.deliver()
            if self._refused:  # the others would wait for it
                break
            if time.monotonic() > limit:
                for host in waited:
                    said = host.last_word()
                    self._refused[host.number] = f"it did not answer within {seconds:g} s" + (
                        f" ({said})" if said else ""
                    )
                break
            self._pump()
        for host in self._hosts:
            if host.lost:
                self._refused.setdefault(host.number, host.lost)
        self._raise_refused()

    def _raise_refused(self) -> None:
        if self._refused:
            lines = [f"host {self._hosts[at].name}: {why}" for at, why in self._refused.items()]
            raise OSError("\n".join(lines))

    # ---- watch

    def _watch(self) -> None:
        """Until all have left or are lost; the first that ends in another way ends the others."""
        deadline = time.monotonic() + self.timeout + LATE
        why: Ending | None = None
        told_at = math.inf
        have_looked = False
        while running := [host for host in self._hosts if not host.is_over]:
            self._pump()
            why = why or self._why_end(deadline)
            if told_at == math.inf and (why or self._told[Looked]):
                told_at = time.monotonic()
                self._tell(Stop())
            if not have_looked and all(host.number in self._told[Looked] for host in running):
                have_looked = True
                self._tell(End())
            if time.monotonic() > told_at + LONGEST_END:
                for host in running:
                    host.lose(f"it did not end its ranks within {LONGEST_END:g} s")
        self.ending = why or self._how_they_ended()

    def _why_end(self, deadline: float) -> Ending | None:
        """Why all ranks must end, as far as it is not their own doing."""
        if self._interrupts.waiting:
            return Ending.INTERRUPTED
        if self._view and self._view.is_stop_asked():
            return Ending.STOPPED
        now = time.monotonic()
        if any(host.lost and now > host.over_at + GRACE for host in self._hosts):
            return Ending.FAILED
        return Ending.TIMED_OUT if now > deadline else None

    def _how_they_ended(self) -> Ending:
        """The first way that was not the launcher's own doing."""
        if any(host.lost for host in self._hosts):
            return Ending.FAILED
        left = [host.left for host in sorted(self._hosts, key=lambda host: host.over_at)]
        own = [each.ending for each in left if each and each.ending is not Ending.STOPPED]
        return next((ending for ending in own if ending is not Ending.ALL_ENDED), Ending.ALL_ENDED)

    def _tell(self, message: object) -> None:
        for host in self._hosts:
            host.send(message)

    def _pump(self) -> None:
        self._events.pump(1 / PER_SECOND)
        if self._view:
            self._view.tick()
        for host in self._hosts:
            silent_since = host.heard_at if host.hello else math.inf  # its Python may start slowly
            if time.monotonic() > silent_since + host_wire.LONGEST_SILENCE:
                host.lose(f"nothing was heard of it for {host_wire.LONGEST_SILENCE:g} s")

    def _hears(self, host: Host) -> Callable[[], None]:
        def on_word() -> None:
            for message in host.hear():
                self._take(host, message)
            if host.is_over:
                self._events.off(host.output)

        return on_word

    def _take(self, host: Host, message: object) -> None:
        if type(message) in self._told:
            self._told[type(message)][host.number] = message
        elif isinstance(message, Refused):
            self._refused[host.number] = message.why
        elif self._view is None:
            return
        elif isinstance(message, Printed):
            self._view.output(message.rank, message.lines)
        elif isinstance(message, Reported):
            self._view.report(message.rank, message.step, message.total, message.loss)
        elif isinstance(message, RankEnded):
            self._view.end(message.rank, message.how)

    # ---- results

    def _results(self, host: Host) -> list[RankResult[Any]]:
        if host.left:
            return [_brought_here(rank, host) for rank in host.left.ranks]
        first = host.number * self.task.nprocs
        error = None
        if host.lost:
            text = f"host {host.name} was lost: {host.lost}"
            error = RankError(HOST_LOST, text, "", (), host.over_at)
        return [
            RankResult(first + rank, error=error, returned=False, host=host.name)
            for rank in range(self.task.nprocs)
        ]


def _brought_here(rank: RankResult[Any], host: Host) -> RankResult[Any]:
    """With its value, and with the time of its error on our clock."""
    rank = replace(rank, host=host.name)
    if rank.error is not None:
        return replace(rank, error=replace(rank.error, at=rank.error.at - host.clock_ahead))
    if rank.value is None:
        return rank
    value, error = load_value(rank.value)
    exit_code = rank.exit_code if error is None else rank.exit_code or 1
    return replace(rank, value=value, error=error, exit_code=exit_code)
