"""launch() in real Jupyter kernels: several at once, stopped, restarted, killed."""

import os
import re
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import launch_contract
import nbformat
import pytest
from nbclient import NotebookClient

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
from soak_hosts import KernelHost

pytestmark = pytest.mark.timeout(240)
MOST_LINES = 20
RIGHT = [[0, 3.0], [1, 3.0]]
SUMS = "sums(2, 'forkserver')"  # a correct launch; the soak's text is each kernel's first cell
HANG = "launch(lambda: [time.sleep(0.01) for _ in range(10**6)], 2)"


@pytest.fixture(scope="module")
def five():
    """Five kernels, started at once; four tests kill one each."""
    with ThreadPoolExecutor(5) as pool:
        hosts = list(pool.map(lambda _: KernelHost(), range(5)))
    yield hosts
    for host in hosts:
        host.close()


@pytest.fixture
def kernel(five):
    """One of them that runs."""
    return next(host for host in five if host.manager.is_alive())


def until_ranks_run(host: KernelHost, ranks: int = 2) -> None:
    limit = time.monotonic() + 60
    while len(host.ranks()) < ranks:
        assert time.monotonic() < limit, "no ranks"
        time.sleep(0.02)
    time.sleep(0.3)


def next_launch_is_right(host: KernelHost) -> None:
    reply = host.run(f"values = {SUMS}", "[values, state()]")
    assert not reply.ename, reply
    assert reply.answer[0] == RIGHT
    assert host.left(True, reply.answer[1]["folder"]) == []


def test_five_kernels_launch_at_once(five):
    for host in five:
        host.start(f"values = [{SUMS} for _ in range(3)]", "values")
    for host in five:
        reply = host.reply(120)
        assert reply.answer == [RIGHT] * 3, reply


def test_the_stop_button_ends_the_ranks_and_the_next_launch_works(kernel):
    for _ in range(2):
        kernel.start(HANG)
        until_ranks_run(kernel)
        started = time.monotonic()
        kernel.manager.interrupt_kernel()
        reply = kernel.reply(60)
        assert reply.ename == "KeyboardInterrupt"
        assert time.monotonic() - started < 10
        next_launch_is_right(kernel)


def test_a_traceback_quotes_the_learners_cells(kernel):
    inner = "def check(label):\n    if label > 9:\n        raise ValueError(f'bad label {label}')"
    outer = "def train():\n    print('step 1')\n    check(11)"
    numbers = []
    for cell in (inner, outer):
        numbers.append(kernel.run(cell, "get_ipython().execution_count - 1").answer)
    reply = kernel.run("launch(train, 2)")
    lines = reply.evalue.splitlines()
    assert len(lines) <= MOST_LINES
    assert lines[0] == "ranks 0 and 1 failed: ValueError: bad label 11"
    assert re.fullmatch(rf"  at cell In\[{numbers[0]}\], line 3, in check", lines[1]), lines
    assert lines[2] == "    raise ValueError(f'bad label {label}')"
    shown = re.sub(r"\x1b\[[\d;]*m", "", reply.traceback)
    assert len(shown.splitlines()) <= MOST_LINES, shown
    assert "bad label 11" in "".join(shown.splitlines()[:3])
    full = kernel.run("import sys", "sys.last_value.result[0].traceback").answer
    for number, line, name, source in (
        (numbers[1], 3, "train", "check(11)"),
        (numbers[0], 3, "check", "raise ValueError"),
    ):
        assert f"cell In[{number}], line {line}, in {name}\n    {source}" in full, full


def test_a_hang_names_the_cells_line(kernel):
    cell = (
        "def wait():\n"
        "    with process_group() as pg:\n"
        "        if pg.rank == 0:\n"
        "            dist.barrier()\n"
        "        while True:\n"
        "            time.sleep(0.01)\n"
        "launch(wait, 2, timeout=4)"
    )
    reply = kernel.run(cell)
    assert reply.ename == "LaunchTimeoutError"
    assert re.search(r"rank 0 waited in barrier at cell In\[\d+\], line 4, in wait", reply.evalue)
    assert "dist.barrier()" in reply.evalue
    assert re.search(r"rank 1 was at cell In\[\d+\], line [56], in wait", reply.evalue)


