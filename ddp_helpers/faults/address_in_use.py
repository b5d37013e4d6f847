"""The port is taken.

The script names a fixed port, and somebody has it already: a colleague on the same machine, or
yesterday's run, whose ranks never ended.
"""

import os
import socket

import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Address in use",
    group="start-up",
    says="EADDRINUSE",
    cause="The port in init_method or MASTER_PORT is held by another program, or a left-over run.",
    mend="Let the launcher choose a free port; `ss -ltnp` names the process that has the old one.",
    kind="port-taken",
    seen_in="pytorch#85604",
    nprocs=1,
)


def faulty():
    with socket.create_server(("", 0)) as somebody:  # stands for the run of yesterday
        port = somebody.getsockname()[1]
        url = f"tcp://127.0.0.1:{port}"  # FAULT: a fixed port
        dist.init_process_group("gloo", init_method=url, rank=0, world_size=1)


def fixed():
    dist.init_process_group("gloo")  # MENDED: the launcher's own port, which is free
    dist.destroy_process_group()
    return os.environ["MASTER_PORT"]
