"""The line that tells, while ranks still run, that none can go on: never of honest long work."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset

from ddp_helpers import LaunchTimeoutError, launch
from ddp_helpers.ranks import stall

pytestmark = [pytest.mark.usefixtures("no_process_left"), pytest.mark.timeout(240)]
STILL = 1.5
LONG = 3.0  # seconds of honest work: the line would come long before


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(stall, "STILL", STILL)


# ---- honest


def busy(seconds=LONG):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        torch.ones(100).sum()


def from_a_server_that_takes_its_time(limit):
    """Reads from one whose answer comes late, as a download does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        child = os.fork()
        if child == 0:
            link, _ = server.accept()
            time.sleep(LONG)
            link.send(b"x")
            os._exit(0)
        with socket.create_connection(server.getsockname(), limit) as link:
            assert link.recv(1) == b"x"
        os.waitpid(child, 0)


class Slow(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        time.sleep(LONG / 4)
        return index


def in_a_thread():
    thread = threading.Thread(target=time.sleep, args=(LONG,))
    thread.start()
    thread.join()


def in_a_pool():
    with ThreadPoolExecutor(1) as pool:
        pool.submit(from_a_server_that_takes_its_time, 60).result()


def behind_a_file_lock():
    import fcntl

    with tempfile.NamedTemporaryFile() as file:
        child = subprocess.Popen(
            [sys.executable, "-c", f"import fcntl, time; file = open({file.name!r}, 'w'); "
             f"fcntl.flock(file, fcntl.LOCK_EX); print(flush=True); time.sleep({LONG})"],
            stdout=subprocess.PIPE,
        )  # fmt: skip
        child.stdout.readline()
        fcntl.flock(file, fcntl.LOCK_EX)
        child.wait()


def a_checkpoint():
    with tempfile.TemporaryFile() as file:
        end = time.monotonic() + LONG
        while time.monotonic() < end:
            torch.save(torch.ones(100_000), file)
            os.fsync(file.fileno())
            file.seek(0)
            time.sleep(0.5)


def a_fifo():
    """As input() or a debugger would wait for a line that somebody types."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        time.sleep(LONG)
        os.write(writing, b"x\n")
        os._exit(0)
    with os.fdopen(reading) as lines:
        assert lines.readline() == "x\n"
    os.close(writing)
    os.waitpid(child, 0)


HONEST = [
    busy,
    lambda: time.sleep(LONG),
    lambda: threading.Event().wait(LONG),
    lambda: subprocess.run(["sleep", str(LONG)], check=True),
    lambda: from_a_server_that_takes_its_time(60),
    lambda: from_a_server_that_takes_its_time(None),
    lambda: list(DataLoader(Slow(), num_workers=1)),
    lambda: list(DataLoader(Slow(), num_workers=2, pin_memory=True)),
    in_a_thread,
    in_a_pool,
    behind_a_file_lock,
    a_checkpoint,
    a_fifo,
]


@pytest.mark.parametrize("one", [0, 1])
def test_of_honest_long_work_nothing_is_said(capfd, monkeypatch, one):
    """The others wait for it in a barrier, and once in DDP's backward."""

    def job():
        dist.init_process_group("gloo")
        for work in HONEST:
            if dist.get_rank() == one:
                work()
            dist.barrier()
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))
        if dist.get_rank() == one:
            time.sleep(LONG)
        model(torch.ones(1, 1)).sum().backward()
        dist.barrier()
        dist.destroy_process_group()

    monkeypatch.setattr(stall, "BETWEEN", 0.3)
    launch(job, 2, timeout=200)
    assert "has moved" not in "".join(capfd.readouterr())


def test_a_long_load_before_the_group_and_a_big_all_reduce(capfd):
    def job():
        if os.environ["RANK"] == "0":
            time.sleep(LONG)
        dist.init_process_group("gloo")
        for _ in range(3):
            dist.all_reduce(torch.ones(100_000_000))
        dist.destroy_process_group()

    launch(job, 2, timeout=100)
    assert "has moved" not in "".join(capfd.readouterr())


# ---- stuck


def crossed():
    dist.init_process_group("gloo")
    if dist.get_rank() == 0:
        dist.all_reduce(torch.ones(1))
    dist.barrier()


def missing():
    dist.init_process_group("gloo", world_size=3)


def both_receive():
    dist.init_process_group("gloo")
    dist.recv(torch.ones(1), 1 - dist.get_rank())


def locked():
    dist.init_process_group("gloo")
    if dist.get_rank() == 1:
        lock = threading.Lock()
        with lock, lock:
            pass
    dist.all_reduce(torch.ones(1))


def paused():
    dist.init_process_group("gloo")
    if dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    dist.all_reduce(torch.ones(1))


def one_backward_more():
    dist.init_process_group("gloo")
    model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(1, 1))
    if dist.get_rank() == 1:
        model(torch.ones(1, 1)).sum().backward()
    dist.barrier()


@pytest.mark.parametrize(
    ("job", "places"),
    [
        (
            crossed,
            "rank 0 waits in all_reduce at {}+3, in crossed; rank 1 waits in barrier at {}+4",
        ),
        (missing, "ranks 0 and 1 wait in init_process_group at {}+1, in missing"),
        (both_receive, "ranks 0 and 1 wait in recv at {}+2, in both_receive"),
        (locked, "rank 0 waits in all_reduce at {}+6, in locked; rank 1 waits at {}+4, in locked"),
        (paused, "rank 0 waits in all_reduce at {}+4, in paused; rank 1 is paused from outside"),
        (
            one_backward_more,
            "rank 0 waits in barrier at {}+5, .*; rank 1 waits in backward at {}+4",
        ),
    ],
)
def test_ranks_that_cannot_go_on_are_named(job, places, capfd):
    first = job.__code__.co_firstlineno
    places = re.sub(r"\{\}\+(\d)", lambda hit: rf"\S*, line {first + int(hit[1])}", places)
    with pytest.raises(LaunchTimeoutError):
        launch(job, 2, timeout=9)
    told = [line for line in capfd.readouterr().err.splitlines() if "has moved" in line]
    assert len(told) == 1
    assert re.match(f"no rank has moved for 1.5 s: {places}", told[0]), told[0]


def test_a_launch_that_keeps_quiet_says_nothing(capfd):
    with pytest.raises(LaunchTimeoutError):
        launch(crossed, 2, timeout=6, echo=False)
    assert "has moved" not in "".join(capfd.readouterr())
