"""Start ranks, watch them, and end every one of them, whatever happens."""

from __future__ import annotations

import contextlib
import os
import pickle
import shutil
import socket
import sys
import time
from collections.abc import Callable
from enum import Enum
from multiprocessing.process import BaseProcess
from typing import Any

from ddp_helpers.evidence.records import RankResult
from ddp_helpers.ranks import wire
from ddp_helpers.ranks.forked import ForkedProcess
from ddp_helpers.ranks.interrupts import HeldInterrupts, interrupts_blocked
from ddp_helpers.ranks.launched import Events, LaunchedRank
from ddp_helpers.ranks.messages import Job
from ddp_helpers.ranks.processes import count_memory_kills, has_exited, start_processes
from ddp_helpers.ranks.prompts import Prompts
from ddp_helpers.ranks.stacks import LONG_STACK_WAIT, STACK_WAIT, StrandedLook, take_stacks
from ddp_helpers.ranks.stall import StallWatch
from ddp_helpers.ranks.standby import standby
from ddp_helpers.ranks.travel import load_value
from ddp_helpers.ranks.view import PER_SECOND, PanelView, Silenceable, TextView, View
from ddp_helpers.words import shown

GRACE_AFTER_FAILURE = 0.15  # seconds in which other ranks may still tell what became of them
GRACE_AFTER_OUTCOME = 10.0  # seconds that a rank may take to end once its function has returned
LONGEST_END = 10.0  # seconds until the kernel has ended processes that were killed
LOOK = 0.05  # seconds between looks at processes that were killed
JUST_AFTER = 0.001  # seconds: a wait that ends just before its time would be repeated in a spin


class Ending(Enum):
    """Why the launcher stopped watching."""

    ALL_ENDED = "all ranks have ended, or need too long to end after their function has returned"
    FAILED = "a rank failed, and the others were ended"
    TIMED_OUT = "the limit came"
    STRANDED = "all ranks that still ran waited for others that had ended"
    STOPPED = "the reader pressed the view's stop button"
    QUIT = "the reader typed `quit` at a rank's prompt"
    INTERRUPTED = "Ctrl-C, or JupyterLab's own stop button"


