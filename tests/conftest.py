"""Shared by all tests: nothing may survive a test."""

import contextlib
import os
import signal
import time

import hypothesis
import psutil
import pytest
from chromium import find_chromium
from run_report import RunReport

# Threads of OpenMP wait for each other in a loop, and beside other tests that takes more than half
# of the cores; everything that tests start inherits this, and waits asleep.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# `nohup make test &` starts all of this with signals ignored, and what tests start would inherit
# that; a signal that is caught here is an ordinary one there
with contextlib.suppress(ValueError):  # not in the main thread
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)

# a busy machine is no fault of the code
hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):  # a worker of xdist prints nothing
        config.pluginmanager.register(RunReport(config))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The wheel first: late in a run of two workers one would wait for its minute alone."""
    items.sort(key=lambda item: item.path.name != "test_wheel.py")


def our_processes() -> dict[int, psutil.Process]:
    """Every descendant of this process, except the fork server and the resource tracker."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            command = " ".join(process.cmdline())
            helper = "forkserver import main" in command or "resource_tracker" in command
            ranks = helper and process.ppid() != os.getpid()  # a rank looks like its server
            # up to torch 2.6 the first torch.compile of a process keeps workers of its own
            helper = helper or "_inductor/compile_worker" in command
            if (not helper or ranks) and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = process
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.fixture(scope="session")
def chromium() -> str:
    path = find_chromium()
    if path is None and not os.environ.get("CI"):
        pytest.skip("no Chromium here: apt install chromium")
    assert path, "CI must install Chromium"
    return path


@pytest.fixture
def no_process_left():
    """Fail a test that leaves a process behind, and end that process."""
    before = our_processes()
    yield
    limit = time.monotonic() + 2
    while (left := our_processes().keys() - before.keys()) and time.monotonic() < limit:
        time.sleep(0.05)
    commands = [our_processes()[pid].cmdline() for pid in left]
    for pid in left:
        os.kill(pid, 9)
    assert not left, f"left running: {commands}"


@pytest.fixture
def one_thread():
    """On a busy machine two threads wait for each other longer than they compute."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
