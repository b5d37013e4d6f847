"""Ranks that stand by: taken once, as fresh as any other, cheap, and gone with their launcher."""

import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from ddp_helpers import LaunchError, launch
from ddp_helpers.ranks import fork_server, forked, wire
from ddp_helpers.ranks import standby as module
from ddp_helpers.ranks.forked import ENDED
from ddp_helpers.ranks.standby import MOST, Standby, standby

pytestmark = [pytest.mark.usefixtures("no_process_left"), pytest.mark.timeout(240)]
MOST_PRIVATE = 15e6  # bytes of one that stands by


@pytest.fixture
def as_in_a_kernel(monkeypatch, no_process_left):
    """Without Jupyter: only what asks whether this is a notebook is told yes."""
    monkeypatch.setattr(module, "is_kernel", lambda: True)
    standby.let_go()
    monkeypatch.setattr(standby, "_most_asked", 0)
    yield
    standby.let_go()


def pids(number: int = 2, **options) -> list[int]:
    return launch(os.getpid, number, echo=False, **options).values


def until(true, seconds: float = 30.0) -> None:
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.01)


def waiting(number: int = 2) -> list[int]:
    """Those that stand by, once they have come to their wait."""
    until(lambda: len(standby.numbers()) == number and all(map(is_waiting, standby.numbers())))
    return standby.numbers()


def is_waiting(pid: int) -> bool:
    return "poll" in Path(f"/proc/{pid}/wchan").read_text()


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_script_has_none():
    pids()
    assert standby.numbers() == []


@pytest.mark.usefixtures("as_in_a_kernel")
def test_a_launch_takes_those_that_stand_by_and_none_twice():
    seen = pids()
    for number in (2, 2, 3, 1, 4):
        before = waiting(standby._most_asked)
        now = pids(number)
        assert set(now[: len(before)]) <= set(before)
        assert not set(now) & set(seen)
        seen += now
        assert not set(standby.numbers()) & set(seen)
        assert not any(map(is_alive, now))


@pytest.mark.usefixtures("as_in_a_kernel")
def test_a_large_launch_leaves_few():
    pids(MOST + 3)
    waiting(MOST)


@pytest.mark.usefixtures("as_in_a_kernel")
def test_they_need_little_memory_and_no_time():
    pids(3)
    ready = waiting(3)
    before = [cpu_ticks(pid) for pid in ready]
    for pid in ready:
        private = sum(
            int(line.split()[1])
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            if line.startswith("Private")
        )
        assert private * 1024 < MOST_PRIVATE
        assert len(os.listdir(f"/proc/{pid}/task")) == 1
    time.sleep(1)
    assert [cpu_ticks(pid) for pid in ready] == before


