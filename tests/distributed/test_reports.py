"""The first lines of a failed launch name the cause, for common slips and for strangers' code."""

import os
import pty
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ddp_helpers import LaunchError, launch

pytestmark = [pytest.mark.usefixtures("no_process_left"), pytest.mark.timeout(120)]

FORKED = {"multiprocessing_context": "fork"}  # whatever Python's default is


def start():
    dist.init_process_group("gloo")
    dist.barrier()  # all have met: what is lost later is lost in the call that is tested
    return dist.get_rank()


def other_shapes():
    dist.all_reduce(torch.ones(3 if start() else 5))
    dist.barrier()


def other_shapes_gathered():
    mine = torch.ones(3 + start())
    dist.all_gather([torch.empty_like(mine) for _ in range(2)], mine)
    dist.barrier()


def other_dtypes():
    dist.all_reduce(torch.ones(4, dtype=torch.float64 if start() else torch.float32))
    dist.barrier()


def own_source():
    dist.broadcast(torch.ones(1), src=start())
    dist.barrier()


def nobody_sends():
    if start() == 0:
        dist.recv(torch.ones(1), 1)
    dist.barrier()


def nobody_receives():
    if start() == 0:
        dist.send(torch.ones(1), 1)
    dist.barrier()


def nobody_sends_any_more():
    if start() == 0:
        dist.recv(torch.ones(1), 1)


def only_rank_0_reduces():
    rank = start()
    for _ in range(3):
        if rank == 0:
            dist.all_reduce(torch.ones(1))
        dist.barrier()


def only_rank_0_reduces_while_rank_1_works():
    if start() == 0:
        dist.all_reduce(torch.ones(1))
    time.sleep(60)


def an_input():
    if start() == 0:
        input("go? ")
    dist.barrier()


def a_worker_that_imports():
    class Numbers(Dataset):
        __module__ = "__main__"  # as of a cell, or of the script that runs
        __qualname__ = "Numbers"

        def __len__(self):
            return 4

    list(DataLoader(Numbers(), num_workers=1, multiprocessing_context="spawn"))


@pytest.mark.parametrize(
    ("job", "text"),
    [
        (other_shapes, r"why: all_reduce .* tensors: float32 \(5,\) on rank 0, float32 \(3,\) on"),
        (other_shapes_gathered, r"why: all_gather .*: float32 \(3,\) on rank 0, float32 \(4,\) on"),
        (other_dtypes, r"why: all_reduce .* tensors: float32 \(4,\) on rank 0, float64 \(4,\) on"),
        (own_source, "why: broadcast names another src on each: 0 on rank 0, 1 on rank 1"),
        (nobody_sends, "why: rank 0 waits in recv from rank 1, and rank 1 waits in barrier"),
        (nobody_receives, "why: rank 0 waits in send to rank 1, and rank 1 waits in barrier"),
        (nobody_sends_any_more, "why: rank 0 waits in recv from rank 1, and rank 1 has finished"),
        (only_rank_0_reduces, "what to do: .*look for one under `if rank"),
        (only_rank_0_reduces_while_rank_1_works, "what to do: .*look for an `if rank"),
        (an_input, "why: a rank has no keyboard"),
        (a_worker_that_imports, "why: a loader's worker that is not forked has to import Numbers"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)  # fmt: skip
def test_a_common_slip_is_named(job, text):
    with pytest.raises(LaunchError) as caught:
        launch(job, 2, timeout=6, echo=False)
    report = str(caught.value)
    assert re.search(text, report), report
    assert report.count("why: ") == 1, report


def test_a_slow_rank_is_called_slow_with_the_sanitizer_too():
    def build():
        time.sleep(60)

    def train():
        dist.init_process_group("gloo", timeout=timedelta(seconds=4))
        if dist.get_rank() == 0:
            build()
        dist.barrier()

    for sanitize in (False, True):
        with pytest.raises(LaunchError) as caught:
            launch(train, 2, timeout=60, echo=False, sanitize=sanitize)
        report = str(caught.value)
        assert re.search(r"rank 0 was at .*, in build", report), report
        assert re.search("what to do: .*prepare data once and before the run", report), report


# ---- strangers' runs: the cause stands in the first lines


class Strange(Dataset):
    """Two workers' ranks read it; `happens` comes on rank 1 alone."""

    def __init__(self, happens):
        self.happens = happens

    def __len__(self):
        return 32

    def __getitem__(self, index):
        if index == 17:
            self.happens()
        return torch.randn(4), index % 2


def train_on(happens):
    def job():
        start()
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 2))
        data = Strange(happens)
        sampler = DistributedSampler(data, shuffle=False)
        for inputs, _ in DataLoader(data, 4, sampler=sampler, num_workers=1, **FORKED):
            model(inputs).sum().backward()

    return job


