"""What a rank that stands by does with its time: once, for nobody, what a rank does first of all.

A first time is slow: memory that is shared with the fork server is copied where it is written to,
and torch sets up what it needs. All of this is done here, and nothing else is left of it: no thread
runs, no file is open, no process group was ever there. What torch reads from the environment only
once it has read now, so a launch with other variables does not take this rank.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import sys
from collections.abc import Mapping
from datetime import timedelta

from ddp_helpers.group.torch_mends import mend_destroy_process_group, mend_rendezvous
from ddp_helpers.ranks.travel import dump_value, pack, unpack
from ddp_helpers.ranks.wire import Outcome

# by how their names begin; torch, gloo and OpenMP may read them once in a process
READ_ONCE = ("TORCH_", "PYTORCH_", "GLOO_", "NCCL_", "OMP_", "GOMP_", "KMP_", "MKL_", "ATEN_")
# told again at each launch, in another way
TOLD_AGAIN = {"TORCH_DISTRIBUTED_DEBUG", "OMP_NUM_THREADS", "MKL_NUM_THREADS"}
LIMIT = timedelta(seconds=5)  # of a collective of one rank


def read_once(env: Mapping[str, str]) -> dict[str, str]:
    """The variables that a rank has read for good after its rehearsal."""
    names = (name for name in env if name.startswith(READ_ONCE) and name not in TOLD_AGAIN)
    return {name: env[name] for name in names}


def rehearse(variables: Mapping[str, str]) -> None:
    """Do it all, under these variables."""
    kept = {name: value for name, value in os.environ.items() if not read_once({name: value})}
    os.environ.clear()
    os.environ.update(kept | dict(variables))
    multiprocessing.set_start_method(None, force=True)
    mend_rendezvous()
    mend_destroy_process_group()
    unpack(pack(len, ((),), {}))
    pickle.dumps(Outcome(dump_value(None), None, 0, 0.0))
    _draw_and_compute()
    with contextlib.suppress(RuntimeError):  # a launch will say what is wrong with it
        _be_a_group_of_one()


def _draw_and_compute() -> None:
    import torch

    torch.set_num_threads(1)
    torch.default_generator.seed()
    torch.ones(1).add_(1)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()


def _be_a_group_of_one() -> None:
    import torch
    import torch.distributed as dist

    if not dist.is_gloo_available():
        return
    group = dist.ProcessGroupGloo(dist.HashStore(), 0, 1, LIMIT)
    group.allreduce([torch.ones(1)]).wait()  # type: ignore[attr-defined]  # not in its stub
    group.barrier().wait()  # type: ignore[attr-defined]
