"""Where ranks stand: asked by a signal, they write their Python stack, even stuck in C++."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Sequence

from ddp_helpers.evidence.frames import make_frame
from ddp_helpers.evidence.records import Frame
from ddp_helpers.evidence.waits import waiting_in
from ddp_helpers.ranks import wire
from ddp_helpers.ranks.launched import Events, LaunchedRank
from ddp_helpers.ranks.messages import Job
from ddp_helpers.ranks.processes import is_stopped

STACK_WAIT = 0.2  # seconds for all ranks to write
LONG_STACK_WAIT = 1.5  # where their stacks are all that there is to tell
LOOK = 0.005  # seconds between looks at what they have written
# of worker.py and stay.py, what calls the reader's function or cell; all else of the launcher's own
# is on the way there or back
CALLERS = ("_run", "_obey", "_run_cell")
STACK_LINE = re.compile(r'File "(.+)", line (\d+) in (.+)')  # as faulthandler writes it


def take_stacks(
    ranks: Sequence[LaunchedRank],
    job: Job,
    events: Events,
    patience: float = STACK_WAIT,
    is_enough: Callable[[], bool] = lambda: False,
) -> None:
    """Ask each of these ranks for its stack, and note it with its last collective.

    A rank that has not called yet, or has told its outcome, is left alone.

    Args:
        patience: seconds for all of them to write; on a busy machine that takes a while.
        is_enough: ends the wait, too.
    """
    asked = [(rank, rank.files) for rank in ranks if rank.files and not rank.outcome]
    before = {rank.rank: os.fstat(files.stacks).st_size for rank, files in asked}
    for rank, _ in asked:
        rank.stopped = is_stopped(rank.pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(rank.pid, wire.STACK_SIGNAL)
    limit = time.monotonic() + patience
    while time.monotonic() < limit and any(
        not (rank.ended or rank.stopped) and os.fstat(files.stacks).st_size == before[rank.rank]
        for rank, files in asked
    ):
        if is_enough():
            break
        events.pump(LOOK)
    for rank, files in asked:
        text = wire.read_whole(files.stacks)[before[rank.rank] :].decode("utf-8", "replace")
        rank.stack = parse_stack(text, job)


def parse_stack(text: str, job: Job) -> tuple[Frame, ...]:
    """faulthandler's text as frames, outermost first, without what runs before the function.

    Of a rank that has not come to its function yet, or has left it, one frame: the launcher's own.
    What it imports there, or the error that it puts into words, is no place of the reader's.
    """
    found = filter(None, map(STACK_LINE.search, text.splitlines()))
    inside = [
        make_frame(file, int(line), function, job.names, _source(file, int(line), job))
        for file, line, function in (match.groups() for match in found)
    ][::-1]
    ours = [at for at, frame in enumerate(inside) if frame.is_launcher]
    own = ours[-1] if ours else -1
    rest = inside[own + 1 :]
    if ours and inside[own].function not in CALLERS and not any(each.is_user for each in rest):
        rest = []
    return tuple(rest or inside[own : own + 1 or None])


def _source(filename: str, line: int, job: Job) -> str:
    text = job.sources.get(filename)
    if text is None:
        with contextlib.suppress(OSError), open(filename, errors="replace") as file:
            text = file.read()
    lines = (text or "").splitlines()
    return lines[line - 1].strip() if 0 < line <= len(lines) else ""


class StrandedLook:
    """Finds out whether all ranks that still run wait for others that have ended.

    Only stacks tell that, and asking for them costs the ranks a moment. So it is asked seldom,
    and only what is seen twice counts: between two collectives a rank may seem to wait.
    """

    BETWEEN = 0.5  # seconds

    def __init__(self) -> None:
        self._looked_at = 0.0

    def is_so(self, ranks: Sequence[LaunchedRank], job: Job, events: Events) -> bool:
        """True if two looks in a row have found them all waiting at the same lines."""
        living = [rank for rank in ranks if not rank.has_left]
        if len(living) == len(ranks) or any(rank.outcome or not rank.link for rank in living):
            return False
        last_end = max(rank.finished_at for rank in ranks if rank.has_left)
        if time.monotonic() < max(last_end, self._looked_at) + self.BETWEEN:
            return False
        before = [rank.stack for rank in living]
        take_stacks(living, job, events)
        self._looked_at = time.monotonic()
        stacks = [rank.stack for rank in living]
        return stacks == before and all(map(waiting_in, stacks))
