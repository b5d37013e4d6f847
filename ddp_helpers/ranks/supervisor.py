"""Start ranks, watch them, and end every one of them, whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import secrets
import selectors
import shutil
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from ddp_helpers.diagnosis.hang_causes import waiting_in
from ddp_helpers.evidence.frames import make_frame
from ddp_helpers.evidence.records import Frame, LastCall, RankError, RankResult
from ddp_helpers.ranks import worker
from ddp_helpers.ranks.fork_server import ENDED
from ddp_helpers.ranks.interrupts import HeldInterrupts, interrupts_blocked
from ddp_helpers.ranks.view import PER_SECOND, View

GRACE_AFTER_FAILURE = 0.15  # seconds in which other ranks may still tell what became of them
GRACE_AFTER_OUTCOME = 10.0  # seconds that a rank may take to end once its function has returned
STACK_WAIT = 0.2
STRANDED_LOOK = 0.5  # seconds between looks at ranks whose peers have ended
LONGEST_LINE = 1 << 20  # bytes without a newline that are passed on all the same
STACK_LINE = re.compile(r'File "(.+)", line (\d+) in (.+)')


@dataclass
class _Rank:
    """The launcher's side of one rank."""

    rank: int
    process: object
    link: socket.socket | None = None
    output: int = -1
    lifeline: int = -1
    outcome_file: int = -1
    stacks_file: int = -1
    last_call_file: int = -1
    text: list[str] = field(default_factory=list)
    partial: bytes = b""
    outcome: worker.Outcome | None = None
    exit_code: int | None = None
    ended: bool = False
    ended_by_us: bool = False
    started_at: float = 0.0
    finished_at: float = 0.0
    stack: tuple[Frame, ...] = ()
    last_call: LastCall | None = None
    stopped: bool = False


