"""A rank from its first line to its last, in this process: only its end is held back."""

import contextlib
import ctypes
import faulthandler
import linecache
import multiprocessing
import multiprocessing.util
import os
import pickle
import random
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, replace

import numpy
import pytest
import torch
from small_ranks import Child, memory_file
from test_launched import is_alive

from ddp_helpers.evidence.records import Finding, Watched
from ddp_helpers.ranks import progress, travel, wire, worker
from ddp_helpers.ranks.messages import Job, Outcome, Report

CODE = "def run(x):\n    return x\n"


class Exited(BaseException):
    """In the place of the process's end."""


@dataclass
class Ran:
    outcome: Outcome
    code: int
    output: str
    stack: str
    messages: list
    lifeline: list
    """Closed, it tells that the launcher has ended."""

    @property
    def value(self):
        return pickle.loads(self.outcome.value)


@pytest.fixture
def as_before(monkeypatch, tmp_path):
    """Bring back all that a rank changes in its process."""
    environment, folder = dict(os.environ), os.getcwd()
    threads, state, numpys = (
        torch.get_num_threads(),
        torch.get_rng_state(),
        numpy.random.get_state(),
    )
    level = torch.distributed.get_debug_level()
    method = multiprocessing.get_start_method(allow_none=True)
    config = multiprocessing.current_process()._config
    kept = dict(config)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    handler = signal.getsignal(wire.STACK_SIGNAL)
    standard = [os.dup(number) for number in (1, 2)]
    for name in ("stdout", "stderr", "argv", "path"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    monkeypatch.setattr(linecache, "cache", dict(linecache.cache))
    monkeypatch.setattr(worker, "_calls_file", None)
    monkeypatch.setattr(multiprocessing.util, "get_temp_dir", multiprocessing.util.get_temp_dir)
    yield
    for number, saved in enumerate(standard, start=1):
        os.dup2(saved, number)
        os.close(saved)
    faulthandler.unregister(wire.STACK_SIGNAL)
    signal.signal(wire.STACK_SIGNAL, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    config.clear()
    config.update(kept)
    multiprocessing.set_start_method(method, force=True)
    torch.distributed.set_debug_level(level)
    torch.set_rng_state(state)
    numpy.random.set_state(numpys)
    torch.set_num_threads(threads)
    progress.connect(None)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def calls(monkeypatch, as_before):
    """What would touch more than this rank is only noted."""
    noted = []

    def note(name):
        return lambda *args: noted.append((name, *args))

    def exits(code):
        raise Exited(code)

    monkeypatch.setattr(os, "setsid", note("setsid"))
    monkeypatch.setattr(os, "_exit", exits)
    monkeypatch.setattr(multiprocessing.util, "_exit_function", note("children joined"))
    for name in ("keep_last_call", "mend_rendezvous", "mend_destroy_process_group"):
        monkeypatch.setattr(worker, name, note(name))
    return noted


@pytest.fixture
def group(monkeypatch):
    """The rank's process group, as far as the kernel is told: two others that sleep."""
    reader, writer = os.pipe()

    def main():
        os.setpgid(0, 0)
        own = os.fork()
        if own:
            os.write(writer, b"%d\n" % own)
        time.sleep(60)

    leader = Child(main)
    pids = [leader.pid, int(os.read(reader, 20))]
    monkeypatch.setattr(os, "getpgrp", lambda: leader.pid)
    yield pids
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    leader.join()
    os.close(reader)
    os.close(writer)


@pytest.fixture
def run(calls, group, tmp_path):
    """Run a function as rank 1 of 2."""
    lifelines = []

    def run_it(fn, *args, **options):
        job = {
            "function": fn if isinstance(fn, bytes) else travel.pack(fn, args, {}),
            "nprocs": 2,
            "env": dict(os.environ),
            "cwd": str(tmp_path),
            "argv": ["own", "--flag"],
            "threads": 1,
            "temporary": str(tmp_path),
        } | options
        files = [memory_file(pickle.dumps(Job(**job))), *(memory_file() for _ in range(3))]
        output, rank_output = os.pipe()
        lifeline, ours = os.pipe()
        lifelines.append(ours)
        listener, address = wire.listen(1)
        links = []

        def serve():
            link, _ = listener.accept()
            links.append(link)
            assert wire.number_of(link) == 1
            wire.send_files(link, wire.RankFiles(rank_output, lifeline, *files), 1)
            os.close(rank_output)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(Exited) as end:
            worker.main(1, address)
        thread.join()
        for standard in (1, 2):  # now nobody holds the pipe any more
            os.close(standard)
            os.open(os.devnull, os.O_WRONLY)
        with open(output, "rb") as pipe:
            printed = pipe.read().decode()
        (link,) = links
        link.setblocking(False)
        messages = []
        with contextlib.suppress(BlockingIOError):
            while message := link.recv(wire.LONGEST_MESSAGE):
                messages.append(message)
        link.close()
        listener.close()
        return Ran(
            wire.read_outcome(files[1]),
            end.value.args[0],
            printed,
            wire.read_whole(files[2]).decode(),
            messages,
            lifelines,
        )

    yield run_it
    for file in lifelines:
        os.close(file)


# ---- the whole way


def test_a_value_an_output_and_a_normal_end(run, calls):
    def fn(x):
        print("from rank", os.environ["RANK"])
        time.sleep(0.02)
        return [x]

    ran = run(fn, 3)
    assert ran.value == [3]
    assert (ran.outcome.error, ran.outcome.exit_code, ran.code) == (None, 0, 0)
    assert 0.02 <= ran.outcome.seconds < 20
    assert ran.outcome.findings == ()
    assert ran.output == "from rank 1\n"
    assert ran.messages == [wire.DONE]
    assert calls[0] == ("setsid",)
    assert calls[-1] == ("children joined",)
    assert {name for name, *_ in calls} >= {"mend_rendezvous", "mend_destroy_process_group"}
    (kept,) = [args for name, *args in calls if name == "keep_last_call"]
    assert os.fstat(kept[0]).st_size == 0


def test_a_launcher_that_is_gone(calls):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    with pytest.raises(Exited) as end:
        worker.main(1, "nobody listens here")
    assert end.value.args == (1,)
    assert signal.getsignal(wire.STACK_SIGNAL) is signal.SIG_IGN
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    assert calls == [("setsid",)]


def test_all_that_is_printed_arrives(run):
    def fn():
        libc = ctypes.CDLL(None)
        print("é \ud800")
        sys.stderr.write("to stderr\n")
        libc.puts(b"from C")
        os.write(2, b"written\n")
        libc.printf(b"no newline in C")
        sys.stdout.write(", none in Python")
        print(sys.stdout.encoding, sys.stderr.errors, file=sys.stderr)

    lines = run(fn).output
    for text in ("é \\ud800\n", "to stderr\n", "from C\n", "written\n", "no newline in C"):
        assert text in lines
    assert ", none in Python" in lines
    assert "utf-8 backslashreplace\n" in lines


def test_lines_arrive_while_it_runs(run):
    import fcntl
    import termios

    def fn():
        print("python")
        ctypes.CDLL(None).puts(b"c")
        waiting = ctypes.c_int()
        fcntl.ioctl(2, termios.FIONREAD, waiting)
        return waiting.value

    assert run(fn).value == len("python\nc\n")


def test_a_closed_output_is_no_error(run):
    def fn():
        sys.stdout.close()
        return 5

    assert run(fn).value == 5


def test_asked_for_its_stack_it_writes_it(run):
    def stands_here():
        signal.raise_signal(wire.STACK_SIGNAL)

    ran = run(stands_here)
    assert ran.stack.startswith("Stack (most recent call first):")  # of this thread only
    assert "stands_here" in ran.stack


def test_reports_go_through_its_link(run):
    ran = run(lambda: progress.report(step=2, total=2))
    assert wire.read_message(ran.messages[0]) == Report(2, 2)
    assert ran.messages[1:] == [wire.DONE]


def test_when_the_launcher_ends_the_whole_group_is_killed(run, group):
    ran = run(lambda: None)
    assert all(map(is_alive, group))
    os.close(ran.lifeline.pop())
    limit = time.monotonic() + 5
    while any(map(is_alive, group)):
        assert time.monotonic() < limit
        time.sleep(0.001)


# ---- ends


@pytest.mark.parametrize(
    ("stop", "exit_code", "code", "output"),
    [
        (lambda: sys.exit(), 0, 0, ""),
        (lambda: sys.exit(0), 0, 0, ""),
        (lambda: sys.exit(4), 4, 4, ""),
        (lambda: sys.exit(259), 259, 3, ""),
        (lambda: sys.exit("no data"), 1, 1, "no data\n"),
    ],
)
def test_sys_exit(run, stop, exit_code, code, output):
    ran = run(stop)
    assert (ran.outcome.exit_code, ran.code, ran.output) == (exit_code, code, output)
    if exit_code:
        assert ran.outcome.error.type_name == "SystemExit"
        assert ran.outcome.value is None
    else:
        assert ran.value is None
        assert ran.outcome.error is None


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_error(run, kind):
    def fails():
        raise kind("bad label")

    ran = run(fails, names={__file__: "cell In[7]"})
    assert (ran.outcome.value, ran.outcome.exit_code, ran.code) == (None, 1, 1)
    assert str(ran.outcome.error) == f"{kind.__name__}: bad label"
    assert ran.outcome.error.frames[-1].filename == "cell In[7]"
    assert ran.outcome.seconds >= 0


def test_sys_exit_is_named_as_the_reader_knows_it(run):
    ran = run(lambda: sys.exit(2), names={__file__: "cell In[7]"})
    assert ran.outcome.error.frames[-1].filename == "cell In[7]"


def test_a_value_that_cannot_leave(run):
    ran = run(threading.Lock)
    assert (ran.outcome.value, ran.outcome.exit_code, ran.code) == (None, 1, 1)
    assert (
        "returned a _thread.lock, which can't leave its rank (cannot" in ran.outcome.error.message
    )


def test_a_job_that_cannot_be_read(run):
    ran = run(b"no pickle")
    assert ran.outcome.error.type_name == "UnpicklingError"


# ---- what it finds there


def test_the_environment_of_a_rank(run):
    def fn():
        return dict(os.environ), os.getcwd(), sys.argv, torch.get_num_threads()

    env = {"COLOUR": "blue", "TORCH_DISTRIBUTED_DEBUG": "INFO"}
    environment, folder, argv, threads = run(fn, env=env, threads=2).value
    expected = {
        "RANK": "1",
        "LOCAL_RANK": "1",
        "ROLE_RANK": "1",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "ROLE_WORLD_SIZE": "2",
    }
    assert expected | env == {k: v for k, v in environment.items() if k in expected | env}
    assert "PATH" not in environment  # nothing of the fork server's own
    assert os.path.samefile(folder, os.getcwd())
    assert (argv, threads) == (["own", "--flag"], 2)
    assert torch.distributed.get_debug_level() == torch.distributed.DebugLevel.INFO


def test_who_a_rank_is():
    job = Job(b"", 8, {}, "", [], 1)
    assert worker.rank_environment(3, job) == {
        "RANK": "3",
        "LOCAL_RANK": "3",
        "ROLE_RANK": "3",
        "WORLD_SIZE": "8",
        "LOCAL_WORLD_SIZE": "8",
        "ROLE_WORLD_SIZE": "8",
    }
    on_the_second_host = replace(job, first_rank=8, world_size=16)
    assert worker.rank_environment(3, on_the_second_host) == {
        "RANK": "11",
        "LOCAL_RANK": "3",
        "ROLE_RANK": "11",
        "WORLD_SIZE": "16",
        "LOCAL_WORLD_SIZE": "8",
        "ROLE_WORLD_SIZE": "16",
    }


def test_loader_workers_start_as_under_torchrun(run):
    multiprocessing.set_start_method("spawn", force=True)
    assert run(lambda: multiprocessing.get_start_method(allow_none=True)).value is None


def test_a_traceback_can_quote_a_cell(run):
    def fn():
        linecache.checkcache()
        return linecache.getline("cell.py", 2)

    assert run(fn, sources={"cell.py": "first\nsecond\n"}).value == "second\n"


def test_a_rank_draws_its_own_numbers(run):
    def draw():
        import torch

        return torch.rand(1).item(), numpy.random.rand(), torch.initial_seed()

    drawn = []
    for _ in range(2):
        torch.manual_seed(7)
        numpy.random.seed(7)
        random.seed(7)
        drawn.append(run(draw).value)
    assert all(one != other for one, other in zip(*drawn, strict=True))


def test_without_numpy_nothing_is_missed(run, monkeypatch):
    monkeypatch.delitem(sys.modules, "numpy")
    assert run(len, "abc").value == 3


def test_where_sockets_go(run, tmp_path):
    shared = run(lambda: multiprocessing.util.get_temp_dir(), temporary=str(tmp_path)).value
    assert shared == str(tmp_path)


def test_a_spawned_rank_makes_its_own_folder_when_it_needs_one(run, tmp_path):
    def fn():
        before = os.path.exists(f"{folder}1")
        found = [multiprocessing.util.get_temp_dir() for _ in range(2)]
        return before, found, os.stat(found[0]).st_mode & 0o777

    folder = str(tmp_path / "pymp-x")
    before, found, mode = run(fn, temporary=folder, own_temporary=True).value
    assert not before
    assert found == [f"{folder}1"] * 2
    assert mode == 0o700
    assert multiprocessing.current_process()._config["tempdir"] == f"{folder}1"


class Session:
    findings = (Finding("kind", "cause", "advice"),)

    def watched(self):
        return Watched(2, 7)


@pytest.mark.parametrize("fails", [True, False])
def test_the_sanitizer_watches_if_it_is_asked(run, monkeypatch, fails):
    import ddp_helpers.sanitizer as sanitizer

    seen = []
    monkeypatch.setattr(sanitizer, "install", lambda *args: seen.append(args) or Session())
    monkeypatch.setattr(sanitizer, "uninstall", lambda *args: seen.append(args))

    def fn():
        if fails:
            raise ValueError

    ran = run(fn, sanitize=5, ignore=("padded-evaluation",), names={"a": "b"})
    assert [finding.kind for finding in ran.outcome.findings] == ["kind"]
    assert ran.outcome.watched == Watched(2, 7)
    assert seen[0][0].every == 5
    assert seen[0][0].ignore == ("padded-evaluation",)
    assert seen[0][1] == {"a": "b"}
    assert len(seen[1]) == (2 if fails else 1)


# ---- one that stands by


def stands_by(monkeypatch, rehearse, word=b""):
    """What one writes, its exit code, and what it is called, if it stands by.

    Args:
        word: what a launch that takes it meanwhile says.
    """
    monkeypatch.setattr(worker, "rehearse", rehearse)
    monkeypatch.setattr(worker, "_calls_file", None)
    monkeypatch.setattr(worker, "keep_last_call", lambda file: None)
    monkeypatch.setattr(worker, "LONGEST_IDLE", 0.3)
    reader, writer = os.pipe()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def main():
        for standard in (1, 2):
            os.dup2(writer, standard)
        os.close(writer)
        worker.stand_by(theirs, {"TORCH_MINE": "1"})

    child = Child(main)
    os.close(writer)
    theirs.close()
    assert ours.recv(100) == wire.HERE
    if word:
        ours.send(word)
    seen = set()
    while child.pid and not os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        with contextlib.suppress(OSError), open(f"/proc/{child.pid}/comm") as file:
            seen.add(file.read().strip())
    child.join()
    ours.close()
    with open(reader) as pipe:
        return pipe.read(), child.exitcode, "ddp-standby" in seen


def test_a_rehearsal_is_not_seen_and_nobody_waits_for_ever(monkeypatch):
    def rehearse(variables, settle_in):
        assert variables == {"TORCH_MINE": "1"}
        print("in Python")
        ctypes.CDLL(None).puts(b"in C")
        os.write(2, b"by the system")

    assert stands_by(monkeypatch, rehearse) == ("", 0, True)


def test_one_that_can_not_rehearse_is_gone(monkeypatch):
    def rehearse(*_):
        raise ValueError("nobody is to read this")

    text, code, _ = stands_by(monkeypatch, rehearse)
    assert (text, code) == ("", 0)


def test_one_that_can_not_rehearse_serves_a_launch_that_has_it_already(monkeypatch):
    def rehearse(*_):
        time.sleep(0.2)
        raise ValueError("nobody is to read this")

    served = lambda link: os._exit(int(link.recv(100)))
    monkeypatch.setattr(worker, "_serve", served)
    _, code, _ = stands_by(monkeypatch, rehearse, b"7")
    assert code == 7
