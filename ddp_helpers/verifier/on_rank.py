"""One run of the training function, on this rank, with what it did noted."""

from __future__ import annotations

import contextlib
import os
import random
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path

from ddp_helpers.arguments import FOLDER, fill_in_folder
from ddp_helpers.ranks.travel import load_function
from ddp_helpers.verifier.feed import Feed
from ddp_helpers.verifier.neutral import neutral
from ddp_helpers.verifier.recorder import Enough, Recorder, leave_group
from ddp_helpers.verifier.records import CannotCompare, Plan, RankRecord


def note_this_rank(plan: Plan) -> None:
    """Run the function until enough steps are noted, and leave the record in the plan's folder."""
    rank = int(os.environ.get("RANK", 0))
    begin, record = time.monotonic(), RankRecord(rank)
    random.seed(rank)  # torch begins alike in every process; these two do not
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(rank)
    _fill_in_folder(plan)
    recorder = Recorder(plan, record, Feed(plan, record))
    with neutral(plan, record), recorder.watching():
        try:
            with contextlib.suppress(Enough):
                _function(plan)()
        except CannotCompare as problem:
            record.trouble = str(problem)
    leave_group()
    record.seconds = time.monotonic() - begin
    recorder.save()


def _function(plan: Plan) -> Callable[[], object]:
    if isinstance(plan.target, str) and ":" not in Path(plan.target).name:
        return lambda: _run_program(str(plan.target))
    kwargs = {**plan.kwargs, **(plan.alone_kwargs if plan.follows else {})}
    return lambda: load_function(plan.target)(*plan.args, **kwargs)


def _run_program(path: str) -> None:
    """The script as `python script.py` would run it."""
    sys.argv = [path, *sys.argv[1:]]
    sys.path.insert(0, str(Path(path).resolve().parent))
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as end:
        if end.code not in (None, 0):
            raise RuntimeError(f"{path} ended with: {end.code}") from None


def _fill_in_folder(plan: Plan) -> None:
    own = Path(plan.folder) / f"files-of-{plan.name}"
    if any(FOLDER in word for word in sys.argv):
        own.mkdir(exist_ok=True)
    alone = plan.alone_arguments if plan.follows else ()
    sys.argv = fill_in_folder((*sys.argv, *alone), str(own))
