"""The torchrun line, and each check of the preflight on loopback."""

import shlex
import socket
import subprocess
import threading

import pytest

from ddp_helpers.cluster import network as cluster
from ddp_helpers.environment.facts import free_port

MASTER = {"nnodes": 2, "master_addr": "first", "nproc_per_node": 8}


def test_the_line_of_each_machine():
    lines = [
        cluster.torchrun_line("train.py", ["--lr", "0.1"], node_rank=n, **MASTER) for n in (0, 1)
    ]
    assert lines[0] == (
        "torchrun --nproc-per-node=8 --nnodes=2 --node-rank=0 --master-addr=first "
        "--master-port=29500 train.py --lr 0.1"
    )
    assert lines[1] == lines[0].replace("--node-rank=0", "--node-rank=1")


def test_a_card_and_odd_words_survive_the_shell():
    line = cluster.torchrun_line(
        "my train.py", ["--name", "a b; c"], node_rank=1, interface="ib0", **MASTER
    )
    words = shlex.split(line)
    assert words[:3] == ["GLOO_SOCKET_IFNAME=ib0", "NCCL_SOCKET_IFNAME==ib0", "torchrun"]
    assert words[-3:] == ["my train.py", "--name", "a b; c"]


def test_one_machine_needs_no_meeting_place():
    line = cluster.torchrun_line(
        "train.py", nnodes=1, node_rank=0, nproc_per_node="gpu", master_addr="first"
    )
    assert line == "torchrun --nproc-per-node=gpu --standalone train.py"


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"nnodes": 0}, "--nnodes is 0: expected 1 or more"),
        ({"node_rank": 2}, "--node-rank is 2 with --nnodes 2: expected 0 to 1"),
        ({"node_rank": -1}, "--node-rank is -1"),
        ({"nproc_per_node": "all"}, "--nproc-per-node is all: expected 1 or more, or gpu"),
        ({"nproc_per_node": 0}, "--nproc-per-node is 0"),
        ({"master_port": 65536}, "--master-port is 65536: expected 1 to 65535"),
    ],
)
def test_numbers_that_cannot_be(wrong, text):
    with pytest.raises(ValueError, match=text):
        cluster.torchrun_line("train.py", **({"node_rank": 0} | MASTER | wrong))


def test_names():
    assert str(cluster.resolve("127.0.0.1", 1)) == "ok: name: 127.0.0.1 is 127.0.0.1"
    loopback = cluster.resolve("127.0.0.1", 2)
    assert not loopback.ok
    assert "every machine takes for itself" in str(loopback)
    unknown = str(cluster.resolve("no.such.invalid", 2))
    assert unknown.startswith("error: the name no.such.invalid can't be resolved")
    assert "/etc/hosts" in unknown


def test_the_machine_that_listens_must_be_this_one():
    elsewhere = cluster.way_to("192.0.2.1", 2, 0, "first")
    assert "--node-rank 0 but first (192.0.2.1) is not this machine" in str(elsewhere) or (
        "no way to 192.0.2.1" in str(elsewhere)
    )
    assert not elsewhere.ok
    assert cluster.way_to("127.0.0.1", 1, 0, "localhost").ok


def test_cards():
    cards = {"lo": ["127.0.0.1"], "eth0": ["10.0.0.5", "10.0.0.6"]}
    assert cluster.card_of("10.0.0.6", cards) == "eth0"
    assert cluster.card_of("10.0.0.7", cards) == "an unknown card"
    assert cluster.interface_to("127.0.0.1") is None
    assert cluster.interface_to("no.such.invalid") is None


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("GLOO_SOCKET_IFNAME", "eth7", ["is eth7, but the cards here are lo, eth0"]),
        ("GLOO_SOCKET_IFNAME", "eth", ["is eth, but the cards"]),
        ("GLOO_SOCKET_IFNAME", "eth0,lo", ["is eth0,lo, and lo leads to no other machine"]),
        ("NCCL_SOCKET_IFNAME", "ib", ["NCCL_SOCKET_IFNAME is ib, but"]),
        ("NCCL_SOCKET_IFNAME", "=eth", ["is =eth, but"]),
    ],
)
def test_a_variable_that_names_a_wrong_card(monkeypatch, variable, value, words):
    monkeypatch.setenv(variable, value)
    (check,) = cluster.named_cards("eth0", "first", ["lo", "eth0"])
    assert not check.ok
    name = "eth0" if variable.startswith("GLOO") else "'=eth0'"
    for word in [*words, f"unset it, or give {name}, which leads to first"]:
        assert word in str(check)


