"""A debugger in a rank: in a terminal, where several ranks stop, and where nobody can type."""

import os
import re
import signal
import sys
import time

import nbformat
import pexpect
import psutil
import pytest
import torch
import torch.distributed as dist
from nbclient import NotebookClient

from ddp_helpers import LaunchError, launch, process_group

pytestmark = [pytest.mark.usefixtures("no_process_left"), pytest.mark.timeout(180)]
STOPS_AT_THE_CALL = sys.version_info >= (3, 13)  # of breakpoint(), before that at the next line
COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # of Python's own traceback, from 3.13 on
PROMPT = {rank: rf"\[rank {rank}\] \(Pdb\) " for rank in (0, 1)}
SCRIPT = """
import os, pdb, sys
import torch, torch.distributed as dist
from ddp_helpers import Session, launch, process_group

def one():
    with process_group() as pg:
        x = torch.full((2,), pg.rank + 1.0)
        if pg.rank == 1:
            breakpoint()
        x = x * 10
        dist.all_reduce(x)
        return x.sum().item()

def both():
    with process_group() as pg:
        x = torch.full((2,), pg.rank + 1.0)
        breakpoint()
        dist.all_reduce(x)
        return x.sum().item()

def torchs():
    with process_group() as pg:
        x = pg.rank
        dist.breakpoint(1)
        x = x + 41
        dist.barrier()
        return x

def fails():
    with process_group() as pg:
        label = 11 + pg.rank
        if pg.rank == 1:
            raise ValueError("bad label")
        dist.barrier()

def caught():
    with process_group() as pg:
        try:
            label = 11 + pg.rank
            raise ValueError(label)
        except ValueError:
            if pg.rank == 1:
                pdb.pm()
        dist.barrier()
        return label

def asks():
    with process_group() as pg:
        name = input("name? ") if pg.rank == 1 else "nobody"
        dist.barrier()
        return name

def stays():
    x = rank + 40
    if rank == 1:
        breakpoint()
    dist.barrier()
    return x

if sys.argv[1] == "session":
    ranks = Session(2)
    print("FIRST", ranks.run(stays).values)
    print("SECOND", ranks.run(stays).quit_by, ranks)
    sys.exit()

name, options = sys.argv[1], eval(sys.argv[2])
result = launch(globals()[name], 2, **options)
print("VALUES", result.values, result.quit_by)
"""


@pytest.fixture
def terminal(tmp_path):
    """Starts one of the script's functions in a terminal."""
    started = []
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)

    def start(name: str, **options) -> pexpect.spawn:
        child = pexpect.spawn(
            sys.executable, [str(script), name, repr(options)], encoding="utf-8", timeout=120
        )
        started.append(child)
        return child

    yield start
    for child in started:
        child.close(force=True)


def talk(child, *dialogue):
    """Wait for each prompt, and type the line; the rest until the end."""
    seen = ""
    for prompt, line in dialogue:
        child.expect(prompt)
        seen += child.before
        child.sendline(line)
    child.expect(pexpect.EOF)
    child.wait()
    return COLOUR.sub("", seen + child.before).replace("\r\n", "\n")


def test_step_print_and_go_on_while_the_other_rank_waits(terminal):
    child = terminal("one", timeout=3)
    child.expect(PROMPT[1])
    where = r"rank 1 has stopped at .*train.py, line 1[01], in one; the others"
    assert re.search(where, child.before)
    if STOPS_AT_THE_CALL:
        child.sendline("n")
        child.expect(PROMPT[1])
    time.sleep(4)  # the limit stands still
    child.sendline("n")
    text = talk(child, (PROMPT[1], "p x"), (PROMPT[1], "c"))
    assert "[rank 1] -> dist.all_reduce(x)" in text
    assert "[rank 1] tensor([20., 20.])" in text
    assert "VALUES [60.0, 60.0] None" in text
    assert child.exitstatus == 0


@pytest.mark.parametrize("typed", ["q", "\x04"], ids=["quit", "Ctrl-D"])
def test_quit_ends_the_run_without_a_traceback(terminal, typed):
    child = terminal("one")
    child.expect(PROMPT[1])
    child.send(typed + ("\n" if typed == "q" else ""))
    text = talk(child)
    assert "ended at the prompt of rank 1, and so have all ranks" in text
    assert "VALUES [None, None] 1" in text
    assert "Traceback" not in text
    assert child.exitstatus == 0


def test_quit_under_a_command_that_needs_values(tmp_path):
    script = tmp_path / "stops.py"
    script.write_text("def main():\n    breakpoint()\n    print('on')\n")
    command = ["-m", "ddp_helpers", "verify", f"{script}:main", "-n", "2"]
    child = pexpect.spawn(sys.executable, command, encoding="utf-8", timeout=120)
    text = talk(child, (r"\(Pdb\) ", "q"))
    assert "ended at the prompt of rank" in text
    assert "Traceback" not in text
    assert child.exitstatus == 130


