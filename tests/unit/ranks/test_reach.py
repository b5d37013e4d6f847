"""Which hosts a launch takes, how it reaches them, and what they say; no host is called here."""

import os
import pickle
import re
import subprocess
import sys
from dataclasses import replace

import pytest

from ddp_helpers.environment.cards import variables_for
from ddp_helpers.evidence.records import RankError, RankResult
from ddp_helpers.ranks import LaunchError, conclusion, host_task, host_wire, launch, reach
from ddp_helpers.ranks.host_wire import Left, Printed, Reader
from ddp_helpers.ranks.hosts import HostsRun
from ddp_helpers.ranks.reach import Host, command_for
from ddp_helpers.ranks.supervisor import Ending
from ddp_helpers.ranks.travel import dump_value


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"nprocs_per_host": 2}, "nprocs_per_host=2 without hosts="),
        ({"hosts": ["a"]}, "without nprocs_per_host="),
        ({"hosts": ["a"], "nprocs_per_host": 2, "nprocs": 4}, "nprocs=4 together with hosts="),
        ({"hosts": ["a"], "nprocs_per_host": 0}, "nprocs_per_host=0: expected a whole number"),
        ({"hosts": ["a"], "nprocs_per_host": 2.0}, "nprocs_per_host=2.0: expected a whole number"),
        ({"hosts": [], "nprocs_per_host": 2}, "hosts=[]: expected names"),
        ({"hosts": "a,b", "nprocs_per_host": 2}, "hosts='a,b': expected names"),
        ({"hosts": 2, "nprocs_per_host": 2}, "hosts=2: expected names"),
        ({"hosts": ["a", 7], "nprocs_per_host": 2}, "hosts has 7: expected the name"),
        ({"hosts": ["a b"], "nprocs_per_host": 2}, "hosts has 'a b': expected the name"),
        ({"hosts": ["-oProxyCommand=x"], "nprocs_per_host": 2}, "hosts has '-oProxyCommand=x'"),
        ({"hosts": ["a", "b", "a"], "nprocs_per_host": 2}, 'hosts has "a" twice'),
        ({"hosts": "slurm", "nprocs_per_host": 2}, "this is no allocation of Slurm"),
        ({"hosts": ["a"], "nprocs_per_host": 1, "post_mortem": True}, "one machine only"),
    ],
)
def test_hosts_that_can_not_be(given, words, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    with pytest.raises(ValueError, match=re.escape(words)):
        launch(print, **given)


def test_in_an_allocation_its_nodes_are_asked_for(monkeypatch, tmp_path):
    for name, text in {"srun": "", "scontrol": "[ $3 = n[1-2] ] && echo n1 && echo n2"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "n[1-2]")
    assert reach.checked_hosts("slurm", 2, None) == ["n1", "n2"]
    assert reach.checked_hosts(["n2"], 2, None) == ["n2"]
    with pytest.raises(
        ValueError, match='"n3", which is not of this Slurm allocation \\(n1, n2\\)'
    ):
        reach.checked_hosts(["n1", "n3"], 2, None)


def test_the_command(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/a folder")
    monkeypatch.delenv(reach.PYTHON, raising=False)
    *ssh, host, words = command_for("b", ("first", "spawn"), by_srun=False)
    assert (ssh[0], host) == ("ssh", "b")
    assert "-oBatchMode=yes" in ssh
    shown = subprocess.run(
        ["sh", "-c", words.replace("exec env", "printf '%s\\n'")], text=True, capture_output=True
    )
    module = [sys.executable, "-P", "-m", "ddp_helpers.ranks.on_host", "first", "spawn"]
    assert shown.stdout.splitlines() == ["PYTHONPATH=/a folder", *module]
    monkeypatch.setenv(reach.PYTHON, "/opt/python")
    srun = command_for("b", ("first", "spawn"), by_srun=True)
    assert srun[0] == "srun"
    assert srun[-7:] == ["--nodelist=b", "/opt/python", *module[1:]]


def test_messages_come_whole_from_pieces_and_between_lines_of_others():
    sent = [Printed(3, ["a\n", "b" * 300]), host_wire.Beat()]
    data = b"Welcome!\n" + b"  ".join(map(host_wire.encode, sent)) + b"bye\n"
    for size in (1, 7, len(data)):
        reader = Reader()
        pieces = [data[at : at + size] for at in range(0, len(data), size)]
        assert [word for piece in pieces for word in reader.read(piece)] == sent


class Unloadable:
    def __reduce__(self):
        return int, ("no number",)


@pytest.fixture
def run(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    task = host_task.make_task(print, b"", 2, 9.0, None, "forkserver", None)
    return HostsRun(["a", "b"], task, None)


def results(run: HostsRun) -> tuple[RankResult, ...]:
    return tuple(rank for host in run._hosts for rank in run._results(host))


def test_results_come_together_with_their_hosts(run):
    a, b = run._hosts
    values = [RankResult(rank, dump_value(rank * 1.5), exit_code=0) for rank in range(3)]
    a.left = Left(tuple(values[:2]), Ending.ALL_ENDED)
    b.left = Left(
        (values[2], RankResult(3, pickle.dumps(Unloadable()), exit_code=0)), a.left.ending
    )
    found = results(run)
    assert [rank.value for rank in found] == [0.0, 1.5, 3.0, None]
    assert [rank.host for rank in found] == ["a", "a", "b", "b"]
    assert [rank.ok for rank in found] == [True, True, True, False]
    assert (found[3].error.type_name, found[3].exit_code) == ("ValueError", 1)


def test_which_of_two_hosts_failed_first_is_told_on_one_clock(run):
    a, b = run._hosts
    a.clock_ahead, b.clock_ahead = 1000.0, -5.0

    def failed(rank, text, at):
        return RankResult(rank, exit_code=1, error=RankError("ValueError", text, "", at=at))

    a.left = Left((failed(0, "second", 1052.0), RankResult(1, exit_code=None)), Ending.FAILED)
    b.left = Left((RankResult(2, exit_code=0), failed(3, "first", 46.0)), Ending.FAILED)
    run.ending = run._how_they_ended()
    with pytest.raises(LaunchError) as caught:
        conclusion.conclude(run, results(run), echo=False)
    lines = str(caught.value).splitlines()
    assert lines[:2] == [
        "rank 3 on host b failed: ValueError: first",
        "also, rank 0 on host a failed: ValueError: second",
    ]


def test_a_host_that_was_lost_is_the_cause(run):
    a, b = run._hosts
    gone = RankError(
        "RuntimeError",
        "[/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:5",
        "",
        at=1.0,
    )
    a.left = Left(tuple(RankResult(n, exit_code=1, error=gone) for n in (0, 1)), Ending.FAILED)
    b.lose("ssh ended: Connection to b closed by remote host.")
    b.lose("another reason comes too late")
    run.ending = run._how_they_ended()
    with pytest.raises(LaunchError) as caught:
        conclusion.conclude(run, results(run), echo=False)
    lines = str(caught.value).splitlines()
    assert lines[0] == (
        "ranks 2 and 3 on host b failed: HostLostError: host b was lost: ssh ended: Connection to "
        "b closed by remote host."
    )
    assert lines[1] == "ranks 0 and 1 on host a then lost the connection"
    assert "`ssh b uptime`" in lines[-1]


def test_what_a_host_makes_of_its_task(run, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # it goes to another folder, and changes sys.path
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "mine")
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(host_task, "own_address", lambda address: "10.0.0.2")
    monkeypatch.setattr(host_task, "cards", lambda: {"lo": ["127.0.0.1"], "eth7": ["10.0.0.2"]})
    here = tmp_path / "mine"
    here.mkdir()
    task = replace(run.task, node_rank=1, address="10.0.0.1", port=5, path=(str(here), "/not/here"))
    job, note = host_task.job_of(replace(task, cwd="/not/here", env={"MORE": "1"}))
    assert note == f"there is no folder /not/here, so its ranks are in {tmp_path}"
    assert (job.first_rank, job.nprocs, job.world_size) == (2, 2, 4)
    told = {name: job.env[name] for name in ("MASTER_ADDR", "MASTER_PORT", "GROUP_RANK", "MORE")}
    assert told == {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "5", "GROUP_RANK": "1", "MORE": "1"}
    assert (job.env["GLOO_SOCKET_IFNAME"], job.env["NCCL_SOCKET_IFNAME"]) == ("eth7", "mine")
    assert sys.path[0] == str(here)
    assert "/not/here" not in sys.path
    with pytest.raises(OSError, match=r"there is no file train\.py in "):
        host_task.job_of(replace(task, script="train.py"))


def test_a_card_is_named_whole():
    assert variables_for("eth1") == {"GLOO_SOCKET_IFNAME": "eth1", "NCCL_SOCKET_IFNAME": "=eth1"}


def test_a_host_that_never_speaks_is_lost(monkeypatch):
    monkeypatch.setattr(reach, "LONGEST_END", 0.1)
    host = Host("a", 0, [sys.executable, "-c", "import time; time.sleep(60)"])
    host.start()
    try:
        assert not host.is_over
    finally:
        host.close()
    assert host._process.returncode is not None


def test_the_last_words_of_a_way_that_ends_are_told():
    host = Host("a", 0, ["sh", "-c", "echo first >&2; echo last words >&2; exit 3"])
    host.start()
    assert host.hear() == []
    host.close()
    assert host.lost == "sh ended: last words"
