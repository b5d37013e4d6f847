"""Ranks that stay, in real Jupyter kernels: their magics, and that nothing stays behind."""

import re
import signal
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from nbclient import NotebookClient

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from soak_hosts import KernelHost

pytestmark = pytest.mark.timeout(180)


def test_magics_in_a_notebook():
    cells = [
        "from ddp_helpers import Session, launch\nranks = Session(2)\nscale = 10",
        "def setup():\n    global model\n    model = torch.full((2,), float(rank))\n"
        "    return scale\nranks.run(setup).values",
        "%%ranks\nmodel = model + 1\nmodel",
        "%%rank 1\nprint('only', rank)",
        "%%rank 7\nrank",
        "%%ranks\ndist.barrier()\nif rank == 1:\n    raise KeyError('lost')",
        "%%ranks\nrank",
        "with launch.session(nprocs=1) as ranks:\n    print(ranks.run(lambda: 7).values)",
    ]
    book = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    NotebookClient(book, timeout=120, kernel_name="python3", allow_errors=True).execute()

    def told(number):
        outputs = book.cells[number - 1].outputs
        return "".join(output.get("text", output.get("evalue", "")) for output in outputs)

    assert book.cells[1].outputs[0]["data"]["text/plain"] == "[10, 10]"
    assert sorted(told(3).splitlines()) == [
        "[rank 0] tensor([1., 1.])",
        "[rank 1] tensor([2., 2.])",
    ]
    assert told(4) == "[rank 1] only 1\n"
    assert told(5) == "rank 7: this session has the ranks 0 to 1"
    report = told(6).splitlines()
    assert report[0] == "rank 1 failed: KeyError: 'lost'"
    assert re.fullmatch(r"  at cell In\[6\], line 4, in <module>", report[1]), report
    assert report[2].strip() == "raise KeyError('lost')"
    assert "this session is over (rank 1 failed)" in told(7)
    assert told(8) == "[7]\n"


@pytest.fixture(scope="module")
def kernel():
    host = KernelHost()
    yield host
    host.close()


def until_ranks_run(host):
    limit = time.monotonic() + 60
    while len(host.ranks()) < 2:
        assert time.monotonic() < limit, "no ranks"
        time.sleep(0.02)


BEGIN = "from ddp_helpers import Session; ranks = Session(2)"


def test_the_stop_button_ends_the_session_and_the_next_one_works(kernel):
    assert kernel.run(BEGIN, "ranks.run(lambda: 7).values").answer == [7, 7]
    kernel.start("ranks.run(lambda: [time.sleep(0.01) for _ in range(10**6)])")
    time.sleep(1)
    kernel.manager.interrupt_kernel()
    reply = kernel.reply(60)
    assert reply.ename == "KeyboardInterrupt"
    assert re.search(r"rank 1 was at cell In\[\d+\], line 1", reply.evalue), reply.evalue
    assert "the session is over" in reply.evalue
    reply = kernel.run("ranks = Session(2); ranks.close()", "[ranks.over, state()]")
    assert reply.answer[0] == "it was closed"
    assert kernel.left(True, reply.answer[1]["folder"]) == []


def test_a_restart_ends_the_ranks(kernel):
    kernel.run(BEGIN)
    until_ranks_run(kernel)
    before = [process.pid for process in kernel.ranks()]
    kernel.restart(now=False)
    limit = time.monotonic() + 20
    while any(map(psutil.pid_exists, before)):
        assert time.monotonic() < limit
        time.sleep(0.05)


@pytest.mark.parametrize("group", [False, True], ids=["the kernel", "its process group"])
def test_a_killed_kernel_leaves_nothing(group):
    host = KernelHost()
    try:
        host.run(BEGIN)
        until_ranks_run(host)
        host.kill(signal.SIGKILL, group)
        host.dies()
        assert host.left(False, "") == []
    finally:
        host.close()