def test_ctrl_c_at_a_prompt_says_where_each_rank_stood(terminal):
    child = terminal("one")
    child.expect(PROMPT[1])
    time.sleep(1)  # for rank 0 to come to its line
    child.sendcontrol("c")
    text = talk(child)
    assert re.search(r"rank 0 waited in all_reduce at .*train.py, line 12", text), text
    assert re.search(r"rank 1 was at .*train.py, line 1[01], in one", text)


def test_two_ranks_take_turns(terminal):
    child = terminal("both")
    turns = []
    for line in ["n", "n", "c", "c"]:
        child.expect(r"\[rank (\d)\] \(Pdb\) ")
        turns.append(int(child.match[1]))
        child.sendline(line)
    text = talk(child)
    # each steps up to the collective before one of them goes beyond it
    assert sorted(turns[:2]) == sorted(turns[2:]) == [0, 1]
    assert "VALUES [6.0, 6.0] None" in text


def test_torchs_own_breakpoint_stops_one_rank_at_the_readers_line(terminal):
    child = terminal("torchs")
    dialogue = [(PROMPT[1], line) for line in ("p x", "n", "n", "p x", "c")]
    text = talk(child, *dialogue)
    assert "[rank 1] -> dist.breakpoint(1)" in text
    assert "[rank 1] 42" in text
    assert "VALUES [41, 42] None" in text


def test_a_failed_rank_is_looked_at_where_it_failed(terminal):
    child = terminal("fails", post_mortem=True, timeout=3)
    child.expect(PROMPT[1])
    time.sleep(4)
    child.sendline("p label")
    text = talk(child, (PROMPT[1], "q"))
    assert "[rank 1] 12" in text
    assert "LaunchError: rank 1 failed: ValueError: bad label" in text
    assert child.exitstatus == 1


def test_pm_of_an_error_that_was_caught(terminal):
    child = terminal("caught")
    text = talk(child, (PROMPT[1], "p label * 2"), (PROMPT[1], "q"))
    assert "[rank 1] 24" in text
    assert "VALUES [11, 12] None" in text


def test_input_asks_the_reader(terminal):
    text = talk(terminal("asks", echo=False), (r"\[rank 1\] name\? ", "Ada"))
    assert "VALUES ['nobody', 'Ada'] None" in text


def test_a_rank_that_dies_at_its_prompt_is_named(terminal):
    child = terminal("one")
    child.expect(PROMPT[1])
    child.sendline("import os; os.kill(os.getpid(), 9)")
    assert "rank 1 was ended by SIGKILL" in talk(child)


def test_a_launcher_that_is_killed_at_a_prompt_leaves_nothing(terminal):
    child = terminal("one")
    child.expect(PROMPT[1])
    family = psutil.Process(child.pid).children(recursive=True)
    assert len(family) >= 3
    os.kill(child.pid, signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive


def test_in_a_session_it_stops_the_command_and_goes_on(terminal):
    child = terminal("session")
    text = talk(child, (PROMPT[1], "p x"), (PROMPT[1], "c"), (PROMPT[1], "q"))
    assert "[rank 1] 41" in text
    assert "FIRST [40, 41]" in text
    assert "SECOND 1 Session(2 ranks, over: it was ended at a prompt)" in text


# ---- nobody can type


def test_without_a_keyboard_a_breakpoint_is_passed_with_one_line():
    def train():
        with process_group() as pg:
            for _ in range(3):
                breakpoint()
                total = torch.ones(1)
                dist.breakpoint(1)
                dist.all_reduce(total)
            return pg.rank + 2

    result = launch(train, 2, echo=False, timeout=60)
    assert result.values == [2, 3]
    for rank in result.ranks:
        told = [line for line in rank.output.splitlines() if "no keyboard here" in line]
        assert len(told) == 1 + rank.rank, rank.output
        assert "in train: no keyboard here, so it goes on" in told[0]


def test_without_a_keyboard_a_failure_is_reported_as_always():
    with pytest.raises(LaunchError, match="failed: ZeroDivisionError"):
        launch(lambda: 1 / 0, 2, post_mortem=True, echo=False)


def test_a_worker_of_a_loader_says_how_to_stop_in_it():
    from torch.utils.data import DataLoader

    class Numbers:
        def __len__(self):
            return 2

        def __getitem__(self, index):
            breakpoint()
            return index

    def read():
        return len(list(DataLoader(Numbers(), num_workers=1, multiprocessing_context="fork")))

    result = launch(read, 1, echo=False, timeout=60)
    assert result.values == [2]
    assert "num_workers=0" in result[0].output


def test_an_executed_notebook_goes_on(tmp_path):
    cell = (
        "from ddp_helpers import launch\n"
        "def train():\n"
        "    x = 6\n"
        "    breakpoint()\n"
        "    return x * 7\n"
        "launch(train, 2).values"
    )
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
    NotebookClient(book, timeout=120, kernel_name="python3").execute()
    told = "".join(output.get("text", "") for output in book.cells[0].outputs)
    line = 4 if STOPS_AT_THE_CALL else 5
    assert f"[rank 1] breakpoint at cell In[1], line {line}, in train: no keyboard here" in told
    assert book.cells[0].outputs[-1]["data"]["text/plain"] == "[42, 42]"