def crash():
    os.kill(os.getpid(), signal.SIGSEGV)


def hang():
    time.sleep(60)


def lose_the_shard():
    raise RuntimeError("reading s3://bucket/shard-7.tar failed: Connection reset by peer")


def lose_the_shard_on_rank_1():
    if start() == 1:
        lose_the_shard()
    dist.barrier()


def slow_rank_0():
    dist.init_process_group("gloo", timeout=timedelta(seconds=4))
    if dist.get_rank() == 0:
        hang()
    dist.barrier()


def lose_a_thread():
    """The rank does not end of it: it waits for what its thread would have given."""
    rank, given = start(), queue.Queue()

    def read():
        if rank == 1:
            raise ValueError("row 17 has no label")
        given.put(3)

    threading.Thread(target=read, daemon=True).start()
    given.get()
    dist.barrier()


@pytest.mark.parametrize(
    ("job", "first", "why"),
    [
        # it is chance whether torch's own word or the worker's closed socket comes first
        (
            train_on(crash),
            "^rank 1 failed: (RuntimeError: DataLoader worker|ConnectionResetError)",
            "why: a loader worker crashed in compiled code",
        ),
        (train_on(hang), "rank 1 waited for its loader's workers at", ""),
        (
            train_on(lose_the_shard),
            "^rank 1 failed: RuntimeError: reading s3://bucket/shard-7.tar",
            "",
        ),
        (
            lose_the_shard_on_rank_1,
            "^rank 1 failed: RuntimeError: reading s3://bucket/shard-7.tar",
            "",
        ),
        (
            lose_a_thread,
            "^rank 1 had lost a thread: ValueError: row 17 has no label .*, in read$",
            "",
        ),
        (slow_rank_0, "^rank 0 was at .*, in hang, and rank 1 gave up waiting for it", ""),
    ],
    ids=["crash", "hang", "lost in a worker", "lost", "lost thread", "slow"],
)
def test_the_first_lines_name_the_cause_in_a_strangers_run(job, first, why):
    with pytest.raises(LaunchError) as caught:
        launch(job, 2, timeout=10, echo=False)
    report = str(caught.value)
    assert re.search(first, "\n".join(report.splitlines()[:3]), re.MULTILINE), report
    assert why in report


def test_tensors_of_two_groups_are_not_compared():
    """Each group of one has its own shape, and what fails is something else."""

    def job():
        dist.init_process_group("gloo")
        groups = [dist.new_group([0]), dist.new_group([1])]
        rank = dist.get_rank()
        dist.all_reduce(torch.ones(3 + rank), group=groups[rank])
        if rank == 0:
            dist.all_reduce(torch.ones(1))
        time.sleep(60)

    with pytest.raises(LaunchError) as caught:
        launch(job, 2, timeout=6, echo=False)
    assert "different tensors" not in str(caught.value)


def test_a_call_instead_of_a_function_and_an_argument_instead_of_a_tuple():
    with pytest.raises(TypeError, match=r"fn=None: .* without calling it: launch\(train\)"):
        launch(print())
    for one in (1, "abc"):
        with pytest.raises(
            TypeError, match=rf"args={one!r}: expected a tuple; .*args=\({one!r},\)"
        ):
            launch(print, args=one)


def test_in_a_terminal_the_full_tracebacks_stay_in_a_file(tmp_path):
    script = tmp_path / "fails.py"
    script.write_text("def inner():\n    1 / 0\n\ndef main():\n    inner()\n")
    command = [sys.executable, "-m", "ddp_helpers", "run", f"{script}:main", "-n", "2"]
    ours, theirs = pty.openpty()
    subprocess.run(command, stderr=theirs, env=os.environ | {"TMPDIR": str(tmp_path)}, timeout=60)
    os.close(theirs)
    report = os.read(ours, 10_000).decode()
    os.close(ours)
    (file,) = tmp_path.glob("ddp_helpers-tracebacks-*.txt")
    assert f"full traceback: {file}" in report
    assert file.stat().st_mode & 0o077 == 0
    text = file.read_text()
    assert text.startswith("rank 0\nTraceback")
    assert text.count("line 5, in main") == text.count("line 2, in inner") == 2
    piped = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "tracebacks-" not in piped.stderr