class Supervisor:
    """One launch: `run()` starts the ranks and returns when all of them have ended.

    Args:
        job: what the ranks do.
        start_method: "forkserver" or "spawn".
        timeout: limit of the whole run in seconds.
        view: what the reader sees while the ranks run; None keeps quiet.
    """

    def __init__(
        self,
        job: worker.Job,
        start_method: str,
        timeout: float,
        view: View | None,
    ) -> None:
        self.job = job
        self.start_method = start_method
        self.timeout = timeout
        self.view = view
        self.timed_out = False
        self.stranded = False
        self.stopped = False
        self.ranks: list[_Rank] = []
        self._failed_at: float | None = None
        self._looked_at = 0.0
        self._interrupts = HeldInterrupts()
        self._files = contextlib.ExitStack()
        self._selector = self._files.enter_context(selectors.DefaultSelector())

    @property
    def seconds(self) -> float:
        """How long the run took."""
        return self._ended_at - self._started_at

    def run(self) -> list[RankResult]:
        """Start, watch and end the ranks; results in rank order."""
        self._started_at = time.monotonic()
        self._memory_kills = _count_memory_kills()
        with self._interrupts:
            try:
                self._start()
                self._watch()
            finally:
                self._end()
                self._ended_at = time.monotonic()
        return [self._result(rank) for rank in self.ranks]

    # ---- start

    def _start(self) -> None:
        self._address = f"ddp_helpers-{os.getpid()}-{secrets.token_hex(16)}"
        self._listener = self._files.enter_context(
            socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        )
        self._listener.bind("\0" + self._address)
        self._listener.listen(self.job.nprocs)
        self._job_file = self._memory_file("job")
        worker._write_all(self._job_file, pickle.dumps(self.job))
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        with interrupts_blocked(), without_main_import():
            processes = self._start_processes()
            if processes is None:  # raised out here, the error does not hold on to their pipes
                raise RuntimeError(ENDED)
            for number, process in enumerate(processes):
                rank = _Rank(number, process, started_at=time.monotonic())
                self.ranks.append(rank)
                self._selector.register(
                    process.sentinel, selectors.EVENT_READ, lambda rank=rank: self._on_end(rank)
                )

    def _start_processes(self) -> list | None:
        """The ranks' processes, or None if the fork server ended meanwhile."""
        from torch.multiprocessing import start_processes

        with contextlib.suppress(EOFError):
            return start_processes(
                worker.main,
                args=(self._address,),
                nprocs=self.job.nprocs,
                join=False,
                daemon=False,
                start_method=self.start_method,
            ).processes
        return None

    def _accept(self) -> None:
        link, _ = self._listener.accept()
        self._files.callback(link.close)
        _, uid, _ = struct.unpack("3i", link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        link.settimeout(5)
        with contextlib.suppress(OSError):  # the rank died at once: its end tells the rest
            hello = link.recv(16) if uid == os.getuid() else b""
            if hello:
                self._hand_over(link, self.ranks[int(hello)])

    def _hand_over(self, link: socket.socket, rank: _Rank) -> None:
        """Give a rank that has called its files, and listen to it from now on."""
        rank.link = link
        rank.output, rank_output = os.pipe()
        rank_lifeline, rank.lifeline = os.pipe()
        for file in (rank.output, rank.lifeline):
            self._files.callback(os.close, file)
        rank.outcome_file = self._memory_file("outcome")
        rank.stacks_file = self._memory_file("stacks")
        rank.last_call_file = self._memory_file("last-call")
        os.set_blocking(rank.output, False)
        self._selector.register(rank.output, selectors.EVENT_READ, lambda: self._on_output(rank))
        self._selector.register(link, selectors.EVENT_READ, lambda: self._on_message(rank))
        files = [self._job_file, rank.outcome_file, rank.stacks_file, rank.last_call_file]
        try:
            socket.send_fds(link, [b"files"], [rank_output, rank_lifeline, *files])
        except OSError:
            pass  # the rank died at once: its end tells the rest
        finally:
            os.close(rank_output)
            os.close(rank_lifeline)

    # ---- watch

    def _watch(self) -> None:
        deadline = self._started_at + self.timeout
        while self._living():
            self._interrupts.deliver()
            self._pump(self._patience(deadline))
            if self.view:
                self.view.tick()
                if self.view.is_stop_asked():
                    self.stopped = True
                    return
            now = time.monotonic()
            if self._failed_at is not None and now > self._failed_at + GRACE_AFTER_FAILURE:
                self._take_stacks()
                return
            if now > deadline:
                self._take_stacks()
                self.timed_out = any(rank.outcome is None for rank in self._living())
                return
            if self._only_leavers(now):
                return
            if self._are_stranded(now):
                self.stranded = True
                return

    def _pump(self, seconds: float) -> None:
        for key, _ in self._selector.select(max(0.0, seconds)):
            if key.fd in self._selector.get_map():  # an earlier one may have closed it
                key.data()

    def _patience(self, deadline: float) -> float:
        limits = [deadline]
        if self._failed_at is not None:
            limits.append(self._failed_at + GRACE_AFTER_FAILURE)
        return min(*limits, time.monotonic() + 1 / PER_SECOND) - time.monotonic() + 0.001

    def _only_leavers(self, now: float) -> bool:
        """True if all that still run have told their outcome, and take too long to end."""
        return all(
            rank.outcome and now > rank.finished_at + GRACE_AFTER_OUTCOME for rank in self._living()
        )

    def _are_stranded(self, now: float) -> bool:
        """True if all that still run wait for ranks that have ended; seen twice, to be sure."""
        living = self._living()
        if len(living) == len(self.ranks) or any(r.outcome or not r.link for r in living):
            return False
        last_end = max(rank.finished_at for rank in self.ranks if rank.ended)
        if now < max(last_end, self._looked_at) + STRANDED_LOOK:
            return False
        before = [rank.stack for rank in living]
        self._take_stacks()
        self._looked_at = time.monotonic()
        stacks = [rank.stack for rank in living]
        return stacks == before and all(map(waiting_in, stacks))

    def _on_message(self, rank: _Rank) -> None:
        message = b""
        with contextlib.suppress(OSError):
            message = rank.link.recv(1024)
        if not message:  # the rank is gone; its sentinel tells the rest
            self._selector.unregister(rank.link)
        else:
            self._take(rank, message)

    def _take(self, rank: _Rank, message: bytes) -> None:
        if message == b"done":
            self._read_outcome(rank)
        elif self.view:
            self.view.report(rank.rank, **json.loads(message))

    def _read_outcome(self, rank: _Rank) -> None:
        data = worker._read_all(rank.outcome_file)
        rank.outcome = pickle.loads(data)
        rank.finished_at = time.monotonic()
        if rank.outcome.exit_code and self._failed_at is None:
            self._failed_at = time.monotonic()

    def _on_output(self, rank: _Rank) -> None:
        data = b""
        with contextlib.suppress(BlockingIOError):
            data = os.read(rank.output, 1 << 16)
            if not data:
                self._selector.unregister(rank.output)
        lines = re.split(rb"\r?\n", rank.partial + data)
        rank.partial = lines.pop()
        if len(rank.partial) > LONGEST_LINE:
            lines, rank.partial = [*lines, rank.partial], b""
        self._tell(rank, lines)

    def _tell(self, rank: _Rank, lines: list[bytes]) -> None:
        texts = [line.decode("utf-8", "replace") for line in lines]
        rank.text.extend(text + "\n" for text in texts)
        if self.view and texts:
            self.view.output(rank.rank, texts)

    def _on_end(self, rank: _Rank) -> None:
        self._selector.unregister(rank.process.sentinel)
        rank.process.join()
        rank.exit_code, rank.ended = rank.process.exitcode, True
        rank.finished_at = rank.finished_at or time.monotonic()
        if rank.link and not rank.outcome:
            self._on_last_message(rank)
        self._kill(rank)  # whatever child processes the rank left
        self._drain(rank)
        failed = rank.outcome.exit_code != 0 if rank.outcome else not rank.ended_by_us
        if failed and self._failed_at is None:
            self._failed_at = time.monotonic()
        if self.view:
            self.view.end(rank.rank, "failed" if failed else "done" if rank.outcome else "ended")

    def _on_last_message(self, rank: _Rank) -> None:
        with contextlib.suppress(OSError):
            rank.link.setblocking(False)
            while message := rank.link.recv(1024):
                self._take(rank, message)

    def _drain(self, rank: _Rank) -> None:
        """Read what is left in the pipe, also the last line without a newline."""
        limit = time.monotonic() + 0.5
        while rank.link and rank.output in self._selector.get_map() and time.monotonic() < limit:
            before = len(rank.text), rank.partial
            self._on_output(rank)
            if (len(rank.text), rank.partial) == before:
                break
        if rank.partial:
            self._tell(rank, [rank.partial])
            rank.partial = b""

    # ---- stacks

    def _take_stacks(self) -> None:
        """Ask each living rank for its Python stack; works also while it is stuck in C++."""
        asked = [rank for rank in self._living() if rank.link and not rank.outcome]
        sizes = {rank.rank: os.fstat(rank.stacks_file).st_size for rank in asked}
        view, self.view = self.view, None  # the signal interrupts C++, which complains about it
        for rank in asked:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank.process.pid, worker.STACK_SIGNAL)
        limit = time.monotonic() + STACK_WAIT
        while time.monotonic() < limit and any(
            not rank.ended and os.fstat(rank.stacks_file).st_size == sizes[rank.rank]
            for rank in asked
        ):
            self._pump(0.005)
        for rank in asked:
            rank.stack = self._parse_stack(rank, sizes[rank.rank])
            rank.last_call = self._read_last_call(rank)
            rank.stopped = _is_stopped(rank.process.pid)
        self.view = view

    def _parse_stack(self, rank: _Rank, start: int) -> tuple[Frame, ...]:
        text = worker._read_all(rank.stacks_file)[start:].decode("utf-8", "replace")
        found = [STACK_LINE.search(line) for line in text.splitlines()]
        frames = [
            make_frame(match[1], int(match[2]), match[3], self.job.names, self._source(match))
            for match in found
            if match
        ]
        inside = frames[::-1]
        starts = [i for i, frame in enumerate(inside) if frame.filename == worker.__file__]
        own = starts[-1] if starts else -1
        return tuple(inside[own + 1 :] or inside[own:])

    def _read_last_call(self, rank: _Rank) -> LastCall | None:
        data = worker._read_all(rank.last_call_file)
        try:
            number, name, filename, line, function = json.loads(data)
        except ValueError:  # none so far
            return None
        return LastCall(number, name, make_frame(filename, line, function, self.job.names))

    def _source(self, match: re.Match[str]) -> str:
        text = self.job.sources.get(match[1])
        if text is None:
            with contextlib.suppress(OSError), open(match[1], errors="replace") as file:
                text = file.read()
        lines = (text or "").splitlines()
        return lines[int(match[2]) - 1].strip() if 0 < int(match[2]) <= len(lines) else ""

    # ---- end

    def _end(self) -> None:
        """Kill what still runs and give everything back."""
        for rank in self._living():
            rank.ended_by_us = not _has_exited(rank.process.pid)  # its exit code may be under way
            self._kill(rank)
        limit = time.monotonic() + 10
        while self._living() and time.monotonic() < limit:
            self._pump(0.05)
        self._files.close()
        if self.view:
            self.view.close()
        for rank in self.ranks:
            if rank.ended:
                rank.process.close()
            if self.job.own_temporary:
                folder = worker.temporary_folder(self.job, rank.rank)
                shutil.rmtree(folder, ignore_errors=True)

    def _kill(self, rank: _Rank) -> None:
        kill = os.killpg if rank.link else os.kill  # its group exists once it has called us
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(rank.process.pid, signal.SIGKILL)

    def _living(self) -> list[_Rank]:
        return [rank for rank in self.ranks if not rank.ended]

    def _result(self, rank: _Rank) -> RankResult:
        outcome = rank.outcome
        value, error = None, outcome.error if outcome else None
        if outcome and outcome.value is not None:
            value, error = _load_value(outcome.value)
        exit_code = None if rank.ended_by_us else rank.exit_code
        if outcome:
            exit_code = outcome.exit_code if error is None else outcome.exit_code or 1
        return RankResult(
            rank.rank,
            value,
            "".join(rank.text),
            exit_code,
            error,
            rank.stack,
            outcome.seconds if outcome else rank.finished_at - rank.started_at,
            exit_code == -signal.SIGKILL and _count_memory_kills() > self._memory_kills,
            returned=outcome is not None,
            findings=outcome.findings if outcome else (),
            last_call=rank.last_call,
            stopped=rank.stopped,
        )

    # ---- files

    def _memory_file(self, name: str) -> int:
        file = os.memfd_create(f"ddp_helpers-{name}")
        self._files.callback(os.close, file)
        return file