def test_the_stop_button_says_where_each_rank_stood(kernel):
    cell = (
        "def crossed():\n"
        "    with process_group() as pg:\n"
        "        if pg.rank == 0:\n"
        "            dist.all_reduce(torch.ones(1))\n"
        "        dist.barrier()\n"
        "launch(crossed, 2)"
    )
    kernel.start(cell)
    until_ranks_run(kernel)
    time.sleep(2)  # for the ranks to come to their lines
    kernel.manager.interrupt_kernel()
    reply = kernel.reply(60)
    assert reply.ename == "KeyboardInterrupt"
    for rank, call, line in ((0, "all_reduce", 4), (1, "barrier", 5)):
        place = rf"rank {rank} waited in {call} at cell In\[\d+\], line {line}, in crossed"
        assert re.search(place, reply.evalue), reply.evalue
    shown = re.sub(r"\x1b\[[\d;]*m", "", reply.traceback)
    assert shown.startswith("KeyboardInterrupt: stopped after ")
    assert "ddp_helpers" not in shown
    next_launch_is_right(kernel)


def test_a_restart_during_a_launch_leaves_nothing(kernel):
    kernel.start(HANG)
    until_ranks_run(kernel)
    before = set(kernel.processes())
    kernel.restart(now=True)
    next_launch_is_right(kernel)
    assert not before & set(kernel.processes())


@pytest.mark.parametrize("group", [False, True], ids=["the kernel", "its process group"])
def test_a_killed_kernel_leaves_nothing(kernel, group):
    kernel.start(HANG)
    until_ranks_run(kernel)
    kernel.kill(signal.SIGKILL, group)
    assert kernel.reply(60).died
    assert kernel.left(False, "") == []


def until_ranks_stand_by(host: KernelHost, number: int = 2) -> list[int]:
    limit = time.monotonic() + 60
    while len(ready := host.standby()) < number:
        assert time.monotonic() < limit, f"{ready} stand by"
        time.sleep(0.02)
    return ready


def test_a_launch_takes_the_ranks_that_stand_by(kernel):
    next_launch_is_right(kernel)
    ready = until_ranks_stand_by(kernel)
    pids = kernel.run("values = launch(os.getpid, 2).values", "values").answer
    assert set(pids) <= set(ready)
    assert not set(until_ranks_stand_by(kernel)) & set(pids)


def test_a_restart_at_rest_leaves_nobody_standing_by(kernel):
    next_launch_is_right(kernel)
    ready = until_ranks_stand_by(kernel)
    kernel.restart(now=False)
    next_launch_is_right(kernel)
    assert not set(ready) & set(kernel.processes())


@pytest.mark.parametrize("group", [False, True], ids=["the kernel", "its process group"])
def test_a_kernel_killed_at_rest_leaves_nobody_standing_by(kernel, group):
    next_launch_is_right(kernel)
    until_ranks_stand_by(kernel)
    kernel.kill(signal.SIGKILL, group)
    assert kernel.dies()
    assert kernel.left(False, "") == []


def notebook(*cells: str):
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    return book


def execute(book, tmp_path):
    """Run all cells in a fresh kernel; raises when one fails."""
    os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
    client = NotebookClient(
        book, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    return book


def test_the_contract_and_the_live_view_in_an_executed_notebook(tmp_path):
    live = (
        "def train():\n"
        "    for step in range(5):\n"
        "        report(step=step + 1, total=5, loss=1 / (step + 1))\n"
        "        time.sleep(0.1)\n"
        "    print('the end of', os.environ['RANK'])\n"
        "result = launch(train, 2, live=True)"
    )
    calls = [f"{check.__name__}()" for check in launch_contract.CHECKS]
    text = Path(launch_contract.__file__).read_text()
    book = execute(notebook(text, live, *calls), tmp_path)
    outputs = [output for output in book.cells[1].outputs if "text/html" in output.get("data", {})]
    assert len(outputs) == 1
    html = outputs[0].data["text/html"]
    for rank in range(2):
        assert f"<b>rank {rank}</b> done, step 5 of 5, loss 0.2" in html
        assert f"the end of {rank}" in html
    assert html.count("<svg") == 2


@pytest.mark.parametrize("check", launch_contract.CHECKS, ids=lambda check: check.__name__)
@pytest.mark.usefixtures("no_process_left")
def test_the_contract(check):
    check()
