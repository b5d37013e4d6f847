"""Ranks that stay, for looking around: `Session(2)` keeps its processes, their group and names.

`launch()` starts fresh ranks each time, and is how a training is run. In a session one function or
cell after another runs on the same ranks, and sees what those before have left.
"""

from __future__ import annotations

import ast
import atexit
import contextlib
import os
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ddp_helpers.arguments import check_positive
from ddp_helpers.environment.check import default_nprocs
from ddp_helpers.environment.facts import check_before_torch
from ddp_helpers.evidence.records import LaunchResult, RankResult, name_ranks
from ddp_helpers.ranks import magics, stay
from ddp_helpers.ranks.conclusion import conclude, getting_ready
from ddp_helpers.ranks.given import check_call, check_options, watching
from ddp_helpers.ranks.launcher import launch, make_view
from ddp_helpers.ranks.messages import Command
from ddp_helpers.ranks.notebook import ipython_shell
from ddp_helpers.ranks.readiness import check_open_files, check_tasks, open_standard_files
from ddp_helpers.ranks.starting import make_job, prepare, rendezvous_store
from ddp_helpers.ranks.staying import Staying
from ddp_helpers.ranks.supervisor import Ending
from ddp_helpers.ranks.travel import pack
from ddp_helpers.ranks.view import View, show
from ddp_helpers.sanitizer.talk.session import Options as Watching
from ddp_helpers.words import shown

WHY = {
    Ending.TIMED_OUT: "it took too long",
    Ending.STRANDED: "ranks waited for others that had finished",
    Ending.STOPPED: "it was stopped",
    Ending.INTERRUPTED: "it was stopped",
    Ending.QUIT: "it was ended at a prompt",
}
_open: weakref.WeakSet[Session] = weakref.WeakSet()
_latest: weakref.ref[Session] | None = None