def _count_memory_kills() -> int:
    """How many processes the system has killed because memory ran out, or 0 if it can't tell."""
    with contextlib.suppress(OSError), open("/proc/vmstat") as file:
        return next((int(line.split()[1]) for line in file if line.startswith("oom_kill ")), 0)
    return 0


def _has_exited(pid: int) -> bool:
    """True for a process that has come to its end, even if its exit code has not arrived yet."""
    return _state(pid) in "ZX"


def _is_stopped(pid: int) -> bool:
    """True for a process that was paused from outside, and so can't tell its stack."""
    return _state(pid) in "Tt"


def _state(pid: int) -> str:
    """The letter that `ps` shows for a process; X if there is none."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0]
    return "X"


def _load_value(data: bytes) -> tuple[object, RankError | None]:
    try:
        return pickle.loads(data), None
    except Exception as raised:
        return None, worker.describe(raised, {})


_without_main = threading.local()


@contextlib.contextmanager
def without_main_import() -> Iterator[None]:
    """Start ranks without running the caller's script again in each of them.

    multiprocessing would import `__main__` anew, and a script without a main guard would then
    launch ranks from within its ranks. Functions travel by value, so nobody needs that import.
    """
    from multiprocessing import spawn

    if not hasattr(spawn.get_preparation_data, "before_ddp_helpers"):
        original = spawn.get_preparation_data

        def get_preparation_data(name: str) -> dict:
            data = original(name)
            if getattr(_without_main, "on", False):
                data.pop("init_main_from_name", None)
                data.pop("init_main_from_path", None)
            return data

        get_preparation_data.before_ddp_helpers = original
        spawn.get_preparation_data = get_preparation_data
    _without_main.on = True
    try:
        yield
    finally:
        _without_main.on = False
