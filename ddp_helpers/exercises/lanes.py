"""What an answer that is not right yet did on the ranks, drawn beside what a right one does."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

from ddp_helpers.evidence.records import ALL, SEND, RankResult, TimedCall
from ddp_helpers.exercises import on_ranks
from ddp_helpers.exercises.core import NotYet
from ddp_helpers.exercises.on_ranks import Ranks
from ddp_helpers.plots.lanes import size
from ddp_helpers.ranks.drawing import show_beside
from ddp_helpers.ranks.notebook import is_kernel
from ddp_helpers.words import shown

Ran = tuple[RankResult, ...]


def show_both(ranks: Ranks, module: ModuleType) -> None:
    """In a notebook draw the last run of an answer, and the same run of the solution.

    Nothing is drawn where neither exchanges anything.
    """
    if not is_kernel() or not ranks.last_run:
        return
    mine = _exchanges_of(ranks.answer, ranks.last_run, module)
    right = _exchanges_of(module.solution, ranks.repeat(module.solution), module)
    if any(rank.calls for rank in (*mine, *right)):
        if any(_of(rank) for rank in (*mine, *right)):
            titles = shown(f"your answer: {_sent(mine)}"), shown(f"a right answer: {_sent(right)}")
        else:  # DDP's own messages are made in C++, and not seen
            titles = shown("your answer"), shown("a right answer")
        show_beside(dict(zip(titles, (mine, right), strict=True)))


def _sent(run: Ran) -> str:
    """How much the rank that sends most has sent, so that both can be compared."""
    most = max(run, key=lambda rank: (sum(call.bytes for call in _of(rank)), len(_of(rank))))
    count = len(_of(most))
    told = f"{count} call" if count == 1 else f"{count} calls"
    return f"{told}, {size(sum(call.bytes for call in _of(most)))} by rank {most.rank}"


def _of(rank: RankResult) -> list[TimedCall]:
    return [call for call in rank.calls if call.kind in (ALL, SEND)]


def _exchanges_of(answer: Callable, run: Ran, module: ModuleType) -> Ran:
    """The run, with the calls that the answer itself has made, and not its check."""
    lab, (text, first) = module.__file__ or "", inspect.getsourcelines(module.solution)
    is_solution = answer is module.solution

    def is_its(filename: str, line: int) -> bool:
        if is_solution:
            return filename == lab and first <= line < first + len(text)
        return filename not in (lab, on_ranks.__file__)

    seen = tuple(_seen(rank, is_its, not is_solution) for rank in run)
    if is_solution or not any(map(_is_judged, run)):
        return seen
    # the check went on with the others, alone: that is no error of the answer
    return tuple(_as_returned(rank) if _raised_in(rank, lab) else rank for rank in seen)


def _seen(rank: RankResult, is_its: Callable[[str, int], bool], has_lines: bool) -> RankResult:
    calls = tuple(call for call in rank.calls if is_its(call.frame.filename, call.frame.line))
    if not has_lines:  # those of the solution say nothing to who has not asked for it
        calls = tuple(replace(call, frame=replace(call.frame, filename="")) for call in calls)
    seen = replace(rank, calls=calls)
    return _as_returned(seen) if _is_judged(rank) else seen


def _is_judged(rank: RankResult) -> bool:
    """By the check, after the answer had returned."""
    return rank.error is not None and rank.error.type_name == NotYet.__name__


def _raised_in(rank: RankResult, filename: str) -> bool:
    frame = rank.error.user_frame if rank.error else None
    return frame is not None and frame.filename == filename


def _as_returned(rank: RankResult) -> RankResult:
    return replace(rank, error=None, exit_code=0)
