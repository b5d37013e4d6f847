"""What only the system knows of processes, and how a launch starts its own."""

import builtins
import io
import multiprocessing
import os
import signal
import threading
import time
from multiprocessing import spawn

import pytest
import torch.multiprocessing
from small_ranks import Child

from ddp_helpers.ranks import processes, worker
from ddp_helpers.ranks.fork_server import ENDED


def test_a_process_that_runs_pauses_and_ends():
    child = Child(lambda: time.sleep(60))
    assert not processes.has_exited(child.pid)
    assert not processes.is_stopped(child.pid)
    os.kill(child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    assert processes.is_stopped(child.pid)
    assert not processes.has_exited(child.pid)
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert processes.has_exited(child.pid)  # its exit code has not been asked for
    child.end()
    assert processes.has_exited(child.pid)  # nothing is left of it
    assert not processes.is_stopped(child.pid)


def test_a_name_with_brackets_is_no_state(monkeypatch):
    stat = "7 (a) T (b) S 1 2 3"
    monkeypatch.setattr(builtins, "open", lambda path: io.StringIO({"/proc/7/stat": stat}[path]))
    assert not processes.is_stopped(7)


VMSTAT = "nr_free_pages 12\noom_kill_others 5\noom_kill 3\n"


@pytest.mark.parametrize(("text", "count"), [(VMSTAT, 3), ("nr_free_pages 12\n", 0)])
def test_memory_kills_are_counted(monkeypatch, text, count):
    monkeypatch.setattr(builtins, "open", lambda path: io.StringIO({"/proc/vmstat": text}[path]))
    assert processes.count_memory_kills() == count


def test_where_the_system_does_not_tell(monkeypatch):
    def no_file(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(builtins, "open", no_file)
    assert processes.count_memory_kills() == 0


@pytest.fixture
def torchs(monkeypatch):
    """torch's function, which notes what it is asked for; and what a spawned process is told."""
    asked = {}

    class Context:
        processes = ("one", "two")

    def start(fn, **options):
        asked.update(options, fn=fn, prepared=spawn.get_preparation_data("rank"))
        if asked["start_method"] == "killed":
            raise EOFError
        return Context()

    monkeypatch.setattr(torch.multiprocessing, "start_processes", start)
    return asked


def test_ranks_are_started_by_torch(torchs):
    assert processes.start_processes(2, "address", "spawn") == ["one", "two"]
    prepared = torchs.pop("prepared")
    assert torchs == {
        "fn": worker.main,
        "args": ("address",),
        "nprocs": 2,
        "join": False,
        "daemon": False,
        "start_method": "spawn",
    }
    assert prepared["name"] == "rank"


def test_a_fork_server_that_ended_is_named(torchs):
    with pytest.raises(RuntimeError) as caught:
        processes.start_processes(2, "address", "killed")
    assert str(caught.value) == ENDED
    assert "perhaps because memory ran out" in ENDED


@pytest.fixture
def script_as_main(tmp_path, monkeypatch):
    """As in a script: multiprocessing would run it again in each child."""
    main = type(multiprocessing)("__main__")
    main.__file__ = str(tmp_path / "train.py")
    main.__spec__ = None
    import sys

    monkeypatch.setitem(sys.modules, "__main__", main)
    return main


def test_the_script_is_not_run_again_in_a_rank(script_as_main, torchs):
    assert "init_main_from_path" in spawn.get_preparation_data("other")
    processes.start_processes(1, "address", "spawn")
    assert "init_main_from_path" not in torchs["prepared"]
    assert "sys_path" in torchs["prepared"]
    assert "init_main_from_path" in spawn.get_preparation_data("other")
    processes.start_processes(1, "address", "spawn")
    original = spawn.get_preparation_data.before_ddp_helpers
    assert not hasattr(original, "before_ddp_helpers")  # replaced once, not once a launch


def test_nor_by_its_name(script_as_main, torchs):
    script_as_main.__spec__ = type("Spec", (), {"name": "package.train"})()
    assert "init_main_from_name" in spawn.get_preparation_data("other")
    processes.start_processes(1, "address", "spawn")
    assert "init_main_from_name" not in torchs["prepared"]


def test_other_threads_start_processes_as_ever(script_as_main, monkeypatch):
    seen = []

    def start(fn, **options):
        thread = threading.Thread(
            target=lambda: seen.append("init_main_from_path" in spawn.get_preparation_data("x"))
        )
        thread.start()
        thread.join()
        return type("Context", (), {"processes": ()})()

    monkeypatch.setattr(torch.multiprocessing, "start_processes", start)
    processes.start_processes(1, "address", "spawn")
    assert seen == [True]
