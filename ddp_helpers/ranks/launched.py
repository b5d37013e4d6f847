"""One rank as its launcher knows it: its process, its open files, and what it has left so far."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from typing import Any

from ddp_helpers.evidence.last_call import SIZE, read_last_call
from ddp_helpers.evidence.records import Frame, LastCall, RankResult, TimedCall
from ddp_helpers.evidence.timed_calls import read_timed_calls
from ddp_helpers.ranks import wire
from ddp_helpers.ranks.forked import ForkedProcess
from ddp_helpers.ranks.messages import Asked, Outcome
from ddp_helpers.ranks.prompts import Prompts
from ddp_helpers.ranks.travel import Loaded, load_value
from ddp_helpers.ranks.view import Silenceable

LONGEST_LINE = 1 << 20  # bytes without a newline that are passed on all the same
LONGEST_DRAIN = 0.5  # seconds to read what a rank that has ended left in its pipe
READ_AT_ONCE = 1 << 16  # bytes: as many as a pipe holds


class Events:
    """What the launcher waits for: files, and what to call when one of them can be read."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.close = self._selector.close

    def on(self, file: int | socket.socket, call: Callable[[], None]) -> None:
        """From now on, call this when the file can be read."""
        self._selector.register(file, selectors.EVENT_READ, call)

    def off(self, file: int | socket.socket) -> None:
        """No longer."""
        self._selector.unregister(file)

    def __contains__(self, file: int | socket.socket) -> bool:
        return file in self._selector.get_map()

    def pump(self, seconds: float) -> None:
        """Wait at most so long, then call for each file that can be read."""
        for key, _ in self._selector.select(max(0.0, seconds)):
            if key.fd in self._selector.get_map():  # an earlier call may have closed it
                key.data()


