"""What a rank that stands by does with its time: once, for nobody, what a rank does first of all.

A first time is slow: memory that is shared with the fork server is copied where it is written to,
and torch sets up what it needs. All of this is done here, and nothing else is left of it: no thread
runs, no file is open, no process group was ever there. What torch reads from the environment only
once it has read now, so a launch with other variables does not take this rank.
"""

from __future__ import annotations

import os
import pickle
import socket
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta

from ddp_helpers.group.torch_mends import release_ended_groups
from ddp_helpers.ranks.messages import Job, Outcome
from ddp_helpers.ranks.surroundings import look
from ddp_helpers.ranks.travel import dump_value, pack, unpack

# by how their names begin; torch, gloo and OpenMP may read them once in a process
READ_ONCE = ("TORCH_", "PYTORCH_", "GLOO_", "NCCL_", "OMP_", "GOMP_", "KMP_", "MKL_", "ATEN_")
# told again at each launch, in another way
TOLD_AGAIN = {"TORCH_DISTRIBUTED_DEBUG", "OMP_NUM_THREADS", "MKL_NUM_THREADS"}
LIMIT = timedelta(seconds=5)  # of a collective of one rank


def read_once(env: Mapping[str, str]) -> dict[str, str]:
    """The variables that a rank has read for good after its rehearsal."""
    names = (name for name in env if name.startswith(READ_ONCE) and name not in TOLD_AGAIN)
    return {name: env[name] for name in names}


def rehearse(variables: Mapping[str, str], settle_in: Callable[[Job], None]) -> None:
    """Do it all.

    Args:
        variables: as they may be in the launch.
        settle_in: what a rank does with the job that it is given.
    """
    others = {name: value for name, value in os.environ.items() if not read_once({name: value})}
    env = others | dict(variables)
    settle_in(Job(pack(len, ((),), {}), 1, env, os.getcwd(), [""], 1, surroundings=look()))
    fn, args, kwargs = unpack(pack(len, ((),), {}))
    pickle.dumps(Outcome(dump_value(fn(*args, **kwargs)), None, 0, 0.0))
    _be_a_group_of_one()


def _be_a_group_of_one() -> None:
    import torch
    import torch.distributed as dist

    if not dist.is_gloo_available():
        return
    hook = sys.excepthook  # torch puts its own around it, and leaves it there
    # torch's own socket would take IPv6, too, and ask the name server who ::ffff:127.0.0.1 is: 5 s
    # where it is slow. And libuv would leave a pipe open in this process
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    own = dist.TCPStore(
        "127.0.0.1",
        port,
        1,
        is_master=True,
        timeout=LIMIT,
        master_listen_fd=listener.detach(),
        use_libuv=False,
    )
    store = dist.PrefixStore("rehearsal", own)
    try:
        dist.init_process_group("gloo", store=store, rank=0, world_size=1, timeout=LIMIT)
        dist.all_reduce(torch.ones(1))
        dist.barrier()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        release_ended_groups()
        sys.excepthook = hook