class Session:
    """Ranks that stay. Cells `%%ranks` and `%%rank 1` run on the latest session.

    Their process group is running: `process_group()` hands it out and leaves it alone. All that
    runs shares its global names; `torch`, `dist`, `rank` and `world_size` are there. A function
    brings the global names that it uses from here along. When a rank fails, hangs or is stopped,
    the report is that of `launch()`, and the session is over.

    Args:
        nprocs, env, threads_per_rank, start_method, echo, live, sanitize, post_mortem: as of
            `launch()`.
        timeout: limit of one command in seconds.

    Raises:
        As of `launch()`.
    """

    def __init__(
        self,
        nprocs: int | None = None,
        *,
        env: Mapping[str, str] | None = None,
        timeout: float = 600.0,
        threads_per_rank: int | None = None,
        start_method: str = "forkserver",
        echo: bool = True,
        live: bool | View = False,
        sanitize: bool | int | Watching = False,
        post_mortem: bool = False,
    ) -> None:
        self.nprocs = default_nprocs() if nprocs is None else nprocs
        self.over: str = ""
        """Why it is over, or nothing."""
        self._timeout, self._echo, self._live = timeout, echo, live
        self._process = os.getpid()
        self._files = contextlib.ExitStack()
        self.over = "it has not begun"
        open_standard_files()
        check_before_torch()
        check_options(self.nprocs, timeout, threads_per_rank, start_method)
        every, ignore = watching(sanitize)
        check_open_files(self.nprocs)
        check_tasks(self.nprocs)
        with contextlib.ExitStack() as files:
            with getting_ready():
                port = files.enter_context(rendezvous_store())
                served = pack(stay.serve, (), {})
                job = make_job(served, self.nprocs, port, threads_per_rank, env, start_method)
                job = replace(job, post_mortem=post_mortem, sanitize=every, ignore=ignore)
                prepare(start_method)
            self.over = ""
            self._ranks = Staying(job, start_method, timeout, make_view(self.nprocs, echo, False))
            self._conclude(self._ranks.begin())
            self._files = files.pop_all()
        _remember(self)

    def __del__(self) -> None:
        with contextlib.suppress(Exception):
            self.kill()

    # ---- what it does

    def run(
        self,
        fn: Callable[..., Any] | str,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, object] | None = None,
        *,
        on: int | Iterable[int] | None = None,
        timeout: float | None = None,
    ) -> LaunchResult[Any]:
        """Call `fn(*args, **kwargs)` on the ranks, and return what each one left.

        Args:
            fn, args, kwargs: as of `launch()`.
            on: a rank or some of them; by default all. The others have the value None.
            timeout: limit of this call in seconds, if not the session's.

        Raises:
            RuntimeError: the session is over.
            ValueError, TypeError, LaunchError, LaunchTimeoutError, LaunchStopped,
            KeyboardInterrupt: as of `launch()`; after the last four it is over.
        """
        check_call(fn, args)
        with getting_ready("stopped before the ranks heard of it; they wait for the next one"):
            packed = pack(fn, tuple(args), dict(kwargs or {}), _IN_RANK)
        return self._send(Command(packed), on, timeout)

    def run_cell(
        self, code: str, on: int | Iterable[int] | None = None, name: str = "a cell", head: str = ""
    ) -> LaunchResult[Any]:
        """Run plain statements on the ranks; a last line that has a value shows it.

        Args:
            code: the statements.
            on: a rank or some of them; by default all.
            name: how the reader knows the cell, for a traceback.
            head: a line that stands above the code, so that lines have the reader's numbers.

        Raises:
            SyntaxError: it is no Python; nothing has run.
            RuntimeError, LaunchError, ...: as of `run()`.
        """
        filename = f"<{name} on ranks>"
        lead = "\n" if head else ""
        ast.parse(lead + code, name)
        source = f"{head}{lead}{code}"
        command = Command(None, lead + code, filename, {filename: source}, {filename: name})
        return self._send(command, on, None)

    def close(self) -> None:
        """Let the ranks leave their group and end; safe to call twice.

        Raises:
            LaunchError: the sanitizer found something in the end.
        """
        if not self.over and os.getpid() == self._process:
            ranks = self._ranks.leave(make_view(self.nprocs, self._echo, False))
            self._end("it was closed")
            if any(rank.watched for rank in ranks):
                conclude(self._ranks, ranks, echo=self._echo)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.kill()

    def kill(self) -> None:
        """End the ranks at once, whatever they do."""
        if not self.over and os.getpid() == self._process:
            self._ranks.kill()
            self._end("it was ended")

    def __repr__(self) -> str:
        state = f"over: {self.over}" if self.over else "its ranks wait for cells and functions"
        return f"Session({self.nprocs} ranks, {state})"

    # ---- inside

    def _send(
        self, command: Command, on: int | Iterable[int] | None, timeout: float | None
    ) -> LaunchResult[Any]:
        if self.over:
            raise RuntimeError(f"this session is over ({self.over}): {self._again()}")
        numbers = self._numbers(on)
        limit = self._timeout if timeout is None else timeout
        check_positive("timeout", limit, "seconds")
        view = make_view(self.nprocs, self._echo, self._live)
        return self._conclude(self._ranks.obey(command, numbers, limit, view))

    def _conclude(self, ranks: tuple[RankResult[Any], ...]) -> LaunchResult[Any]:
        """The result, or the error of `launch()`; what failed, or was ended, is over."""
        if not self._ranks.has_closed:
            return LaunchResult(ranks, self._ranks.seconds, self._ranks.start_method)
        self._end(_why(self._ranks.ending, ranks))
        line = f"the session is over: {self._again()}"
        result = conclude(self._ranks, ranks, echo=self._echo, last_line=line)
        show(f"{shown(line)}\n")
        return result

    def _end(self, why: str) -> None:
        self.over = why
        self._files.close()
        _open.discard(self)

    def _again(self) -> str:
        return f"`ranks = Session({self.nprocs})` starts another"

    def _numbers(self, on: int | Iterable[int] | None) -> list[int]:
        if on is None:
            return list(range(self.nprocs))
        numbers = [on] if isinstance(on, int) else list(on)
        for number in numbers:
            if not isinstance(number, int) or not 0 <= number < self.nprocs:
                raise ValueError(
                    f"rank {number!r}: this session has the ranks 0 to {self.nprocs - 1}"
                )
        return sorted(set(numbers))


def _why(ending: Ending, ranks: Sequence[RankResult[Any]]) -> str:
    """In a few words, why a session is over."""
    from ddp_helpers.diagnosis.failure_report import find_causes  # its rules load where one fails

    causes = sorted(rank.rank for rank in find_causes(ranks))
    return WHY.get(ending) or (f"{name_ranks(causes)} failed" if causes else "a rank has left")


class _InRank(dict):
    """In a pickle, the namespace of the rank that reads it."""

    def __reduce__(self) -> tuple[Callable[[], dict[str, Any]], tuple[()]]:
        return stay.namespace_of_rank, ()


_IN_RANK = _InRank()


def latest() -> Session:
    """The session on which `%%ranks` runs.

    Raises:
        RuntimeError: there is none.
    """
    session = _latest() if _latest is not None else None
    if session is None:
        raise RuntimeError("no ranks wait for this cell: `ranks = Session(2)` starts some")
    return session


def _remember(session: Session) -> None:
    global _latest
    if _latest is None:
        # only now: of what runs at this process's end, multiprocessing's would wait for the ranks,
        # so ours must have come later
        atexit.register(_end_all)
    _latest = weakref.ref(session)
    _open.add(session)


def _end_all() -> None:
    for session in list(_open):
        session.kill()


if (_shell := ipython_shell()) is not None:
    magics.register(_shell, latest)
launch.session = Session  # type: ignore[attr-defined]  # a function has no such name for mypy