class Supervisor:
    """One launch: `run()` starts the ranks and returns when all of them have ended.

    Args:
        job: what the ranks do.
        start_method: "forkserver" or "spawn".
        timeout: limit of the whole run in seconds.
        view: what the reader sees while the ranks run; None keeps quiet.
    """

    load = staticmethod(load_value)

    def __init__(self, job: Job, start_method: str, timeout: float, view: View | None) -> None:
        self.job = job
        self.start_method = start_method
        self.timeout = timeout
        self.ending = Ending.FAILED
        self.seconds = 0.0
        self._view = Silenceable(view)
        self._ranks: list[LaunchedRank] = []
        self._interrupts = HeldInterrupts()
        self._stranded = StrandedLook()
        self._stall = StallWatch()
        # closed in the reverse order: the listener and the ranks' files, the selector last of all
        self._files = contextlib.ExitStack()
        self._events = Events()
        self._files.callback(self._events.close)
        self.prompts = Prompts(self._events, self._view)

    @property
    def quit_by(self) -> int | None:
        """The rank at whose prompt the reader has ended the run."""
        return self.prompts.quit_by if self.ending is Ending.QUIT else None

    def run(self) -> list[RankResult[Any]]:
        """Start, watch and end the ranks; results in rank order."""
        started_at = time.monotonic()
        memory_kills = count_memory_kills()
        # a Ctrl-C between the birth of a process and the line that notes it would leave it behind:
        # it is held back here, and let in where the watch begins to wait
        with self._interrupts:
            # whatever happens in here, also to the launcher itself, no rank may stay behind
            try:
                self._start()
                self.ending = self._watch(started_at + self.timeout)
            except KeyboardInterrupt:  # the caller raises its own, with what the ranks have left
                self.ending = Ending.INTERRUPTED
            finally:
                self._end()
                self.seconds = time.monotonic() - started_at
            if self.ending is Ending.INTERRUPTED:
                self._interrupts.forget()
            if self.start_method == "forkserver":
                standby.fill_up(self.job.env)
        more = count_memory_kills() > memory_kills
        return [rank.result(more, self.load) for rank in self._ranks]

    # ---- start

    def _start(self) -> None:
        job_file = self._memory_file("job")
        wire.write_whole(job_file, pickle.dumps(self.job))
        if self.start_method == "forkserver":
            self._start_forked(job_file)
        else:
            self._start_spawned(job_file)

    def _start_forked(self, job_file: int) -> None:
        for process in standby.take(self.job.nprocs, self.job.env):
            self._files.callback(process.link.close)
            self._events.on(process.link, self._when_here(self._note(process), process, job_file))

    def _when_here(
        self, rank: LaunchedRank, process: ForkedProcess, job_file: int
    ) -> Callable[[], None]:
        def on_word() -> None:
            self._events.off(process.link)
            if wire.is_here(process.link):
                self._hand_over(process.link, rank, job_file)

        return on_word

    def _start_spawned(self, job_file: int) -> None:
        listener, address = wire.listen(self.job.nprocs)
        self._files.callback(listener.close)

        def on_call() -> None:
            link, _ = listener.accept()
            self._files.callback(link.close)
            number = wire.number_of(link)
            if number is not None:
                self._hand_over(link, self._ranks[number], job_file)

        # nobody looks at the events yet: ranks that call at once wait in the listener's queue, so
        # that each has its place in _ranks when it is served
        self._events.on(listener, on_call)
        with interrupts_blocked():
            for process in start_processes(self.job.nprocs, address, self.start_method):
                self._note(process)

    def _note(self, process: BaseProcess | ForkedProcess) -> LaunchedRank:
        now = time.monotonic()
        number = len(self._ranks)
        rank = LaunchedRank(number, process, self._events, self._view, now, prompts=self.prompts)
        self._ranks.append(rank)
        self._events.on(process.sentinel, rank.has_ended)
        return rank

    def _hand_over(self, link: socket.socket, rank: LaunchedRank, job_file: int) -> None:
        """Give a rank that has called its files, and listen to it from now on."""
        output, ranks_output = os.pipe()
        ranks_lifeline, lifeline = os.pipe()
        for file in (output, lifeline):
            self._files.callback(os.close, file)
        names = ("outcome", "stacks", "last-call")
        outcome, stacks, last_call = map(self._memory_file, names)
        # before the files are sent: what a rank says at once must find somebody who listens
        rank.listen(link, wire.RankFiles(output, lifeline, job_file, outcome, stacks, last_call))
        theirs = wire.RankFiles(ranks_output, ranks_lifeline, job_file, outcome, stacks, last_call)
        try:
            wire.send_files(link, theirs, rank.rank)
        except OSError:
            pass  # the rank died at once: its end tells the rest
        finally:
            # theirs must not stay open here: a pipe that the launcher could write into itself
            # would never come to its end
            os.close(ranks_output)
            os.close(ranks_lifeline)

    def _memory_file(self, name: str) -> int:
        """A file without a name: nothing can stay behind, and a rank's death loses nothing."""
        file = os.memfd_create(f"ddp_helpers-{name}")
        self._files.callback(os.close, file)
        return file

    # ---- watch

    def _watch(self, deadline: float) -> Ending:
        view = self._view.shown
        now = time.monotonic()
        while self._busy():
            self._let_interrupts_in()  # here every rank is noted, and _end() will find it
            self._events.pump(self._patience(deadline))
            if view:
                view.tick()
                if view.is_stop_asked():
                    self._take_stacks(LONG_STACK_WAIT)
                    return Ending.STOPPED
            self.prompts.tick()
            now, before = time.monotonic(), now
            if self.prompts.quit_by is not None:
                return Ending.QUIT
            if self.prompts.are_open:  # nothing is concluded while the reader looks
                deadline += now - before
                continue
            # not at once: the one that failed first to our eyes may be a consequence of another's
            # failure, whose outcome is still under way
            failed_at = self._failed_at()
            if failed_at is not None and now > failed_at + GRACE_AFTER_FAILURE:
                self._take_stacks()
                return Ending.FAILED
            if now > deadline:
                self._take_stacks(LONG_STACK_WAIT)
                # the limit is the function's; one that has returned just in time is not late
                late = any(rank.outcome is None for rank in self._living())
                return Ending.TIMED_OUT if late else Ending.ALL_ENDED
            if self._only_leavers(now):
                return Ending.ALL_ENDED
            with self._view.silenced():
                if self._stranded.is_so(self._ranks, self.job, self._events):
                    return Ending.STRANDED
                stall = self._stall.tell(self._ranks, self.job, self._events)
            if stall and isinstance(
                view, TextView | PanelView
            ):  # a view of one's own has its place
                print(shown(stall), file=sys.stderr, flush=True)
        return Ending.ALL_ENDED

    def _failed_at(self) -> float | None:
        """When the first rank failed; at an open prompt the others had no time to tell theirs."""
        first = min((r.failed_at for r in self._ranks if r.failed_at is not None), default=None)
        return None if first is None else max(first, self.prompts.closed_at)

    def _patience(self, deadline: float) -> float:
        """Seconds until something may be due: the limit, the end of the grace, the next redraw."""
        limits = [deadline, time.monotonic() + 1 / PER_SECOND]
        failed_at = self._failed_at()
        if self.prompts.are_open:
            limits = limits[1:]
        elif failed_at is not None:
            limits.append(failed_at + GRACE_AFTER_FAILURE)
        return min(limits) - time.monotonic() + JUST_AFTER

    def _only_leavers(self, now: float) -> bool:
        """True if all that still run have told their outcome, and take too long to end."""
        return all(
            rank.outcome and now > rank.finished_at + GRACE_AFTER_OUTCOME for rank in self._living()
        )

    def _let_interrupts_in(self) -> None:
        if self._interrupts.waiting:
            self._take_stacks(LONG_STACK_WAIT)
        self._interrupts.deliver()

    def _take_stacks(self, patience: float = STACK_WAIT) -> None:
        def is_enough() -> bool:  # who presses Ctrl-C again has no patience
            return self._interrupts.waiting > 1

        with self._view.silenced():  # the signal interrupts C++, which complains about it
            take_stacks(self._living(), self.job, self._events, patience, is_enough)

    # ---- end

    def _end(self) -> None:
        """Kill what still runs and give everything back."""
        for rank in self._living():
            # one that has come to its own end keeps its exit code, which may be under way
            rank.ended_by_us = not has_exited(rank.pid)
            rank.kill()
        self.prompts.close()
        # their last words are still read, and the view still hears them
        limit = time.monotonic() + LONGEST_END
        while self._living() and time.monotonic() < limit:
            try:
                self._events.pump(LOOK)
            except Exception:
                if self._view.shown is None:
                    raise
                self._view.shown = None  # it can't show anything: the ranks must end all the same
        for rank in self._ranks:
            rank.read_calls(self.job.names)
        self._files.close()  # with it the lifelines: what escaped the kill dies now
        if self._view.given:
            self._view.given.close()
        for rank in self._ranks:
            with contextlib.suppress(ValueError):
                # refused while it runs, and where nobody can know: SIGCHLD was ignored (`trap`)
                rank.process.close()
            if self.job.own_temporary:
                shutil.rmtree(self.job.temporary_folder(rank.rank), ignore_errors=True)

    def _busy(self) -> list[LaunchedRank]:
        """The ranks that the watch waits for."""
        return self._living()

    def _living(self) -> list[LaunchedRank]:
        return [rank for rank in self._ranks if not rank.ended]