def test_a_variable_that_takes_a_second_card(monkeypatch):
    """NCCL's names are beginnings of names, unless there is a = in front."""
    cards = ["lo", "eth1", "eth10", "eth2"]
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "eth1")
    (check,) = cluster.named_cards("eth1", "first", cards)
    assert str(check) == (
        "error: NCCL_SOCKET_IFNAME is eth1, and so takes eth10, too: give '=eth1', which is this "
        "card alone"
    )
    for right in ("=eth1", "eth2", "eth", "eth1,eth10", "^eth1"):
        monkeypatch.setenv("NCCL_SOCKET_IFNAME", right)
        assert cluster.named_cards("eth1", "first", cards) == []
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth1")  # gloo takes whole names
    assert cluster.named_cards("eth1", "first", cards) == []


def test_a_shell_hands_the_exact_name_on():
    line = cluster.torchrun_line("train.py", node_rank=0, interface="eth1", **MASTER)
    assert "NCCL_SOCKET_IFNAME='=eth1'" in line  # zsh takes a bare =eth1 for a program's path
    printed = line.replace("torchrun", "env ; :", 1)
    told = subprocess.run(["sh", "-c", printed], capture_output=True, text=True, check=True)
    words = told.stdout.splitlines()
    assert {"GLOO_SOCKET_IFNAME=eth1", "NCCL_SOCKET_IFNAME==eth1"} <= set(words)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("GLOO_SOCKET_IFNAME", ""),
        ("GLOO_SOCKET_IFNAME", "eth0"),
        *(("NCCL_SOCKET_IFNAME", value) for value in ("eth", "=eth0", "^docker,lo")),
    ],
)
def test_a_variable_that_names_a_right_card(monkeypatch, variable, value):
    monkeypatch.setenv(variable, value)
    assert cluster.named_cards("eth0", "first", ["lo", "eth0"]) == []


def test_a_port_that_is_taken():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        taken = str(cluster.port_is_free(port))
    assert taken.startswith(f"error: port {port} can't be listened on (Address already in use)")
    assert "another --master-port" in taken
    assert cluster.port_is_free(port).ok


def test_versions_and_clocks():
    mine = {"python": "3.12.1", "torch": "2.13.0", "nccl": "none"}
    assert cluster.compare(mine, dict(mine), "node 0").ok
    other = str(cluster.compare(mine, mine | {"torch": "2.12.0"}, "node 0"))
    assert other.startswith("error: torch is 2.13.0 here, 2.12.0 on node 0: install the same")
    assert cluster.clock(4.0, 0.1, "node 0").ok
    assert cluster.clock(-9.0, 5.0, "node 0").ok, "the question took too long to tell"
    assert "-9.00 s off" in str(cluster.clock(-9.0, 0.1, "node 0"))
    assert not cluster.clock(-9.0, 0.1, "node 0").ok


def test_three_machines_meet_and_compare():
    port, results = free_port(), {}

    def node(rank):
        results[rank] = cluster.meet(3, rank, "127.0.0.1", port, 30)

    threads = [threading.Thread(target=node, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(check.ok for checks in results.values() for check in checks), results
    assert [check.name for check in results[0]] == ["meeting", "versions", "versions"]
    assert [check.name for check in results[2]] == ["meeting", "versions", "clock"]
    assert abs(float(results[2][2].found.split("is ")[1].split()[0])) < 5


@pytest.mark.parametrize("rank", [0, 1])
def test_who_does_not_come_is_named_within_the_limit(rank):
    port = free_port()
    (check,) = cluster.meet(2, rank, "127.0.0.1", port, 1)
    assert not check.ok
    missing = "node 1 of 2 did not come" if rank == 0 else "did not answer"
    assert missing in str(check)
    assert f"127.0.0.1:{port} " in str(check) + " "
