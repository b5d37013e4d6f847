"""In the kernel of a notebook that is recorded: launch() as it is; what its ranks did is noted."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from IPython import get_ipython

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE.parent / "play")]

from recordings import encode  # noqa: E402

import ddp_helpers  # noqa: E402
from ddp_helpers.evidence.records import RankResult  # noqa: E402
from ddp_helpers.ranks.drawing import Draw  # noqa: E402
from ddp_helpers.ranks.launcher import launch  # noqa: E402
from ddp_helpers.ranks.view import TextView  # noqa: E402


class Noting(TextView):
    """Shows what ranks print, if it was to be shown, and keeps it with the time."""

    def __init__(self, echo: bool) -> None:
        self.echo = echo
        self.told: list[tuple[float, int | None, str]] = []

    def output(self, rank: int, lines: list[str]) -> None:
        self.told += [(time.monotonic(), rank, line) for line in lines]
        if self.echo:
            super().output(rank, lines)


def noted(fn: Any, nprocs: int | None = None, **options: Any) -> Any:
    """`launch()`, and a line in the file of notes."""
    view, report, result = Noting(options.get("echo", True)), "", None
    number = len(get_ipython().user_ns["In"]) - 1  # the cell that runs
    try:
        result = launch(fn, nprocs, **{"live": view, "draw": Draw.LATER} | options)
        return result
    except BaseException as error:
        result, report = getattr(error, "result", None), str(error)
        raise
    finally:
        if result is not None:
            note(number, result.ranks, view.told, report)


def note(cell: int, ranks: tuple[RankResult, ...], told: list[tuple], report: str) -> None:
    """Write what ranks did; times are from the first thing on that is seen of them."""
    ended = time.monotonic()
    seen = [at for at, *_ in told] + [call.began for rank in ranks for call in rank.calls[:1]]
    begin = min(seen, default=ended)
    since = lambda at: None if at is None else at - begin
    drawn = [
        RankResult(
            rank.rank,
            exit_code=rank.exit_code,
            error=rank.error and replace(rank.error, message="", traceback="", at=0.0),
            stack=rank.stack,
            returned=rank.returned,
            calls=tuple(
                replace(
                    call, began=since(call.began), waited=since(call.waited), done=since(call.done)
                )
                for call in rank.calls
            ),
        )
        for rank in ranks
    ]
    lines = [(since(at), rank, text) for at, rank, text in told]
    lines += [(since(ended), None, line) for line in report.splitlines()]
    found = {"ranks": drawn, "told": lines, "seconds": since(ended)}
    with Path(os.environ["COURSE_NOTES"]).open("a", encoding="utf-8") as file:
        print(json.dumps([cell, encode(found, digits=6)], ensure_ascii=False), file=file)


ddp_helpers.launch = noted
