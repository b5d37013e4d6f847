"""Who am I, which backend, where do we meet: every wrong value gets a line of its own."""

import os
import socket
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddp_helpers import init_distributed_mode, process_group
from ddp_helpers.group.devices import choose_backend
from ddp_helpers.group.lifetime import _who
from ddp_helpers.group.rendezvous import check_init_method, default_init_method

NAMES = (
    "RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT "
    "SLURM_PROCID SLURM_NTASKS SLURM_LOCALID SLURM_JOB_ID"
).split()


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch):
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def numbers(group):
    return group.rank, group.world_size, group.local_rank, group.local_world_size


def test_torchruns_variables_win_over_slurms():
    torchrun = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    slurm = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
    assert numbers(_who(torchrun | slurm, None, None, None)) == (5, 8, 1, 4)


@pytest.mark.parametrize(("tasks", "local"), [("4", 4), ("2(x3)", 2), ("3,2", 3)])
def test_slurm_alone(tasks, local):
    slurm = {
        "SLURM_PROCID": "3",
        "SLURM_NTASKS": "6",
        "SLURM_LOCALID": "1",
        "SLURM_TASKS_PER_NODE": tasks,
    }
    assert numbers(_who(slurm, None, None, None)) == (3, 6, 1, local)


def test_arguments_win_over_the_environment():
    assert numbers(_who({"RANK": "1", "WORLD_SIZE": "2"}, 4, 3, None)) == (3, 4, 3, 4)


@given(world_size=st.integers(-3, 20), rank=st.integers(-3, 20))
def test_a_rank_is_accepted_exactly_when_it_fits(world_size, rank):
    env = {"RANK": str(rank), "WORLD_SIZE": str(world_size)}
    if 0 <= rank < world_size:
        assert numbers(_who(env, None, None, None))[:2] == (rank, world_size)
    else:
        with pytest.raises(ValueError, match=r"(rank|world_size)=-?\d+"):
            _who(env, None, None, None)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "RANK and WORLD_SIZE not set"),
        ({"rank": 0}, "WORLD_SIZE not set"),
        ({"world_size": 2}, "RANK not set.*torchrun"),
        ({"rank": 2, "world_size": 2}, "rank=2 with world_size=2: expected a rank from 0 to 1"),
        ({"rank": 0, "world_size": 0}, "world_size=0"),
        ({"rank": "1", "world_size": 2}, "rank='1': expected a whole number"),
        ({"rank": 0, "world_size": 2, "local_rank": 7}, "local_rank=7"),
        ({"rank": 0, "world_size": 2}, "MASTER_ADDR and MASTER_PORT not set"),
        ({"rank": 0, "world_size": 2, "backend": "mpi"}, 'backend="mpi": expected "nccl"'),
        ({"rank": 0, "world_size": 2, "init_method": "tcp://localhost"}, "tcp://host:port"),
        ({"rank": 0, "world_size": 2, "init_method": "tcp://x:99999"}, "tcp://host:port"),
        ({"rank": 0, "world_size": 2, "init_method": "http://x:1"}, "tcp://host:port"),
        ({"rank": 0, "world_size": 2, "init_method": "file:///no/such/x"}, "folder /no/such"),
        (
            {"rank": 0, "world_size": 2, "init_method": "tcp://no-such-host.invalid:23456"},
            '"no-such-host.invalid" can\'t be resolved',
        ),
        ({"rank": 0, "world_size": 1, "timeout": 0}, "timeout=0"),
    ],
)
def test_each_wrong_value_is_named(arguments, text):
    with pytest.raises(ValueError, match=text):
        init_distributed_mode(**arguments)


def test_a_variable_that_is_no_number(monkeypatch):
    monkeypatch.setenv("RANK", "zero")
    with pytest.raises(ValueError, match="RANK='zero'"):
        init_distributed_mode()


def test_a_busy_port_is_named():
    with socket.create_server(("localhost", 0)) as holder:
        url = f"tcp://localhost:{holder.getsockname()[1]}"
        with pytest.raises(RuntimeError, match=f"{url}.*can't listen"):
            init_distributed_mode(init_method=url, rank=0, world_size=2)
        check_init_method(url, hosting=False)  # other ranks only connect


