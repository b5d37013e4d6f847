"""launch(hosts=[...]): two hosts with a real sshd, and two nodes of a real Slurm."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import psutil
import pytest
import torch
from slurm_cluster import Cluster, missing_programs, slurm_cluster
from ssh_hosts import SshHosts, ssh_hosts, why_no_hosts

from ddp_helpers.cluster.host import Running

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshHosts]:
    if reason := why_no_hosts():
        pytest.skip(reason)
    with ssh_hosts(tmp_path_factory.mktemp("ssh")) as hosts:
        yield hosts


@pytest.fixture
def hosts(shared: SshHosts) -> Iterator[SshHosts]:
    """After each test nothing may run on either host."""
    yield shared
    shared.check_nothing_left()


NOTEBOOK = """
import sys, nbformat
from nbclient import NotebookClient
book = nbformat.read(sys.argv[1], 4)
NotebookClient(book, timeout=100, kernel_name="python3", allow_errors=True).execute()
nbformat.write(book, sys.argv[1])
"""
HEAD = """import os
from ddp_helpers import launch, process_group, report

TWO = {"hosts": ["a", "b"], "nprocs_per_host": 2}"""
TRAIN = """def train(lr):
    import torch
    with process_group() as pg:
        torch.manual_seed(0)
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        x = torch.randn(64, 4)
        for step in range(5):
            optimizer.zero_grad()
            loss = (model(x[pg.rank :: 4]) - x[pg.rank :: 4].sum(1, keepdim=True)).square().mean()
            loss.backward()
            optimizer.step()
            report(step=step + 1, loss=loss.item())
        print("trained on", os.uname().nodename, pg.local_rank)
        return os.uname().nodename, model.module.weight.flatten().tolist()


launch(train, args=(0.1,), live=True, **TWO).values"""
BROKEN = """import torch.distributed as dist

def broken():
    with process_group() as pg:
        print("here", pg.rank)
        dist.barrier()
        if pg.rank == 3:
            raise ValueError("the digits ran out")
        dist.barrier()

launch(broken, **TWO)"""


def trained_alone() -> list[float]:
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(64, 4)
    for _ in range(5):
        optimizer.zero_grad()
        (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
    return model.weight.flatten().tolist()


def test_a_training_and_a_failure_from_a_notebook(hosts: SshHosts, tmp_path: Path) -> None:
    file = tmp_path / "two.ipynb"
    cells = map(nbformat.v4.new_code_cell, (HEAD, TRAIN, BROKEN))
    nbformat.write(nbformat.v4.new_notebook(cells=list(cells)), file)
    done = hosts.launcher("-c", NOTEBOOK, file).end()
    assert done.code == 0, done.err
    _, trained, failed = (cell.outputs for cell in nbformat.read(file, 4).cells)

    values = eval(trained[-1]["data"]["text/plain"])
    assert [name for name, _ in values] == ["first", "first", "second", "second"]
    assert all(weights == values[0][1] for _, weights in values)
    assert values[0][1] == pytest.approx(trained_alone(), abs=1e-6)
    panels = str(trained)
    for rank, line in enumerate(("first 0", "first 1", "second 0", "second 1")):
        assert re.search(rf"<b>rank {rank}</b> done, step \d, loss .*trained on {line}", panels)

    printed = "".join(each["text"] for each in failed if each.get("name") == "stdout")
    assert {f"[rank {rank}] here {rank}" for rank in range(4)} <= {*printed.splitlines()}
    (error,) = (each for each in failed if each.output_type == "error")
    report = error["evalue"].splitlines()
    assert report[:3] == [
        "rank 3 on host b failed: ValueError: the digits ran out",
        "  at cell In[3], line 8, in broken",
        '    raise ValueError("the digits ran out")',
    ]
    assert re.search("ranks? 0.* on host a", report[3]), report


WAITS = """
import time
import torch.distributed as dist
from ddp_helpers import process_group

def main():
    with process_group() as pg:
        dist.barrier()
        print("waiting", flush=True)
        if pg.rank == 0:
            time.sleep(200)
        dist.barrier()
