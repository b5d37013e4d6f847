"""Write a checkpoint that is whole, or not there."""

import contextlib
import io
import itertools
import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path

import torch
import torch.distributed as dist

from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import show

EXERCISE = Exercise(
    title="A checkpoint that is whole",
    name="save",
    task="All ranks call save(state, path). Rank 0 alone writes. When the function returns, every "
    "rank can read the new file with torch.load. A run may die at any moment of it: under that "
    "name there must still be the old file or the new one, whole.",
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


class FileWatch:
    """What Python does to files, from an audit hook; the run can die before the n-th of it."""

    KINDS = frozenset(
        "open os.rename os.remove os.link os.symlink os.truncate shutil.copyfile shutil.move "
        "subprocess.Popen os.system".split()
    )

    def __init__(self, path):
        self.path, self.on, self.thread = str(path), False, threading.get_ident()
        self.dies_at, self.done, self.opened, self.named_early = 0, [], False, False
        sys.addaudithook(self.see)  # there is no way to take it off: it is switched

    def see(self, event, arguments):
        if not self.on or event not in self.KINDS or threading.get_ident() != self.thread:
            return
        if event == "open":
            path, mode, flags = arguments
            if not (mode and set(mode) & set("wax+")) and not flags & (os.O_WRONLY | os.O_RDWR):
                return
            self.opened = self.opened or str(path) == self.path
        if event == "os.rename" and str(arguments[1]) == self.path:
            self.on = False  # what we read is none of the answer's doing
            self.named_early = self.named_early or epoch_in(arguments[0]) is None
            self.on = True
        self.done.append(event)
        if self.dies_at and len(self.done) >= self.dies_at:  # and nothing after it happens, either
            raise Died

    def run(self, answer, state, dies_at=0):
        """Whether the answer came to its end."""
        self.dies_at, self.done, self.on = dies_at, [], True
        try:
            answer(state, self.path)
            return True
        except Died:
            return False
        finally:
            self.on = False


def good_time(answer, folder):
    for epoch in (3, 4):  # the second time there is an old file
        save_and_read(answer, Path(folder, "last.pt"), epoch)


def save_and_read(answer, path, epoch):
    with writes_seen(path) as seen:
        answer({"weight": torch.arange(6.0), "epoch": epoch}, str(path))
        try:
            state = torch.load(path)
        except Exception as error:
            why = f"({type(error).__name__})"
            raise NotYet(f"rank {dist.get_rank()} can't read the file after save {why}") from None
    dist.barrier()
    whole = isinstance(state, dict) and state.keys() == {"weight", "epoch"}
    if whole and epoch > 3 and state["epoch"] == 3:
        raise NotYet(f"rank {dist.get_rank()} still reads the old file after save")
    if not whole or state["epoch"] != epoch or not torch.equal(state["weight"], torch.arange(6.0)):
        raise NotYet(f"what is read back is not what was saved, but {show(state)}")
    if seen and dist.get_rank() > 0:
        raise NotYet(f"rank {dist.get_rank()} writes: only rank 0 should")


@contextlib.contextmanager
def temporary_files_elsewhere(folder):
    """On another file system, as they may be: from there a file can only be copied."""
    memory, before = "/dev/shm", tempfile.tempdir
    if os.path.isdir(memory) and os.stat(memory).st_dev != os.stat(folder).st_dev:
        tempfile.tempdir = memory
    try:
        yield
    finally:
        tempfile.tempdir = before


def bad_time(answer, folder):
    with temporary_files_elsewhere(folder):
        die_everywhere(answer, Path(folder, "bad.pt"))


def die_everywhere(answer, path):
    answer({"epoch": 1}, str(path))
    with contextlib.suppress(Died), dies_in_the_middle():
        answer({"epoch": 2}, str(path))
    if epoch_in(path) != 1:
        raise NotYet("the run died while it wrote its second checkpoint, and the first one is lost")
    watch = FileWatch(path)
    for moment in itertools.count(1):
        answer({"epoch": 3}, str(path))
        if epoch_in(path) != 3:
            raise NotYet("a later save does not replace the file")
        old = path.with_name(f"old {moment}")
        os.link(path, old)  # the old file keeps its bytes, whatever gets its name
        ended = watch.run(answer, {"epoch": 4}, dies_at=moment)
        if watch.opened:
            raise NotYet(
                "the file itself is opened to be written: a run that dies then has lost the first "
                "checkpoint, and has no second one"
            )
        if epoch_in(old) != 3:
            raise NotYet(
                "the new bytes are written over those of the first checkpoint: a run that dies "
                "then has neither of the two"
            )
        if watch.named_early:
            raise NotYet(
                "the new file gets its name before all of it is written: a run that dies then has "
                "half a file there. Close it first"
            )
        if epoch_in(path) not in (3, 4):
            raise NotYet(
                f"the run died just before its {watch.done[moment - 1]}, and under the name of the "
                "checkpoint there is no whole file: the new one must take the old one's place in "
                "one step"
            )
        if ended:
            break


def epoch_in(path):
    try:
        return torch.load(path)["epoch"]
    except Exception:
        return None


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


def copies(state, path):
    if dist.get_rank() == 0:
        torch.save(state, f"{path}.new")
        shutil.copyfile(f"{path}.new", path)
    dist.barrier()


def removes_first(state, path):
    if dist.get_rank() == 0:
        torch.save(state, f"{path}.new")
        Path(path).unlink(missing_ok=True)
        Path(f"{path}.new").rename(path)
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


def careful(state, path):
    if dist.get_rank() == 0:
        if os.path.exists(path):
            shutil.copyfile(path, f"{path}.backup")
        with open(f"{path}.part", "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        torch.load(f"{path}.part")
        shutil.move(f"{path}.part", path)
    dist.barrier()


def with_pathlib(state, path):
    if dist.get_rank() == 0:
        with tempfile.NamedTemporaryFile(dir=Path(path).parent, delete=False) as file:
            torch.save(state, file)
        Path(file.name).rename(path)
    dist.broadcast_object_list([None])


WRONG = (
    Wrong(no_barrier, "can't read the file after save"),
    Wrong(in_place, "the first one is lost"),
    Wrong(copies, "the file itself is opened to be written: a run that dies then"),
    Wrong(removes_first, "the run died just before its os.rename"),
    Wrong(all_write, "writes: only rank 0 should"),
    Wrong(only_once, "still reads the old file after save"),
    Wrong(without_the_epoch, "is not what was saved"),
)
ALSO_RIGHT = (with_pathlib, careful)
STARTER_SAYS = "rank"