def cpu_ticks(pid: int) -> list[str]:
    """Time and switches: one that did anything at all has more of these."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return [*times, *(line for line in status if line.startswith("voluntary"))]


@pytest.mark.usefixtures("as_in_a_kernel")
def test_what_holds_at_the_launch_holds_in_the_rank(monkeypatch, tmp_path):
    def look():
        umask = os.umask(0)
        os.umask(umask)
        return (
            os.environ.get("ASKED"),
            os.getcwd(),
            umask,
            sys.path[0],
            resource.getrlimit(resource.RLIMIT_CORE)[0],
            signal.getsignal(signal.SIGHUP) is signal.SIG_IGN,
            torch.get_num_threads(),
            torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"]),
            sys.argv[0],
            os.getpgid(0) == os.getpid(),
            signal.getsignal(signal.SIGINT) is signal.default_int_handler,
            signal.pthread_sigmask(signal.SIG_BLOCK, []),
        )

    pids()
    ready = waiting()
    monkeypatch.setenv("ASKED", "now")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "argv", ["later.py"])
    umask, core = os.umask(0o77), resource.getrlimit(resource.RLIMIT_CORE)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, core[1]))
    try:
        result = launch(lambda: (os.getpid(), look()), 2, threads_per_rank=3)
    finally:
        os.umask(umask)
        resource.setrlimit(resource.RLIMIT_CORE, core)
        signal.signal(signal.SIGHUP, hangup)
    assert sorted(pid for pid, _ in result.values) == sorted(ready)
    modules = str(tmp_path / "modules")
    expected = ("now", str(tmp_path), 0o77, modules, 0, True, 3, True, "later.py", True, True)
    for _, seen in result.values:
        assert seen[:-1] == expected
        assert not seen[-1]


@pytest.mark.usefixtures("as_in_a_kernel")
@pytest.mark.parametrize("way", ["os.environ", "env="])
def test_a_launch_with_other_variables_of_torch_takes_none_that_has_read_the_old_ones(
    monkeypatch, way
):
    pids()
    ready = waiting()
    variable = {"TORCH_NCCL_TRACE_BUFFER_SIZE": "7"}
    options = {"env": variable} if way == "env=" else {}
    if way == "os.environ":
        monkeypatch.setenv(*next(iter(variable.items())))
    assert not set(pids(**options)) & set(ready)
    until(lambda: not any(map(is_alive, ready)))
    ready = waiting()  # the next launch is likely to have them, too
    assert set(pids(**options)) == set(ready)


@pytest.mark.usefixtures("as_in_a_kernel")
def test_a_variable_that_torch_reads_at_its_import_counts_from_the_next_launch_on(monkeypatch):
    def logged():
        import logging

        return os.getppid(), logging.getLogger("torch._dynamo").getEffectiveLevel()

    launch(logged, 2)
    ready = waiting()
    server = fork_server.server_pid()
    monkeypatch.setenv("TORCH_LOGS", "+dynamo")
    values = launch(logged, 2).values
    assert {level for _, level in values} == {10}  # DEBUG
    assert {parent for parent, _ in values} == {fork_server.server_pid()} != {server}
    assert not any(map(is_alive, [server, *ready]))


@pytest.mark.usefixtures("as_in_a_kernel")
def test_a_server_whose_ranks_run_is_not_replaced(monkeypatch, tmp_path):
    def run():
        (tmp_path / os.environ["RANK"]).touch()
        time.sleep(4)

    seen = []
    thread = threading.Thread(target=lambda: seen.append(launch(run, 2).values))
    thread.start()
    until(lambda: len(os.listdir(tmp_path)) == 2)
    server = fork_server.server_pid()
    monkeypatch.setenv("OMP_DISPLAY_ENV", "false")
    assert launch(os.getppid, 2, echo=False).values == [server, server]
    thread.join()
    assert seen == [[None, None]]


def children(pid) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split() if pid else []


@pytest.mark.usefixtures("as_in_a_kernel")
def test_a_variable_that_is_told_again_is_no_hindrance():
    pids()
    ready = waiting()
    env = {"TORCH_DISTRIBUTED_DEBUG": "INFO", "MINE": "1"}
    level = launch(lambda: (os.getpid(), str(torch.distributed.get_debug_level())), 2, env=env)
    assert {pid for pid, _ in level.values} == set(ready)
    assert {text for _, text in level.values} == {"DebugLevel.INFO"}


@pytest.mark.usefixtures("as_in_a_kernel")
def test_each_draws_numbers_of_its_own():
    def draw():
        return torch.rand(1).item(), random.random()

    drawn = [value for _ in range(3) for value in launch(draw, 2).values]
    assert len({first for first, _ in drawn}) == len(drawn)
    assert len({second for _, second in drawn}) == len(drawn)


@pytest.mark.usefixtures("as_in_a_kernel")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP])
def test_one_that_was_killed_or_paused_is_replaced(number):
    pids()
    ready = waiting()
    os.kill(ready[0], number)
    if number == signal.SIGSTOP:
        until(lambda: "T (stopped)" in Path(f"/proc/{ready[0]}/status").read_text())
    else:
        until(lambda: not is_alive(ready[0]))
    now = pids()
    assert ready[0] not in now
    assert ready[1] in now
    until(lambda: not is_alive(ready[0]))


@pytest.mark.usefixtures("as_in_a_kernel")
def test_they_end_with_their_fork_server_and_the_next_launch_has_new_ones():
    pids()
    ready = waiting()
    os.kill(fork_server.server_pid(), signal.SIGKILL)
    until(lambda: not any(map(is_alive, ready)))
    assert not set(pids()) & set(ready)
    waiting()


@pytest.mark.usefixtures("as_in_a_kernel")
def test_a_server_that_ends_while_they_are_asked_for(monkeypatch):
    pids()
    server = fork_server.server_pid()
    os.kill(server, signal.SIGSTOP)  # it answers nobody any more
    one = Standby()
    threading.Timer(0.3, os.kill, (server, signal.SIGKILL)).start()
    with pytest.raises(RuntimeError) as caught:
        one.take(3, {})
    assert str(caught.value) == ENDED


@pytest.mark.usefixtures("as_in_a_kernel")
def test_an_error_in_a_rank_that_stood_by_is_told_as_ever():
    def fail():
        raise ValueError("bad label 11")

    pids()
    waiting()
    with pytest.raises(LaunchError, match="ranks 0 and 1 failed: ValueError: bad label 11"):
        launch(fail, 2, echo=False)
    waiting()  # also after a failure


@pytest.mark.usefixtures("as_in_a_kernel")
@pytest.mark.parametrize("short", ["memory", "processes", "files"])
def test_without_room_nobody_stands_by(monkeypatch, short):
    def refuse(_):
        raise OSError("no room")

    if short == "memory":
        monkeypatch.setattr(module, "LEAST_FREE", 1.1)
    else:
        name = {"processes": "check_tasks", "files": "check_open_files"}[short]
        monkeypatch.setattr(module, name, refuse)
    assert len(pids()) == 2
    assert standby.numbers() == []


@pytest.mark.usefixtures("as_in_a_kernel")
def test_a_forked_child_of_the_launcher_does_not_keep_them():
    pids()
    ready = waiting()
    child = os.fork()
    if child == 0:
        os._exit(0 if standby.numbers() == [] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert set(pids()) == set(ready)  # nor end them


@pytest.mark.usefixtures("as_in_a_kernel")
def test_launches_of_several_threads_share_them():
    pids(4)
    waiting(4)
    seen, threads = [], []
    for _ in range(3):
        threads.append(threading.Thread(target=lambda: seen.extend(pids())))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert len(set(seen)) == 6


@pytest.mark.usefixtures("as_in_a_kernel")
@pytest.mark.parametrize("where", ["asked for", "born", "given its files", "standing by"])
def test_a_ctrl_c_at_any_moment_leaves_nothing(monkeypatch, where):
    pids()
    waiting()
    before = len(os.listdir("/proc/self/fd"))
    owner, name = {
        "asked for": (forked, "ForkedProcess"),
        "born": (forked.ForkedProcess, "wait_until_born"),
        "given its files": (wire, "send_files"),
        "standing by": (module, "ForkedProcess"),
    }[where]
    original, times = getattr(owner, name), []

    def interrupted(*args):
        times.append(1)
        done = original(*args)
        if len(times) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return done

    def launch_and_look():
        pids(4)  # two of them stand by
        until(lambda: times)  # the next ones are asked for when the launch has returned
        time.sleep(1)

    monkeypatch.setattr(owner, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        launch_and_look()
    assert times
    waiting(4)
    assert len(os.listdir("/proc/self/fd")) == before + 2 * len(standby._ready[0].files())
    assert len(set(pids(4))) == 4


LEAVES = """
import ctypes, os, subprocess, sys, time
from ddp_helpers import launch
from ddp_helpers.ranks import standby

standby.is_kernel = lambda: True
def pid():
    return os.getpid()
if __name__ == "__main__":
    launch(pid, 3, echo=False)
    while len(standby.standby.numbers()) < 3:
        time.sleep(0.01)
    # a child that no hook of Python knows of: it holds all that its parent had open
    child = ctypes.CDLL(None).fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(*standby.standby.numbers(), child, flush=True)
    HOW
"""


@pytest.mark.parametrize("how", ["pass", "os._exit(0)", "os.kill(os.getpid(), 9)", "1 / 0"])
def test_they_end_with_their_launcher(tmp_path, how):
    script = tmp_path / "leaves.py"
    script.write_text(LEAVES.replace("HOW", how))
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as launcher:
        *ready, child = map(int, launcher.stdout.readline().split())
        launcher.wait(60)
        assert len(ready) == 3
        until(lambda: not any(map(is_alive, ready)), 5)
        assert is_alive(child)
        os.kill(child, signal.SIGKILL)


@pytest.mark.usefixtures("as_in_a_kernel")
def test_files_and_threads_do_not_grow():
    def count():
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    pids(4)
    waiting(4)
    before = count()
    for number in (4, 2, 4, 1, 3):
        pids(number)
        waiting(4)
    assert count() == before