"""


@pytest.fixture
def waiting(hosts: SshHosts) -> tuple[Running, psutil.Process]:
    """A run of the command in a terminal, whose four ranks wait; and its launcher."""
    (hosts.a.folder / "waits.py").write_text(WAITS)
    os.makedirs(hosts.a.folder, exist_ok=True)
    words = "-m ddp_helpers run waits.py:main --hosts a,b --nprocs-per-host 2".split()
    run = hosts.launcher(*words)
    for rank in range(4):
        run.wait_for(f"[rank {rank}] waiting")
    (launcher,) = [
        process
        for process in hosts.a.processes()
        if process.name() != "nsenter" and process.cmdline()[-7:] == words[-7:]
    ]
    return run, launcher


def test_ctrl_c_ends_the_ranks_of_both(waiting: tuple[Running, psutil.Process]) -> None:
    run, launcher = waiting
    launcher.send_signal(signal.SIGINT)
    done = run.end(30)
    assert done.code != 0
    assert "stopped after" in done.err
    assert re.search(r"rank 0 on host a was at .*waits.py, line 11, in main", done.err), done.err
    assert re.search(r"rank 3 on host b waited in barrier at .*waits.py, line 12", done.err)


def test_a_host_that_is_killed_is_named_in_bounded_time(
    hosts: SshHosts, waiting: tuple[Running, psutil.Process]
) -> None:
    run, _ = waiting
    killed_at = time.monotonic()
    hosts.b.pull_the_plug()
    done = run.end(60)
    for folder in (hosts.folder / "tmp-second").glob("pymp-*"):
        shutil.rmtree(folder)  # as after a power cut
    hosts.start_sshd(hosts.b)
    assert time.monotonic() < killed_at + 25
    assert done.code != 0
    assert "ranks 2 and 3 on host b failed: HostLostError: host b was lost: ssh ended" in done.err
    assert "what to do: " in done.err


def test_nothing_outlives_a_launcher_that_is_killed(
    waiting: tuple[Running, psutil.Process],
) -> None:
    _, launcher = waiting
    launcher.kill()


UNFIT = """
import os, sys
from ddp_helpers import launch

def tell(hosts, python=sys.executable, **more):
    os.environ["DDP_HELPERS_PYTHON"] = python
    try:
        launch(print, hosts=hosts, nprocs_per_host=1, timeout=20, **more)
    except OSError as error:
        print(*str(error).splitlines(), "", sep="\\n")

tell(["silent", "stranger"])
tell(["a"], "/no/such/python")
tell(["a"], sys.argv[1])
tell(["a", "b"], sys.argv[2])
"""
BARE = """#!/bin/sh
exec {python} -S "$@"
"""
OTHER_TORCH = """#!{python}
import importlib.metadata as metadata, runpy, sys
known = metadata.version
metadata.version = lambda name: "1.0.0" if name == "torch" else known(name)
sys.argv = sys.argv[3:]
runpy.run_module("ddp_helpers.ranks.on_host", run_name="__main__")
"""


def test_hosts_that_are_unfit_are_named_with_the_way_out(hosts: SshHosts, tmp_path: Path) -> None:
    script, bare, other = (tmp_path / name for name in ("unfit.py", "bare", "other"))
    script.write_text(UNFIT)
    bare.write_text(BARE.format(python=sys.executable))
    other.write_text(OTHER_TORCH.format(python=sys.executable))
    for program in (bare, other):
        program.chmod(0o755)
    done = hosts.launcher(script, bare, other).end(60)
    assert done.code == 0, done.err
    silent, stranger, _, no_python, _, no_package, _, first, second = done.out.splitlines()[:-1]
    assert silent.startswith("host silent: ssh can't reach it (")
    assert "Connection refused" in silent
    assert "`ssh -o BatchMode=yes silent true` works" in silent
    assert "Permission denied (" in stranger
    assert no_python.startswith("host a: it can't run /no/such/python (")
    assert "DDP_HELPERS_PYTHON" in no_python
    assert no_package.startswith(f"host a: its Python ({bare}) says")
    assert "No module named" in no_package
    here = __import__("importlib.metadata").metadata.version("torch")
    for name, line in (("a", first), ("b", second)):
        assert line == (
            f"host {name}: torch is 1.0.0 there and {here} here: install the same version on all "
            "hosts"
        )


# ---- Slurm


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if missing := missing_programs():
        assert "CI" not in os.environ, f"no {missing}: .ci/run installs munge and slurm-wlm"
        pytest.skip(f"no {', '.join(missing)} here: apt install munge slurm-wlm")
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), "other") as running:
        yield running


ALLOCATED = """
import time
from ddp_helpers import launch, process_group

def late():
    import torch.distributed as dist
    with process_group() as pg:
        print("here", pg.rank, pg.local_rank, flush=True)
        dist.barrier()
        if pg.rank == 1:
            time.sleep(200)
        dist.barrier()

for hosts in (["nowhere"], "slurm"):
    try:
        launch(late, hosts=hosts, nprocs_per_host=2, timeout=2)
    except Exception as error:
        print(error)
"""


def test_in_an_allocation_srun_reaches_its_nodes(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(ALLOCATED)
    before = {process.pid for process in cluster.processes()}
    words = ["salloc", "--quiet", "--nodes=2", "--ntasks-per-node=1", sys.executable, "late.py"]
    done = subprocess.run(
        words, cwd=tmp_path, env=cluster.environment, capture_output=True, text=True, timeout=120
    )
    assert 'hosts has "nowhere", which is not of this Slurm allocation (' in done.stdout
    for rank in range(4):
        assert f"[rank {rank}] here {rank} {rank % 2}\n" in done.stdout, done
    assert "the ranks did not end within 2 s, and were ended" in done.stdout
    assert re.search(r"rank 1 on host \S+ was at .*late.py, line 11, in late", done.stdout)
    assert re.search(r"rank 2 on host \S+ waited in barrier at .*late.py", done.stdout)
    assert "not all ranks came" in done.stdout
    limit = time.monotonic() + 20
    while left := [each for each in cluster.processes() if each.pid not in before]:
        assert time.monotonic() < limit, left
        time.sleep(0.1)
