"""Runs of real ranks, drawn: what they called, who waited, and what is missing."""

import os
import time
from pathlib import Path

import nbformat
import pytest
import torch
import torch.distributed as dist
from nbclient import NotebookClient

from ddp_helpers import LaunchError, LaunchTimeoutError, launch, process_group
from ddp_helpers.plots.lanes import draw_run

pytestmark = pytest.mark.timeout(120)


def names(result, rank):
    return [call.name for call in result[rank].calls]


def exchange():
    with process_group("gloo") as group:
        pair = dist.new_group([0, 1])
        x = torch.ones(4)
        if group.rank == 2:
            time.sleep(0.3)
        dist.all_reduce(x)
        work = dist.all_reduce(x, async_op=True)
        if group.rank == 0:
            dist.send(x, 1)
        elif group.rank == 1:
            dist.recv(x, 0)
        work.wait()
        if group.rank < 2:
            dist.broadcast(x, 1, group=pair)


def test_every_exchange_is_drawn_and_meets_its_own(tmp_path):
    file = tmp_path / "run.svg"
    result = launch(exchange, 3, draw=file)
    first, second, third = result.ranks
    assert names(result, 2) == [
        "init_process_group",
        "all_reduce",
        "all_reduce",
        "clean-up of the group",
    ]
    early, late = (next(c for c in r.calls if c.name == "all_reduce") for r in (first, third))
    assert late.began - early.began > 0.2
    assert early.done >= late.began
    (sent,) = [call for call in first.calls if call.name == "send"]
    (got,) = [call for call in second.calls if call.name == "recv"]
    assert (sent.bytes, sent.peer, got.peer) == (16, 1, 0)
    (told,) = [call for call in second.calls if call.name == "broadcast"]
    assert (told.peer, told.group) == (1, (0, 1))
    assert all(call.done is not None for rank in result.ranks for call in rank.calls)
    assert {Path(call.frame.filename) for call in first.calls} == {Path(__file__)}
    picture = file.read_text()
    assert "send to 1, 16 B" in picture
    assert "missing" not in picture


def forgets():
    with process_group("gloo") as group:
        dist.barrier()
        if group.rank == 0:
            dist.all_reduce(torch.ones(2))
        else:
            time.sleep(60)


def test_of_a_hang_the_missing_call_is_drawn(tmp_path):
    with pytest.raises(LaunchTimeoutError) as caught:
        launch(forgets, 2, timeout=25, draw=str(tmp_path / "run.svg"))
    _, told = draw_run(caught.value.result.ranks)
    assert told.endswith("Missing: all_reduce of rank 1.")
    assert "all_reduce is missing" in (tmp_path / "run.svg").read_text()


def raises():
    with process_group("gloo") as group:
        if group.rank == 1:
            raise KeyError("lost")
        dist.all_reduce(torch.ones(2))


def test_of_a_failure_too(tmp_path):
    with pytest.raises(LaunchError) as caught:
        launch(raises, 2, draw=tmp_path / "run.svg")
    _, told = draw_run(caught.value.result.ranks)
    assert "raised KeyError" in told
    assert told.endswith("Missing: all_reduce of rank 1.")


def test_without_draw_no_call_is_kept():
    assert launch(raises_nothing, 2).ranks[0].calls == ()


def raises_nothing():
    with process_group("gloo"):
        dist.barrier()


@pytest.mark.parametrize("draw", [True, "run.png", "no/such/folder/run.svg", 3])
def test_what_cannot_be_drawn_to_is_refused_before_anything_runs(draw):
    with pytest.raises(ValueError, match="draw="):
        launch(os.getpid, 1, draw=draw)


def test_in_a_notebook_a_run_and_an_answer_are_drawn():
    cells = [
        "import torch, torch.distributed as dist\nfrom ddp_helpers import launch\n"
        "from ddp_helpers.exercises import check\n"
        "from ddp_helpers import LaunchError",
        "def mean_of_parts(part):\n    total = part.sum()\n    if dist.get_rank():\n"
        "        dist.all_reduce(total)\n    return total\n_ = check('01.4', mean_of_parts)",
        "def hello():\n    return 1\nlaunch(hello, 2, draw=True).values",
        "def mean_of_parts(part):\n"
        "    both = torch.stack([part.sum(), torch.tensor(1. * len(part))])\n"
        "    dist.all_reduce(both)\n    return both[0] / both[1]\n_ = check('01.4', mean_of_parts)",
    ]
    book = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))
    NotebookClient(book, timeout=120, kernel_name="python3").execute()
    shown = [out for cell in book.cells for out in cell.outputs if "data" in out]
    answer, run, values = [out["data"] for out in shown]
    assert "Missing: all_reduce of rank 0." in answer["text/plain"]
    assert answer["text/html"].count("<svg") == 2
    assert "cell In[2], line 4" in answer["text/html"]
    assert "e01_4" not in answer["text/html"]  # the solution's lines are not told
    assert run["text/plain"].count("no exchange; returned.") == 2
    assert values["text/plain"] == "[1, 1]"
