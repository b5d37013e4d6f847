"""A rehearsal leaves a process as it was, but for what torch has read once."""

import gc
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from ddp_helpers.group import torch_mends
from ddp_helpers.ranks import rehearsal
from ddp_helpers.ranks.rehearsal import read_once, rehearse

HERE = Path(__file__).parent


def settle_in(job):
    os.environ.clear()
    os.environ.update(job.env)


def state():
    gc.collect()  # other tests may have left some files to it
    c10d = sys.modules["torch.distributed.distributed_c10d"]
    return {
        "threads": len(os.listdir("/proc/self/task")),
        "files": len(os.listdir("/proc/self/fd")),
        "hook": sys.excepthook,
        "groups": (dist.is_initialized(), c10d._world.group_count, len(c10d._world.pg_map)),
        "held": list(torch_mends._ended_groups),
        "threading": threading.active_count(),
    }


def nothing_is_left():
    torch.ones(1)
    settled = []
    before = state()
    rehearse({"TORCH_MINE": "1"}, lambda job: (settled.append(job), settle_in(job)))
    (job,) = settled
    assert job.env["TORCH_MINE"] == os.environ["TORCH_MINE"] == "1"
    assert (job.nprocs, job.threads, job.cwd) == (1, 1, os.getcwd())
    after = state()
    return before == after or {name: (before[name], after[name]) for name in before}


def test_nothing_is_left_of_it():
    """In a fresh Python: a fork of this one would have groups of other tests, and none of their
    threads."""
    code = "import test_rehearsal; print(test_rehearsal.nothing_is_left())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.stdout.splitlines()[-1:] == ["True"], done.stdout + done.stderr


def test_one_that_fails_leaves_no_hook_either(monkeypatch):
    def refuse(*args, **kwargs):
        sys.excepthook = print
        raise RuntimeError("no device")

    monkeypatch.setattr(dist, "init_process_group", refuse)
    hook = sys.excepthook
    with pytest.raises(RuntimeError, match="no device"):
        rehearsal._be_a_group_of_one()
    assert sys.excepthook is hook


def test_a_torch_without_gloo(monkeypatch):
    monkeypatch.setattr(dist, "is_gloo_available", lambda: False)
    monkeypatch.setattr(dist, "TCPStore", None)
    rehearsal._be_a_group_of_one()


def test_which_variables_count():
    env = {
        "TORCH_GLOO_LAZY_INIT": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_WAIT_POLICY": "passive",
        "OMP_NUM_THREADS": "3",
        "TORCH_DISTRIBUTED_DEBUG": "INFO",
        "TORCHELASTIC_RUN_ID": "launch-7",
        "HOME": "/root",
    }
    names = {"TORCH_GLOO_LAZY_INIT", "GLOO_SOCKET_IFNAME", "OMP_WAIT_POLICY"}
    assert read_once(env) == {name: env[name] for name in names}


def test_the_old_variables_of_torch_are_gone(monkeypatch):
    monkeypatch.setenv("TORCH_OLD", "1")
    monkeypatch.setenv("MINE", "2")
    seen = []
    monkeypatch.setattr(rehearsal, "_be_a_group_of_one", lambda: None)
    rehearse({"GLOO_NEW": "3"}, lambda job: seen.append(job.env))
    (env,) = seen
    assert ("TORCH_OLD" in env, env["MINE"], env["GLOO_NEW"]) == (False, "2", "3")
