"""A node that never comes.

torchrun was started on one machine with `--nnodes 2`; on the other one it was forgotten, is still
in the queue, or has another `--rdzv-id`. The error that ends the wait has no text at all.
"""

import socket

from ddp_helpers.faults import Fault
from ddp_helpers.faults._terminal import terminal

FAULT = Fault(
    title="A node is missing",
    group="many machines",
    says="RendezvousTimeoutError",
    cause="Fewer nodes came than --nnodes says, or they came with another endpoint or id.",
    mend="Start torchrun on each node, with the same --nnodes, --rdzv-endpoint and --rdzv-id.",
    kind="rendezvous-failed",
    seen_in="pytorch#73656",
    in_terminal=True,
)
TRAIN = "import os; print('rank', os.environ['RANK'], 'of', os.environ['WORLD_SIZE'])"


def start(nnodes):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = f"torchrun --nnodes {nnodes} --nproc-per-node 1 --rdzv-backend c10d --rdzv-id lab"
    command += f" --rdzv-endpoint localhost:{port} --rdzv-conf join_timeout=1 train.py"
    return terminal(command.split(), files={"train.py": TRAIN})


def faulty():
    return start(nnodes=2)  # FAULT: this is the only node


def fixed():
    return start(nnodes=1)  # MENDED: as many nodes as there are
