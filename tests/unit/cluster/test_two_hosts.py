"""Two hosts on one machine: what runs where, what the cable carries, and that nothing stays."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ddp_helpers.cluster import namespaces
from ddp_helpers.cluster.two_hosts import TwoHosts, why_no_namespaces

ROOT = Path(__file__).parents[3]
KINDS = ("namespaces", "loopback")
pytestmark = pytest.mark.usefixtures("no_process_left")


@pytest.fixture(scope="module")
def reason() -> str:
    return why_no_namespaces()


@pytest.fixture(params=KINDS)
def hosts(request: pytest.FixtureRequest, reason: str) -> Iterator[TwoHosts]:
    if request.param == "namespaces" and reason:
        pytest.skip(reason)
    with TwoHosts(kind=request.param) as pair:
        yield pair


@pytest.fixture
def cabled(reason: str) -> Iterator[TwoHosts]:
    if reason:
        pytest.skip(reason)
    with TwoHosts(kind="namespaces") as pair:
        yield pair


def python(code: str) -> tuple[str, str, str]:
    return (sys.executable, "-S", "-c", code)


SLEEP = python("import time; print('up', flush=True); time.sleep(99)")
SERVER = """
import socket
server = socket.create_server(({address!r}, {port}))
print("up", flush=True)
line = server.accept()[0]
print(len(line.makefile("rb").read()))
"""
CLIENT = "import socket; socket.create_connection(({address!r}, {port})).sendall(bytes({size}))"
IN_GROUP = "import subprocess, time; subprocess.Popen(['sleep', '98'], start_new_session=True)"


def send(hosts: TwoHosts, size: int) -> float:
    """From the second to the first; the seconds that it took."""
    words = {"address": hosts.first.address, "port": hosts.first.port, "size": size}
    server = hosts.first.start(*python(SERVER.format(**words)))
    server.wait_for("up", 20)
    begin = time.monotonic()
    assert hosts.second.start(*python(CLIENT.format(**words))).end(20).code == 0
    assert int(server.end(20).out.split()[1]) == size
    return time.monotonic() - begin


def test_each_runs_in_its_folder_and_they_reach_each_other(hosts: TwoHosts) -> None:
    for number, host in enumerate(hosts):
        done = host.start("sh", "-c", "pwd; echo $WORD >&2; exit 3", WORD="so").end(20)
        assert (done.code, done.out.strip(), done.err) == (3, str(host.folder), "so\n")
        assert host.node_rank == number
        temporary = host.start(*python("import tempfile; print(tempfile.mkdtemp())")).end(20).out
        assert host.folder in Path(temporary.strip()).parents, "what it leaves goes with the host"
    assert hosts.first.folder != hosts.second.folder
    send(hosts, 1000)


def test_a_namespace_has_its_own_name_card_and_numbers(cabled: TwoHosts) -> None:
    for host, other in zip(cabled, reversed(cabled.hosts), strict=True):
        script = f"hostname; echo $$; ls /sys/class/net; kill -0 {os.getpid()} && echo seen"
        lines = host.start("sh", "-c", script).end(20).out.split()
        assert (lines[0], sorted(lines[2:])) == (host.name, ["eth0", "lo"])
        assert int(lines[1]) < 100, "process numbers of this machine"
        said = json.loads(host.namespace.run("ip", "-json", "addr", "show", "eth0"))
        assert host.address in str(said)
        assert other.address not in str(said)
    assert "joined by a cable" in cabled.note


def test_the_cable_carries_what_is_sent_and_counts_it(cabled: TwoHosts) -> None:
    before = [host.sent_bytes() for host in cabled]
    send(cabled, 2_000_000)
    first, second = (host.sent_bytes() - was for host, was in zip(cabled, before, strict=True))
    assert 2_000_000 < second < 2_200_000
    assert first < 200_000, "only acknowledgements"


def test_a_cable_that_is_limited_takes_the_time_that_it_should(cabled: TwoHosts) -> None:
    cabled.second.limit(20)  # 2.5 MB a second, and 25 kB at once
    assert send(cabled, 2_000_000) > 0.7
    assert "tbf" in cabled.second.namespace.run("tc", "qdisc", "show", "dev", "eth0")
    cabled.second.limit(None)
    assert "tbf" not in cabled.second.namespace.run("tc", "qdisc", "show", "dev", "eth0")
    with pytest.raises(ValueError, match="mbit=0: expected a rate above 0"):
        cabled.second.limit(0)


def test_the_plug_ends_all_of_one_host_and_nothing_of_the_other(hosts: TwoHosts) -> None:
    first, second = hosts
    runs = [host.start(*SLEEP) for host in hosts]
    for run in runs:
        run.wait_for("up", 20)
    second.start(*python(IN_GROUP)).end(20)  # a child that outlives its parent, in its own session
    assert any("sleep" in process.name() for process in second.processes())
    second.pull_the_plug()
    assert second.processes() == []
    assert runs[1].end(1).code == -signal.SIGKILL
    assert runs[0].process.poll() is None
    assert second.start("true").end(20).code == 0, "it can be used again"
    assert first.processes()


def test_close_leaves_no_process_no_folder_and_is_done_once(hosts: TwoHosts) -> None:
    runs = [host.start(*SLEEP) for host in hosts]
    runs[0].wait_for("up", 20)
    folder = hosts.first.folder.parent
    networks = [host.namespace.pid for host in hosts if host.namespace]
    hosts.close()
    hosts.close()
    assert all(run.process.poll() is not None for run in runs)
    assert not folder.exists()
    assert not any(psutil.pid_exists(pid) for pid in networks)
    assert not list(Path(tempfile.gettempdir()).glob("hosts-*"))
    with pytest.raises(RuntimeError, match=r"host 'first' has ended: first run hosts = TwoHosts"):
        hosts.first.start(*SLEEP)
    assert not folder.exists()


OWNER = """
import sys, time
from ddp_helpers.cluster import TwoHosts
with TwoHosts(kind={kind!r}) as hosts:
    for host in hosts:
        host.start(*{command!r}).wait_for("up", 20)
        print(*[process.pid for process in host.processes()], flush=True)
    print(hosts.first.folder.parent, flush=True)
    time.sleep(99)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_outlives_its_owner(kind: str, number: int, reason: str, tmp_path: Path) -> None:
    if kind == "namespaces" and reason:
        pytest.skip(reason)
    code = OWNER.format(kind=kind, command=SLEEP)
    command = [sys.executable, "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    env = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, **pipes, cwd=ROOT, env=env) as owner:
        lines = [owner.stdout.readline().strip() for _ in range(3)]
        pids = [int(word) for word in " ".join(lines[:2]).split()]
        assert len(pids) >= 2
        owner.send_signal(number)
        owner.wait(20)
    limit = time.monotonic() + 5
    while any(map(alive, pids)) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not any(map(alive, pids))
    if number != signal.SIGKILL:  # a killed owner can't tidy up its files
        assert not any(tmp_path.iterdir())


def alive(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


def test_what_is_waited_for_has_a_limit_and_a_text(hosts: TwoHosts) -> None:
    sleeping = hosts.first.start(*SLEEP)
    with pytest.raises(TimeoutError, match="no 'never' within 0.2 s"):
        sleeping.wait_for("never", 0.2)
    with pytest.raises(TimeoutError, match=r"still runs after 0.2 s: (up)?"):
        sleeping.end(0.2)
    failing = hosts.first.start("sh", "-c", "echo why >&2; exit 1")
    with pytest.raises(RuntimeError, match="ended without 'never': why"):
        failing.wait_for("never", 20)


def test_loopback_says_so_and_cannot_be_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDP_HELPERS_TWO_HOSTS", "loopback")
    with TwoHosts() as hosts:
        assert "on the loopback" in hosts.note
        assert not hosts.joined_by_cable
        with pytest.raises(OSError, match="not to be slowed down"):
            hosts.first.limit(100)
    with pytest.raises(ValueError, match="kind='cable': expected namespaces, loopback"):
        TwoHosts(kind="cable")


def test_without_the_right_to_it_loopback_is_taken_and_the_reason_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(namespaces, "INIT", "echo not permitted >&2; exit 1")
    with TwoHosts() as hosts:
        assert "without a cable (not permitted)" in hosts.note
        assert hosts.first.start("true").end(20).code == 0
    with pytest.raises(namespaces.NoNamespaces, match="not permitted"):
        TwoHosts(kind="namespaces")
    assert why_no_namespaces() == "not permitted"


def test_a_user_namespace_does_it_without_root(reason: str, tmp_path: Path) -> None:
    if reason or os.geteuid() != 0:
        pytest.skip(reason or "only root can become somebody else")
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
    first, second = subprocess.run(
        [sys.executable, "-c", script + NOBODY], capture_output=True, text=True, timeout=60
    ).stdout.split("\n")[:2]
    if "Operation not permitted" in second or "denied" in second:
        pytest.skip(f"this system allows no user namespaces: {second}")
    assert (first, second) == ("65534", "two network namespaces, joined by a cable (veth)")


NOBODY = """
import os
from ddp_helpers.cluster import two_hosts  # first load, then change: its files may be closed
os.setgroups([]); os.setgid(65534); os.setuid(65534); os.chdir("/"); os.environ["HOME"] = "/"
with two_hosts.TwoHosts() as hosts:
    print(os.geteuid())
    print(hosts.note)
    assert hosts.first.start("ip", "addr").end(20).out.count("10.99.0.1") == 1
"""
