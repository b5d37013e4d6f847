"""Ranks that stay: what they keep, how a session ends, and that nothing of it stays behind."""

import gc
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch
import torch.distributed as dist

from ddp_helpers import LaunchError, LaunchTimeoutError, Session, launch, process_group
from ddp_helpers.ranks import fork_server

pytestmark = [pytest.mark.usefixtures("no_process_left"), pytest.mark.timeout(180)]


def my_rank():
    return int(os.environ["RANK"])


def total():
    number = torch.tensor([my_rank() + 1.0])
    dist.all_reduce(number)
    return number.item()


def test_the_same_processes_and_their_group_stay():
    with Session(2, echo=False) as ranks:
        first = ranks.run(lambda: (os.getpid(), total())).values
        assert ranks.run(lambda: (os.getpid(), total())).values == first
        assert [number for _, number in first] == [3.0, 3.0]
        assert ranks.run(lambda x, y: x + y + my_rank(), (1,), {"y": 10}).values == [11, 12]
        assert ranks.run(my_rank, on=1).values == [None, 1]
        assert ranks.run(gc.isenabled).values == [True, True]  # off while its server loads torch
        assert launch(my_rank, 2, echo=False).values == [0, 1]  # beside it
    assert ranks.over == "it was closed"
    assert not any(psutil.pid_exists(pid) for pid, _ in first)


def test_a_function_for_launch_runs_in_the_sessions_group():
    def train():
        with process_group() as pg:
            dist.barrier()
            return pg.rank, pg.world_size

    with Session(2, echo=False) as ranks:
        for _ in range(2):
            assert ranks.run(train).values == [(0, 2), (1, 2)]


def test_cells_share_their_names_and_show_their_last_value():
    with Session(2, echo=False) as ranks:
        ranks.run_cell("x = torch.ones(2) * rank")
        ranks.run_cell("x += 5", on=1)
        shown = [rank.output for rank in ranks.run_cell("dist.all_reduce(x)\nx[0].item()").ranks]
        assert shown == ["6.0\n", "6.0\n"]
        with pytest.raises(SyntaxError):
            ranks.run_cell("x = = 1")
        assert ranks.run(my_rank).values == [0, 1]  # nothing had run


def test_a_failure_is_reported_and_ends_the_session():
    def fails():
        if my_rank() == 1:
            raise ValueError("bad label 11")
        dist.barrier()

    ranks = Session(2, echo=False)
    pids = ranks.run(os.getpid).values
    with pytest.raises(LaunchError) as caught:
        ranks.run(fails)
    lines = str(caught.value).splitlines()
    assert lines[0] == "rank 1 failed: ValueError: bad label 11"
    assert 'raise ValueError("bad label 11")' in lines[2]
    assert lines[-1] == "the session is over: `ranks = Session(2)` starts another"
    assert ranks.over == "rank 1 failed"
    with pytest.raises(RuntimeError, match=r"over \(rank 1 failed\): `ranks = Session\(2\)`"):
        ranks.run(my_rank)
    assert not any(map(psutil.pid_exists, pids))
    ranks.close()  # safe


def test_ranks_that_wait_for_one_that_is_done_are_reported():
    def stranded():
        if my_rank() == 1:
            dist.all_reduce(torch.ones(1))

    ranks = Session(2, echo=False)
    with pytest.raises(LaunchError, match="rank 0 had finished\nrank 1 waited in all_reduce at"):
        ranks.run(stranded)
    assert ranks.over == "ranks waited for others that had finished"


def test_a_command_that_takes_too_long():
    ranks = Session(2, echo=False)
    with pytest.raises(LaunchTimeoutError, match=r"did not end within 1 s(.|\n)*rank 1 was at"):
        ranks.run(lambda: time.sleep(60), timeout=1)
    assert ranks.over == "it took too long"


def test_a_rank_that_is_killed_while_it_waits_is_named():
    ranks = Session(2, echo=False)
    os.kill(ranks.run(os.getpid).values[1], signal.SIGKILL)
    with pytest.raises(LaunchError, match="rank 1 was ended by SIGKILL"):
        ranks.run(total)


class Stopped:
    """Ctrl-C comes while this is written for the ranks."""

    def __reduce__(self):
        raise KeyboardInterrupt


def test_ctrl_c_before_the_ranks_have_heard_of_it_leaves_the_session_as_it_is():
    with Session(2, echo=False) as ranks:
        with pytest.raises(KeyboardInterrupt, match="before the ranks heard of it") as caught:
            ranks.run(print, (Stopped(),))
        assert caught.value._render_traceback_() == [f"KeyboardInterrupt: {caught.value}"]
        assert ranks.run(total).values == [3.0, 3.0]


def test_a_value_that_cannot_leave_its_rank():
    ranks = Session(1, echo=False)
    with pytest.raises(LaunchError, match="can't leave its rank"):
        ranks.run(lambda: (x for x in ()))


def test_the_sanitizer_watches_a_session():
    def loads_on_one():
        model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 1))
        if my_rank() == 0:
            with torch.no_grad():
                model.module.weight.add_(1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()

    ranks = Session(2, echo=False, sanitize=True)
    assert ranks.run(total).values == [3.0, 3.0]
    with pytest.raises(LaunchError, match="sanitizer: weights changed after the wrap on rank 0"):
        ranks.run(loads_on_one)


def test_bad_input():
    with pytest.raises(ValueError, match="nprocs=0"):
        Session(0)
    with Session(2, echo=False) as ranks:
        with pytest.raises(ValueError, match="rank 2: this session has the ranks 0 to 1"):
            ranks.run(my_rank, on=2)
        with pytest.raises(TypeError, match="pass the function itself"):
            ranks.run(7)
        with pytest.raises(TypeError, match="can't travel"):
            ranks.run(lambda: ranks)
        assert ranks.run(my_rank).values == [0, 1]


def test_one_that_is_forgotten_ends():
    ranks = Session(2, echo=False)
    pids = ranks.run(os.getpid).values
    del ranks
    assert not any(map(psutil.pid_exists, pids))


def test_an_error_in_the_block_ends_the_ranks_at_once():
    started = time.monotonic()
    with pytest.raises(ZeroDivisionError), Session(2, echo=False) as ranks:
        raise ZeroDivisionError
    assert ranks.over == "it was ended"
    assert time.monotonic() - started < fork_server.LONGEST_START + 8


SCRIPT = """
import os, sys
from ddp_helpers import Session
ranks = Session(2)
print(*ranks.run(os.getpid).values, flush=True)
if sys.argv[1] == "raises":
    raise SystemExit(3)
if sys.argv[1] == "kills":
    os.kill(os.getpid(), 9)
"""


@pytest.mark.parametrize(("how", "code"), [("ends", 0), ("raises", 3), ("kills", -9)])
def test_a_script_that_closes_nothing_leaves_nothing(tmp_path, how, code):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    run = subprocess.run(
        [sys.executable, str(script), how], capture_output=True, text=True, timeout=90
    )
    assert run.returncode == code, run.stderr
    assert run.stderr == ""
    limit = time.monotonic() + 10
    while any(psutil.pid_exists(int(pid)) for pid in run.stdout.split()):
        assert time.monotonic() < limit, run.stdout
        time.sleep(0.05)
