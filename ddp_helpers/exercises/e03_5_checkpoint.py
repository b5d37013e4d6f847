"""Write a checkpoint that is whole, or not there."""

import contextlib
import io
import os
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist

from ddp_helpers.exercises.core import Exercise, NotYet, Wrong

EXERCISE = Exercise(
    title="A checkpoint that is whole",
    name="save",
    task="All ranks call save(state, path). Rank 0 alone writes. When the function returns, every "
    "rank can read the new file with torch.load. A run that dies while it writes must leave the "
    "old file as it was.",
    hints=(
        "Three duties: one writer, nobody reads too early, nothing half-written under that name.",
        "Write under another name in the same folder. What gives a file its final name at once?",
        "Rank 0: torch.save to path + '.tmp', then os.replace. All ranks: dist.barrier().",
    ),
    lesson="The helper save_checkpoint also flushes to the disk and reads the file back.",
    minutes=12,
)


def starter(state, path):
    torch.save(state, path)


def solution(state, path):
    if dist.get_rank() == 0:
        torch.save(state, f"{path}.tmp")
        os.replace(f"{path}.tmp", path)
    dist.barrier()


@contextlib.contextmanager
def writes_seen(path):
    """Counts calls of torch.save here; a slow disk, so that nobody can read too early by luck."""
    import time

    original, seen = torch.save, []

    def slow_save(state, file, *args, **kwargs):
        seen.append(file)
        time.sleep(0.1)
        return original(state, file, *args, **kwargs)

    torch.save = slow_save
    try:
        yield seen
    finally:
        torch.save = original


class Died(BaseException):
    """The run ends here, as if its machine had lost power."""


@contextlib.contextmanager
def dies_in_the_middle():
    original = torch.save

    def half(state, file, *args, **kwargs):
        whole = io.BytesIO()
        original(state, whole)
        data = whole.getvalue()[: len(whole.getvalue()) // 2]
        if hasattr(file, "write"):
            file.write(data)
            file.flush()
        else:
            Path(file).write_bytes(data)
        raise Died

    torch.save = half
    try:
        yield
    finally:
        torch.save = original


def opened_for_writing(path, opened):
    def audit(event, arguments):
        if event == "open" and str(arguments[0]) == str(path) and "w" in str(arguments[1] or ""):
            opened.append(path)

    sys.addaudithook(audit)


def good_time(answer, folder):
    path = Path(folder, "last.pt")
    with writes_seen(path) as seen:
        answer({"weight": torch.arange(6.0), "epoch": 3}, str(path))
        try:
            state = torch.load(path)
        except Exception as error:
            why = f"({type(error).__name__})"
            raise NotYet(f"rank {dist.get_rank()} can't read the file after save {why}") from None
    dist.barrier()
    if state["epoch"] != 3 or not torch.equal(state["weight"], torch.arange(6.0)):
        raise NotYet("what is read back is not what was saved")
    if seen and dist.get_rank() > 0:
        raise NotYet(f"rank {dist.get_rank()} writes, too: one rank is enough")


def bad_time(answer, folder):
    path, opened = Path(folder, "bad.pt"), []
    answer({"epoch": 1}, str(path))
    opened_for_writing(path, opened)
    with contextlib.suppress(Died), dies_in_the_middle():
        answer({"epoch": 2}, str(path))
    try:
        whole = torch.load(path)["epoch"] == 1
    except Exception:
        whole = False
    if opened or not whole:
        raise NotYet("the run died while it wrote its second checkpoint, and the first one is lost")
    answer({"epoch": 3}, str(path))
    if torch.load(path)["epoch"] != 3:
        raise NotYet("a later save does not replace the file")


def check(ranks):
    with tempfile.TemporaryDirectory() as folder:
        ranks.run(good_time, 3, folder)
        ranks.run(bad_time, 1, folder)


def no_barrier(state, path):
    if dist.get_rank() == 0:
        torch.save(state, f"{path}.tmp")
        os.replace(f"{path}.tmp", path)


def in_place(state, path):
    if dist.get_rank() == 0:
        torch.save(state, path)
    dist.barrier()


def all_write(state, path):
    torch.save(state, f"{path}.{dist.get_rank()}")
    os.replace(f"{path}.{dist.get_rank()}", path)
    dist.barrier()


def only_once(state, path):
    if not Path(path).exists():
        solution(state, path)


def without_the_epoch(state, path):
    solution(state | {"epoch": 0}, path)


def with_pathlib(state, path):
    if dist.get_rank() == 0:
        with tempfile.NamedTemporaryFile(dir=Path(path).parent, delete=False) as file:
            torch.save(state, file)
        Path(file.name).rename(path)
    dist.broadcast_object_list([None])


WRONG = (
    Wrong(no_barrier, "can't read the file after save"),
    Wrong(in_place, "the first one is lost"),
    Wrong(all_write, "writes, too"),
    Wrong(only_once, "does not replace the file"),
    Wrong(without_the_epoch, "is not what was saved"),
)
ALSO_RIGHT = (with_pathlib,)
STARTER_SAYS = "rank"
