"""The fork server's life, with a small program in its place: it starts within some milliseconds."""

import contextlib
import json
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import multiprocessing.util
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from small_ranks import Child

from ddp_helpers.ranks import fork_server

EXECUTABLE = os.fsencode(sys.executable)  # as multiprocessing has it
# writes down how it was started, then says that it is ready, and stays
SERVER = """
import json, os, signal, socket, sys
names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "GLIBC_TUNABLES")
told = {name: os.environ.get(name) for name in names}
told["session"] = os.getsid(0) == os.getpid()
told["blocked"] = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, [])
told["name"] = os.environ.get("DDP_HELPERS_READY")
with open(sys.argv[1] + ".new", "w") as file:
    json.dump(told, file)
os.rename(sys.argv[1] + ".new", sys.argv[1])
if sys.argv[2] == "ready":
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as call:
        call.connect("\\0" + told["name"])
if sys.argv[2] != "ends":
    signal.alarm(60)  # if the test itself is killed
    signal.pause()
"""


class Server:
    """What multiprocessing keeps of its server."""

    def __init__(self, told):
        self.told = told
        self.habit = "ready"
        self.starts = 0
        self.preloaded = None
        self.forget()

    def forget(self):
        self._lock = threading.Lock()
        self._forkserver_pid = self._forkserver_address = self._forkserver_alive_fd = None

    def ensure_running(self):
        self.starts += 1
        arguments = [EXECUTABLE, "-I", "-S", "-c", SERVER, str(self.told), self.habit]
        self._forkserver_pid = multiprocessing.util.spawnv_passfds(EXECUTABLE, arguments, ())

    def end(self):
        if self._forkserver_pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._forkserver_pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._forkserver_pid, 0)

    def heard(self):
        limit = time.monotonic() + 30
        while not self.told.exists():
            assert time.monotonic() < limit
            time.sleep(0.001)
        return json.loads(self.told.read_text())


@pytest.fixture
def server(monkeypatch, tmp_path):
    one = Server(tmp_path / "told.json")
    monkeypatch.setattr(multiprocessing.forkserver, "_forkserver", one)
    monkeypatch.setattr(multiprocessing.forkserver, "ensure_running", one.ensure_running)
    monkeypatch.setattr(
        multiprocessing.forkserver,
        "set_forkserver_preload",
        lambda names: setattr(one, "preloaded", names),
    )
    monkeypatch.setattr(multiprocessing.resource_tracker, "ensure_running", lambda: None)
    monkeypatch.setattr(fork_server, "_listener", None)
    monkeypatch.setattr(fork_server, "_started_pid", None)
    monkeypatch.setattr(fork_server, "_started_with", {})
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    yield one
    one.end()
    if fork_server._listener is not None:
        fork_server._listener.close()


