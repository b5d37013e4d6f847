"""Who shares the cores of this process: torchrun's ranks do, srun's tasks mostly have their own."""

import pytest

from ddp_helpers.environment import check_environment
from ddp_helpers.evidence import cores
from ddp_helpers.evidence.cores import ranks_on_these_cores

TASK = {"SLURM_LOCALID": "1", "SLURM_CPUS_ON_NODE": "16", "SLURM_STEP_TASKS_PER_NODE": "4(x2)"}


@pytest.mark.parametrize(
    ("env", "usable", "ranks"),
    [
        ({"LOCAL_WORLD_SIZE": "4"}, 16, 4),
        ({"LOCAL_WORLD_SIZE": "many"}, 16, 1),
        ({}, 16, 1),
        (TASK, 4, 1),  # bound to its share
        (TASK | {"LOCAL_WORLD_SIZE": "4"}, 4, 1),  # a script says it again
        (TASK, 16, 4),  # not bound: all run anywhere
        (TASK | {"SLURM_STEP_TASKS_PER_NODE": ""}, 16, 1),
        (TASK | {"SLURM_CPUS_ON_NODE": ""}, 4, 4),
        # torchrun in a task: its ranks share what the task has
        (TASK | {"LOCAL_WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none"}, 8, 2),
    ],
)
def test_ranks_that_share_the_cores(monkeypatch, env, usable, ranks):
    monkeypatch.setattr(cores, "usable_cores", lambda: usable)
    assert ranks_on_these_cores(env) == ranks


@pytest.mark.parametrize(("cpus_on_node", "threads"), [("4", 1), ("64", 4)])
def test_the_advice_does_not_divide_a_tasks_share_again(monkeypatch, cpus_on_node, threads):
    for name, value in (TASK | {"SLURM_CPUS_ON_NODE": cpus_on_node}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setattr(cores, "usable_cores", lambda: 4)
    monkeypatch.setattr("ddp_helpers.environment.check.usable_cpu_count", lambda: 4)
    monkeypatch.setenv("OMP_NUM_THREADS", "99")
    advice = check_environment()["OMP_NUM_THREADS"].advice
    assert f"OMP_NUM_THREADS={threads}`" in advice
