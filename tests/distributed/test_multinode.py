"""Two machines train together: over a real cable, with torchrun and torchrun_multinode.sh."""

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from starters import TEMPLATES, of_300_digits, run_script

from ddp_helpers import launch
from ddp_helpers.cluster.host import Host
from ddp_helpers.cluster.two_hosts import TwoHosts, why_no_namespaces

STARTER = TEMPLATES / "torchrun_multinode.sh"
PATH = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
Pair = tuple[Host, Host]
pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("no_process_left")]


@pytest.fixture(scope="module")
def reason() -> str:
    return why_no_namespaces()


@pytest.fixture
def nodes(tmp_path: Path, reason: str) -> Iterator[Pair]:
    if reason:
        pytest.skip(reason)
    with TwoHosts(tmp_path, "namespaces") as pair:
        for node in pair:
            of_300_digits(node.folder / "train.py")
            of_300_digits(node.folder / "slow.py", seconds_per_step=0.3)
        yield pair.hosts


def start(node: Host, script: str, *flags: object, head: str = "10.99.0.1", **variables: str):
    flags = ("--run-folder", node.folder.parent / "run", "--log-every", 1, *flags)  # all see it
    return node.start(
        *("bash", STARTER, f"{head}:29500", 2, 2, script, *flags), PATH=PATH, **variables
    )


def test_two_nodes_train_to_the_end(nodes: Pair) -> None:
    runs = [start(node, "train.py", "--epochs", 1) for node in reversed(nodes)]
    second, first = [run.end() for run in runs]
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert re.search(r"best accuracy 0\.\d+ in epoch 1", first.out)
    assert "epoch" not in second.out
    assert (nodes[0].folder.parent / "run" / "best.pt").exists()


def test_a_node_killed_in_mid_run_comes_back_to_the_same_weights(
    nodes: Pair, tmp_path: Path
) -> None:
    flags = ("--epochs", 2, "--batch-size-per-rank", 8, "--save-every", 3)
    runs = [start(node, "slow.py", *flags) for node in nodes]
    runs[0].wait_for("epoch 1  step 4")
    nodes[1].pull_the_plug()
    survivor = runs[0].end(60)
    assert survivor.code not in (0, None)
    saved = torch.load(nodes[0].folder.parent / "run" / "newest.pt")["at"]["step"]
    assert not nodes[0].processes(), "ranks of the other node outlived it"

    first, second = [run.end() for run in [start(node, "train.py", *flags) for node in nodes]]
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert f"after step {saved}" in first.out
    ours = torch.load(nodes[0].folder.parent / "run" / "newest.pt")

    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    words = [str(nodes[0].folder / "train.py"), *flags]
    again = launch(run_script, 4, args=([*map(str, words)], str(undisturbed)), echo=False)
    assert "goes on" not in again[0].output
    theirs = torch.load(undisturbed / "run" / "newest.pt")
    assert ours["at"]["step"] == theirs["at"]["step"]
    assert all(torch.equal(ours["model"][name], theirs["model"][name]) for name in ours["model"])


def errors(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("error: ")]


def test_a_node_that_never_comes_is_named_within_the_limit(nodes: Pair) -> None:
    done = start(nodes[0], "train.py", JOIN_SECONDS="4").end(60)
    assert done.code not in (0, None)
    (line,) = errors(done.err)
    assert "1 of 2 machines" in line, done.err
    assert "4 s" in line
    assert "10.99.0.1:29500" in line
    assert "Traceback" not in done.err
    assert done.seconds < 40


def test_a_head_that_never_comes_is_named_within_the_limit(nodes: Pair) -> None:
    done = start(nodes[1], "train.py", JOIN_SECONDS="4").end(60)
    assert done.code not in (0, None)
    (line,) = errors(done.err)
    assert "10.99.0.1:29500 did not call back within 4 s" in line, done.err
    assert "Traceback" not in done.err
    assert done.seconds < 40