def test_it_starts_with_torch_and_says_when_it_is_ready(server, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    fork_server.warm_up()
    assert os.environ["OMP_NUM_THREADS"] == "7"  # only the server gets another number
    assert "MKL_NUM_THREADS" not in os.environ
    assert fork_server.READY not in os.environ
    assert server.preloaded == ["ddp_helpers.ranks.preload"]
    assert fork_server.wait_until_ready(60)
    told = server.heard()
    name = told.pop("name")
    assert re.fullmatch(rf"ddp_helpers-ready-{os.getpid()}-[0-9a-f]{{32}}", name)
    assert told == {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "GLIBC_TUNABLES": fork_server.HUGE_PAGES,
        "session": True,  # a kernel that is killed does not take it along
        "blocked": True,  # a Ctrl-C must not strike while it loads
    }
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    started = time.monotonic()
    assert fork_server.wait_until_ready(60)  # known by now
    assert time.monotonic() - started < 5
    with pytest.raises(OSError, match="refused"):
        call(name)  # nobody listens any more


def call(name):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as link:
        link.connect("\0" + name)


def test_one_that_runs_is_not_started_again(server):
    for _ in range(3):
        fork_server.warm_up()
    assert server.starts == 1
    assert fork_server.wait_until_ready(60)


def test_one_that_still_loads_at_the_limit(server):
    server.habit = "loads"
    fork_server.warm_up()
    started = time.monotonic()
    assert not fork_server.wait_until_ready(0.02)
    assert 0.02 <= time.monotonic() - started < 20


def test_one_that_ended_instead(server):
    server.habit = "ends"
    fork_server.warm_up()
    with pytest.raises(RuntimeError) as caught:
        fork_server.wait_until_ready(60)
    assert str(caught.value) == fork_server.ENDED


def test_a_stranger_that_calls_is_not_the_server(server):
    server.habit = "loads"
    fork_server.warm_up()
    call(server.heard()["name"])
    assert not fork_server.wait_until_ready(0.02)


def test_somebody_elses_server_tells_nobody(server):
    server.habit = "loads"
    server.ensure_running()
    fork_server.warm_up()
    assert server.starts == 1
    assert fork_server.wait_until_ready(0)


def test_a_server_of_somebody_else_after_ours(server):
    server.habit = "loads"
    fork_server.warm_up()
    ours = server._forkserver_pid
    server._forkserver_pid = os.getpid()
    assert fork_server.wait_until_ready(0)
    server._forkserver_pid = ours


def test_another_thread_may_have_heard_it_first(server, monkeypatch):
    server.habit = "loads"
    fork_server.warm_up()
    chosen = select.select

    def closed_meanwhile(files, *args):
        fork_server._listener.close()
        fork_server._listener = None
        return chosen(files, *args)

    monkeypatch.setattr(select, "select", closed_meanwhile)
    assert fork_server.wait_until_ready(60)


def test_what_the_reader_has_tuned_stands(server, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=2")
    fork_server.warm_up()
    assert server.heard()["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=2"
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=2"


def test_what_the_reader_has_tuned_besides_stands_too(server, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.pthread.rseq=0")
    fork_server.warm_up()
    assert server.heard()["GLIBC_TUNABLES"] == f"glibc.pthread.rseq=0:{fork_server.HUGE_PAGES}"


# ---- one that has loaded torch under other variables


def warmed_up(server):
    fork_server.warm_up()
    server.heard()
    server._forkserver_alive_fd = os.open(os.devnull, os.O_RDONLY)
    server._forkserver_address = "/no/such/listener"


@pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "TORCH_LOGS", "MKL_DYNAMIC"])
def test_one_that_has_read_other_variables_is_stale(server, monkeypatch, name):
    monkeypatch.setenv(name, "before")
    warmed_up(server)
    assert not fork_server.is_stale()
    for other in ("OMP_NUM_THREADS", "MINE", "TORCH_DISTRIBUTED_DEBUG"):
        monkeypatch.setenv(other, "9")
    assert not fork_server.is_stale()
    monkeypatch.setenv(name, "now")
    assert fork_server.is_stale()
    monkeypatch.delenv(name)
    assert fork_server.is_stale()
    before = server._forkserver_pid
    fork_server.end()
    assert server._forkserver_pid is None
    with pytest.raises(ChildProcessError):
        os.waitpid(before, os.WNOHANG)  # no zombie
    fork_server.warm_up()
    assert not fork_server.is_stale()


def test_one_that_ranks_run_under_stays(server, monkeypatch):
    server.habit = "loads"
    warmed_up(server)
    monkeypatch.setattr(fork_server, "LONGEST_END", 0.05)
    monkeypatch.setattr(fork_server, "has_children", lambda pid: True)
    pid = server._forkserver_pid
    fork_server.end()
    assert server._forkserver_pid == pid
    assert not fork_server.has_ended(pid)


def test_who_has_children():
    child = Child(lambda: time.sleep(60))
    assert fork_server.has_children(os.getpid())
    assert not fork_server.has_children(child.pid)
    child.end()
    assert fork_server.has_children(child.pid)  # nobody knows


def test_somebody_elses_server_is_never_stale(server, monkeypatch):
    server.habit = "loads"
    server.ensure_running()
    monkeypatch.setenv("OMP_WAIT_POLICY", "now")
    assert not fork_server.is_stale()


# ---- one that was killed


@pytest.fixture
def killed(server, tmp_path):
    """A server that was killed, and what is left of it."""
    child = Child(lambda: None)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    child.exitcode = 0  # it is not ours any more
    address = tmp_path / "listener"
    address.write_text("")
    reader, writer = os.pipe()
    server._forkserver_pid, server._forkserver_alive_fd = child.pid, writer
    server._forkserver_address = str(address)
    yield child.pid, reader, address
    os.close(reader)
    child.close()


def test_a_killed_one_is_buried(killed, server):
    pid, alive, address = killed
    fork_server._listen()
    fork_server.tidy_up()
    with pytest.raises(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)  # no zombie
    assert os.read(alive, 1) == b""  # its pipe is closed
    assert not address.exists()
    left = (server._forkserver_pid, server._forkserver_address, server._forkserver_alive_fd)
    assert left == (None, None, None)
    assert fork_server._listener is None


def test_a_killed_one_without_a_socket_is_buried_too(killed, server):
    killed[2].unlink()
    fork_server.tidy_up()
    assert server._forkserver_pid is None


def test_a_killed_one_is_replaced(killed, server):
    fork_server.warm_up()
    assert server.starts == 1
    assert server._forkserver_pid != killed[0]
    assert fork_server.wait_until_ready(60)


def test_one_that_lives_is_left_alone(server):
    server.habit = "loads"
    fork_server.warm_up()
    pid, listener = server._forkserver_pid, fork_server._listener
    fork_server.tidy_up()
    assert (server._forkserver_pid, fork_server._listener) == (pid, listener)
    assert not fork_server.has_ended(pid)


def test_without_a_server_there_is_nothing_to_do(server):
    fork_server.tidy_up()
    assert server._forkserver_pid is None


def test_who_has_ended():
    child = Child(lambda: None)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert fork_server.has_ended(child.pid) is True
    assert fork_server.has_ended(child.pid) is True  # asking leaves the exit code where it is
    child.join()
    assert child.exitcode == 0
    assert fork_server.has_ended(os.getppid()) is False  # no child of ours
    child.end()


# ---- multiprocessing's other helper


def test_the_tracker_starts_outside_of_the_kernels_group(monkeypatch):
    seen = []

    def start():
        reader, writer = os.pipe()
        code = "import os, sys; os.write(int(sys.argv[1]), b'%d' % os.getsid(0))"
        arguments = [EXECUTABLE, "-I", "-S", "-c", code, str(writer)]
        pid = multiprocessing.util.spawnv_passfds(EXECUTABLE, arguments, (writer,))
        os.waitpid(pid, 0)
        seen.append((pid, int(os.read(reader, 20))))
        os.close(reader)
        os.close(writer)

    before = multiprocessing.util.spawnv_passfds
    monkeypatch.setattr(multiprocessing.resource_tracker, "ensure_running", start)
    fork_server.start_resource_tracker()
    ((pid, session),) = seen
    assert session == pid
    assert multiprocessing.util.spawnv_passfds is before


IN_A_KERNEL = """
import subprocess, sys, types

def popen(*args, **options):
    sys.exit("too late" if "ddp_helpers.ranks.session" in sys.modules else 3)

subprocess.Popen = popen
shell = types.SimpleNamespace(kernel="a kernel", register_magic_function=lambda *names: None)
sys.modules["IPython"] = types.SimpleNamespace(get_ipython=lambda: shell)
import ddp_helpers
"""


def test_in_a_kernel_it_starts_before_the_rest_is_imported():
    environment = {name: value for name, value in os.environ.items() if name != fork_server.WARM_UP}
    done = subprocess.run(
        [sys.executable, "-c", IN_A_KERNEL], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 3, done.stderr