@dataclass(eq=False)
class LaunchedRank:
    """The launcher's side of one rank.

    Three things tell of its end, in any order: the outcome that it left, the end of its output,
    and the end of its process. Only the last one always comes, so only `has_ended` may conclude.
    """

    rank: int
    process: BaseProcess | ForkedProcess
    events: Events
    view: Silenceable
    started_at: float
    link: socket.socket | None = None
    files: wire.RankFiles | None = None
    """The launcher's ends of its files, once it has called."""
    text: list[str] = field(default_factory=list)
    partial: bytes = b""
    outcome: Outcome | None = None
    exit_code: int | None = None
    ended: bool = False
    ended_by_us: bool = False
    """The launcher has killed it, so its exit code says nothing about its function."""
    failed_at: float | None = None
    finished_at: float = 0.0
    """When its function had returned or, if that never came, when its process had ended."""
    stack: tuple[Frame, ...] = ()
    last_call: LastCall | None = None
    calls: tuple[TimedCall, ...] = ()
    stopped: bool = False
    prompts: Prompts = None  # type: ignore[assignment]  # one of its own, unless it shares

    def __post_init__(self) -> None:
        self.prompts = self.prompts or Prompts(self.events, self.view)

    def listen(self, link: socket.socket, files: wire.RankFiles) -> None:
        """It has called: hear what it prints and says from now on."""
        self.link, self.files = link, files
        os.set_blocking(files.output, False)  # a launcher that waited for one would miss the others
        self.events.on(files.output, self._read_output)
        self.events.on(link, self._read_message)

    @property
    def pid(self) -> int:
        """Its process's number, known from its start on."""
        assert self.process.pid is not None
        return self.process.pid

    # ---- what it says

    def _read_message(self) -> None:
        assert self.link is not None
        message = b""
        with contextlib.suppress(OSError):
            message = self.link.recv(wire.LONGEST_MESSAGE)
        if not message:  # the rank is gone; its sentinel tells the rest
            self.events.off(self.link)
        else:
            self._take(message)

    def _take(self, message: bytes) -> None:
        report = wire.read_message(message)
        if report is None:
            self._read_outcome()
        elif isinstance(report, Asked):
            self.prompts.take(self, report)
        elif self.view.shown:
            self.view.shown.report(
                self.rank, step=report.step, total=report.total, loss=report.loss
            )

    def _read_outcome(self) -> None:
        assert self.files is not None
        self.outcome = wire.read_outcome(self.files.outcome)
        self.finished_at = time.monotonic()
        if self.outcome.exit_code:
            self.failed_at = self.finished_at

    # ---- what it prints

    def _read_output(self) -> None:
        assert self.files is not None
        data = b""
        with contextlib.suppress(BlockingIOError):
            data = os.read(self.files.output, READ_AT_ONCE)
            if not data:  # the end: it would be ready to be read for ever
                self.events.off(self.files.output)
        lines = re.split(rb"\r?\n", self.partial + data)
        self.partial = lines.pop()
        if len(self.partial) > LONGEST_LINE:
            lines, self.partial = [*lines, self.partial], b""
        self._tell(lines)

    def _tell(self, lines: list[bytes]) -> None:
        texts = [line.decode("utf-8", "replace") for line in lines]
        self.text.extend(text + "\n" for text in texts)
        if texts:
            self.prompts.output(self, texts)

    def take_prompt(self) -> str:
        """What it has printed last, without an end of line: the prompt for what it wants to read.

        It was printed before the rank asked, so it is in the pipe.
        """
        self._read_rest()
        prompt, self.partial = self.partial.decode("utf-8", "replace"), b""
        return prompt

    # ---- a session's commands

    @property
    def has_left(self) -> bool:
        """It does nothing more for now: it has ended, or has done what its session asked."""
        return self.ended or (self.outcome is not None and self.outcome.stays)

    def begin(self) -> None:
        """A new command: forget the last one."""
        self.outcome, self.text, self.stack, self.last_call = None, [], (), None
        self.started_at, self.finished_at = time.monotonic(), 0.0

    def finish(self) -> None:
        """It has done a command: read what it printed last."""
        self._drain()
        if self.view.shown:
            self.view.shown.end(self.rank, "done")

    # ---- its end

    def has_ended(self) -> None:
        """Its process is gone: read what it left, and end what it left running."""
        # first of all: a sentinel stays ready for ever, and reading what is left takes a moment
        self.events.off(self.process.sentinel)
        self.process.join()  # it is gone: this only fetches the exit code
        self.exit_code, self.ended = self.process.exitcode, True
        self.finished_at = self.finished_at or time.monotonic()
        if self.link and not self.outcome:
            # its end may be seen before its last words, which were sent before
            self._read_last_messages(self.link)
        # whatever child processes it left; before the last look at the pipe, which they may fill
        self.kill()
        self._drain()
        failed = self.outcome.exit_code != 0 if self.outcome else not self.ended_by_us
        if failed and self.failed_at is None:
            self.failed_at = time.monotonic()
        if self.view.shown:
            how = "failed" if failed else "done" if self.outcome else "ended"
            self.view.shown.end(self.rank, how)

    def _read_last_messages(self, link: socket.socket) -> None:
        with contextlib.suppress(OSError):
            link.setblocking(False)
            while message := link.recv(wire.LONGEST_MESSAGE):
                self._take(message)

    def _drain(self) -> None:
        """Read what is left in the pipe, also the last line without a newline.

        The pipe's end need not come: a child of the rank that has left its group was not killed,
        and may hold it open, or go on printing.
        """
        self._read_rest()
        if self.partial:
            self._tell([self.partial])
            self.partial = b""

    def _read_rest(self) -> None:
        limit = time.monotonic() + LONGEST_DRAIN
        while self.files and self.files.output in self.events and time.monotonic() < limit:
            before = len(self.text), self.partial
            self._read_output()
            if (len(self.text), self.partial) == before:
                break

    def read_calls(self, names: Mapping[str, str]) -> None:
        """What it called last, as it noted it: its death loses nothing."""
        if self.files:
            data = wire.read_whole(self.files.last_call)
            self.last_call = read_last_call(data[:SIZE], names)
            self.calls = read_timed_calls(data, names)

    def kill(self) -> None:
        """End it and its children at once."""
        # it makes its group before it calls us; until then it is still in ours
        kill = os.killpg if self.link else os.kill
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(self.pid, signal.SIGKILL)

    def result(
        self, memory_kills: bool, load: Callable[[bytes], Loaded] = load_value
    ) -> RankResult[Any]:
        """What it left, in full.

        Args:
            memory_kills: the system has killed a process since the launch, because memory ran out.
            load: makes its value of what travelled.
        """
        outcome = self.outcome
        value, error = None, outcome.error if outcome else None
        if outcome and outcome.value is not None:
            value, error = load(outcome.value)
        exit_code = None if self.ended_by_us else self.exit_code
        if outcome:  # what the function did counts, not how the process ended after it
            exit_code = outcome.exit_code if error is None else outcome.exit_code or 1
        return RankResult(
            self.rank,
            value,
            "".join(self.text),
            exit_code,
            error,
            self.stack,
            outcome.seconds if outcome else self.finished_at - self.started_at,
            exit_code == -signal.SIGKILL and memory_kills,
            returned=outcome is not None,
            findings=outcome.findings if outcome else (),
            last_call=self.last_call,
            stopped=self.stopped,
            watched=outcome.watched if outcome else None,
            calls=self.calls,
        )
