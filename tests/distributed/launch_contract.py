"""What launch() promises, in plain asserts: the same text runs under pytest and in notebooks.

    python -m pytest tests/distributed/launch_contract.py

`test_launch_in_kernels.py` runs it under pytest and nbclient, and `test_launch_in_jupyterlab.py`
in a browser: one cell holds the whole text, and each further cell calls one of its functions.
"""

import os
import signal
import subprocess
import sys
import time

import torch
import torch.distributed as dist

from ddp_helpers import LaunchError, LaunchTimeoutError, launch, process_group, report


def total_of_ranks():
    with process_group() as pg:
        total = torch.tensor([pg.rank + 1.0])
        dist.all_reduce(total)
    return total.item()


def failure_of(fn, kind=LaunchError, **options):
    """Launch fn on two ranks, which must fail; the lines of the report, and the result."""
    try:
        launch(fn, 2, **options)
    except kind as error:
        lines = str(error).splitlines()
        assert len(lines) <= 20, lines
        return lines, error.result
    raise AssertionError("launch() returned, though a rank failed")


def test_values_come_in_rank_order():
    factor = 10
    result = launch(lambda add: factor * int(os.environ["RANK"]) + add, 3, args=(5,))
    assert result.values == [5, 15, 25]
    assert launch(total_of_ranks, 2).values == [3.0, 3.0]


def test_output_comes_from_each_rank():
    def speak():
        print("hello from", os.environ["RANK"])
        subprocess.run(["echo", "from a child"], check=True)
        sys.stdout.write("no newline")

    result = launch(speak, 2)
    for rank in result.ranks:
        expected = [f"hello from {rank.rank}", "from a child", "no newline"]
        assert rank.output.splitlines() == expected


def test_the_rank_that_raised_is_the_cause():
    def train():
        with process_group() as pg:
            if pg.rank == 1:
                raise ValueError("bad label 11")
            dist.all_reduce(torch.ones(1))

    lines, result = failure_of(train)
    assert lines[0] == "rank 1 failed: ValueError: bad label 11"
    assert lines[2].strip() == 'raise ValueError("bad label 11")'
    assert "bad label 11" in result[1].traceback
    assert launch(total_of_ranks, 2).values == [3.0, 3.0]


def test_a_rank_that_is_killed_is_named():
    def train():
        if os.environ["RANK"] == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    lines, _ = failure_of(train)
    assert lines[0].startswith("rank 0 was ended by SIGKILL")
    assert launch(total_of_ranks, 2).values == [3.0, 3.0]


def test_a_hang_names_both_lines():
    def train():
        with process_group() as pg:
            dist.barrier()
            if pg.rank == 0:
                dist.all_reduce(torch.ones(1))
            else:
                time.sleep(60)

    lines, result = failure_of(train, LaunchTimeoutError, timeout=6)
    text = "\n".join(lines)
    assert "rank 0 waited in all_reduce" in text
    assert "dist.all_reduce(torch.ones(1))" in text
    assert "rank 1 was at" in text
    assert "time.sleep(60)" in text
    assert not any(rank.ok for rank in result.ranks)
    assert launch(total_of_ranks, 2).values == [3.0, 3.0]


def test_a_live_launch_gives_the_same():
    def train():
        for step in range(3):
            report(step=step + 1, total=3, loss=1 / (step + 1))
        return total_of_ranks()

    assert launch(train, 2, live=True).values == [3.0, 3.0]


CHECKS = [check for name, check in list(globals().items()) if name.startswith("test_")]