@pytest.mark.parametrize(
    ("head", "variables", "words"),
    [
        ("10.99.0.1", {"GLOO_SOCKET_IFNAME": "eth7"}, ["eth7", "unset it", "10.99.0.1"]),
        ("10.99.0.1", {"GLOO_SOCKET_IFNAME": "lo"}, ["lo", "no other machine", "unset it"]),
        ("10.99.0.1", {"GLOO_SOCKET_IFNAME": "eth"}, ["GLOO_SOCKET_IFNAME is eth,", "unset it"]),
        ("10.99.0.1", {"NCCL_SOCKET_IFNAME": "=eth"}, ["NCCL_SOCKET_IFNAME is =eth,", "unset it"]),
        ("10.99.0.1", {"NCCL_SOCKET_IFNAME": "=lo"}, ["is =lo,", "no other machine"]),
        ("10.77.0.1", {}, ["no route to 10.77.0.1"]),
        ("no.such.invalid", {}, ["no.such.invalid", "can't be resolved"]),
        ("127.0.0.1", {}, ["127.0.0.1", "every machine", "the others see"]),
    ],
    ids=["card", "loopback card", "prefix", "nccl", "nccl loopback", "route", "name", "loopback"],
)
def test_a_wrong_network_is_one_line_at_once(
    nodes: Pair, head: str, variables: dict[str, str], words: list[str]
) -> None:
    done = start(nodes[1], "train.py", head=head, **variables).end(20)
    assert done.code == 2
    (line,) = done.err.splitlines()
    assert line.startswith("error: ")
    assert all(word in line for word in words), line


def test_two_lines_that_differ_are_told_apart(nodes: Pair) -> None:
    runs = [start(node, "train.py", RUN_ID=f"run{n}") for n, node in enumerate(nodes)]
    for run in runs:
        done = run.end(30)
        assert done.code not in (0, None)
        (line,) = errors(done.err)
        assert "run run0: 2 machines, 2 ranks each" in line
        assert "run run1: 2 machines, 2 ranks each" in line


def test_a_port_that_is_taken(nodes: Pair) -> None:
    server = "import socket, time; s = socket.create_server(('', 29500)); print('up', flush=True)"
    nodes[0].start(sys.executable, "-c", f"{server}; time.sleep(99)").wait_for("up")
    done = start(nodes[0], "train.py").end(20)
    (line,) = errors(done.err)
    assert "port 29500" in line
    assert "another one" in line


COMMAND = (sys.executable, "-m", "ddp_helpers")


def asked(node: Host, rank: int, command: str, *words: object):
    where = ("--nnodes", 2, "--node-rank", rank, "--master-addr", "10.99.0.1")
    return node.start(*COMMAND, command, *where, *words, PYTHONPATH=str(TEMPLATES.parents[1]))


def test_preflight_on_both_and_the_lines_that_it_writes(nodes: Pair) -> None:
    runs = [asked(node, rank, "preflight") for rank, node in enumerate(nodes)]
    for node, done in zip(nodes, [run.end(60) for run in runs], strict=True):
        assert (done.code, done.err) == (0, ""), done.out
        assert all(line.startswith("ok: ") for line in done.out.splitlines())
        assert f"GLOO_SOCKET_IFNAME={node.card}" in done.out
        assert "versions: as on node" in done.out
    assert "the clock of node 0 is" in done.out

    run = ("--run-folder", nodes[0].folder.parent / "run")  # one that both see
    flags = ("--nproc-per-node", 1, "train.py", "--", "--epochs", 1, *run)
    asked_for = [asked(node, rank, "torchrun", *flags) for rank, node in enumerate(nodes)]
    lines = [run.end(60).out.strip() for run in asked_for]
    assert [line.count(node.card) for node, line in zip(nodes, lines, strict=True)] == [2, 2]
    started = [n.start("bash", "-c", line, PATH=PATH) for n, line in zip(nodes, lines, strict=True)]
    first, second = [run.end() for run in started]
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert "best accuracy" in first.out
    assert torch.load(nodes[0].folder.parent / "run" / "newest.pt")["at"]["ranks"] == 2


def test_preflight_says_who_is_missing_in_one_line(nodes: Pair) -> None:
    runs = [
        asked(nodes[0], 0, "preflight", "--seconds", 2),
        nodes[1].start(
            *(*COMMAND, "preflight", "--node-rank", 1, "--master-addr", "10.77.0.1"),
            PYTHONPATH=str(TEMPLATES.parents[1]),
        ),
    ]
    alone, nowhere = [run.end(60) for run in runs]
    assert (alone.code, nowhere.code) == (1, 1)
    assert alone.err.startswith("error: node 1 of 2 did not come to 10.99.0.1:29500 within 2 s: ")
    assert nowhere.err.startswith("error: no way to 10.77.0.1 (Network is unreachable): ")
    assert alone.err.count("\n") == nowhere.err.count("\n") == 1