@pytest.mark.parametrize(
    ("gpus", "ranks", "has_nccl", "backend"),
    [(0, 1, True, "gloo"), (2, 2, True, "nccl"), (2, 4, True, "gloo"), (4, 4, False, "gloo")],
)
def test_nccl_only_where_every_rank_has_a_gpu(monkeypatch, gpus, ranks, has_nccl, backend):
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: has_nccl)
    assert choose_backend(None, ranks) == backend
    if backend == "gloo":
        with pytest.raises(ValueError, match='use .*backend="gloo"'):
            choose_backend("nccl", ranks)


def test_slurm_ranks_meet_on_the_first_host():
    env = {"SLURM_JOB_ID": "1234567", "SLURM_JOB_NODELIST": "node[07-09,12],gpu1"}
    assert default_init_method(env, 8) == "tcp://node07:24567"
    assert default_init_method(env | {"SLURM_JOB_NODELIST": "alpha,beta"}, 2).startswith(
        "tcp://alpha:"
    )
    assert default_init_method(env | {"MASTER_ADDR": "x"}, 2) == "env://"


@pytest.mark.parametrize(
    ("hosts", "first"),
    [
        ("node07", "node07"),
        ("node[12,15-16],node07", "node12"),
        ("gpu[003]-ib,x", "gpu003-ib"),
        ("rack[2-3]n[01-08]", "rack2n01"),
        ("a-b.c,d[1-2]", "a-b.c"),
    ],
)
def test_the_ranks_of_a_step_meet_on_its_own_first_host(hosts, first):
    job = {"SLURM_JOB_ID": "1234567", "SLURM_JOB_NODELIST": "login[1-9]"}
    step = job | {"SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": hosts}
    assert default_init_method(step, 8) == f"tcp://{first}:24567"
    assert default_init_method(job | {"SLURM_JOB_NODELIST": hosts}, 8) == f"tcp://{first}:24567"
    # two steps of a job may run at once, on the same node
    methods = {default_init_method(step | {"SLURM_STEP_ID": str(n)}, 8) for n in range(20)}
    assert len(methods) == 20


def test_a_step_may_be_smaller_than_its_job():
    job = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0"}
    job |= {"SLURM_TASKS_PER_NODE": "8(x2)", "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
    assert numbers(_who(job, None, None, None)) == (0, 2, 0, 1)


def test_alone_needs_nothing_and_ends_after_an_error():
    code = (
        "import torch.distributed as dist\n"
        "from ddp_helpers import process_group, get_rank, get_world_size\n"
        "try:\n"
        "    with process_group(rank=0, world_size=1) as pg:\n"
        "        assert dist.is_initialized() and pg.is_main\n"
        "        raise KeyError('mine')\n"
        "except KeyError:\n"
        "    print(dist.is_initialized(), get_rank(), get_world_size())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "False 0 1\n"


def test_a_second_start_says_who_runs(monkeypatch):
    with (
        process_group(rank=0, world_size=1),
        pytest.raises(RuntimeError, match=r"already running \(rank 0 of 1\)"),
    ):
        init_distributed_mode(rank=0, world_size=1)


def test_importing_the_package_is_light():
    code = (
        "import sys, ddp_helpers\n"
        "heavy = {'torch', 'matplotlib', 'ipywidgets', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, env=dict(os.environ))


JOB = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4", "SLURM_LOCALID": "0"}
STEP = JOB | {"SLURM_STEP_ID": "0", "SLURM_NNODES": "2"}


@pytest.mark.parametrize("step", [{}, {"SLURM_STEP_ID": "4294967291"}])
def test_a_batch_script_itself_is_no_rank(step):
    with pytest.raises(ValueError, match=r"SLURM_NTASKS=4, but .* batch script .* `srun python"):
        _who(JOB | step, None, None, None)
    assert numbers(_who(JOB | step | {"RANK": "1", "WORLD_SIZE": "2"}, None, None, None))[0] == 1
    assert numbers(_who(JOB | step | {"SLURM_NTASKS": "1"}, None, None, None))[:2] == (0, 1)
    assert numbers(_who(JOB | step, 2, 1, None))[:2] == (1, 2)


def test_slurms_numbers_of_tasks_that_contradict_each_other():
    with pytest.raises(ValueError, match=r"SLURM_NTASKS=4, but SLURM_NTASKS_PER_NODE=1 on 2 node"):
        _who(STEP | {"SLURM_NTASKS_PER_NODE": "1"}, None, None, None)
    for each in ("2", "4"):  # with --ntasks it is only the most that a node may get
        assert _who(STEP | {"SLURM_NTASKS_PER_NODE": each}, None, None, None).world_size == 4
