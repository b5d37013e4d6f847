"""How many ranks share the cores of this process: what their threads must be divided by."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping


def ranks_on_these_cores(env: Mapping[str, str] = os.environ) -> int:
    """The number of ranks, this one included, that run on the cores this process may use.

    torchrun and `launch()` let all their ranks run on all of their own cores. srun mostly binds
    each task to its share, which is this rank's alone: whoever divides that once more gives it too
    few threads.
    """
    by_srun = "SLURM_LOCALID" in env and "TORCHELASTIC_RUN_ID" not in env
    on_node = env.get("SLURM_CPUS_ON_NODE", "")
    if by_srun and on_node.isdigit() and usable_cores() < int(on_node):
        return 1
    told = env.get("LOCAL_WORLD_SIZE", "")
    if by_srun and not told:
        told = next(iter(re.findall(r"\d+", env.get("SLURM_STEP_TASKS_PER_NODE", ""))), "")
    return max(1, int(told)) if told.isdigit() else 1


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
