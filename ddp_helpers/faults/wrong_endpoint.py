"""The rendezvous endpoint is wrong.

`--rdzv-endpoint` names a machine or port where nothing listens: the head node of another job, a
port that the firewall drops, an address of the wrong network.
"""

import socket

from ddp_helpers.faults import Fault
from ddp_helpers.faults._terminal import terminal

FAULT = Fault(
    title="A wrong endpoint",
    group="many machines",
    says="RendezvousConnectionError",
    cause="Nothing answers at --rdzv-endpoint, or it is not this machine that should listen there.",
    mend="Name the first node and a free port of it, and try `nc -vz HOST PORT` from each node.",
    kind="address-unreachable",
    seen_in="pytorch#73656",
    in_terminal=True,
)
TRAIN = "import os; print('rank', os.environ['RANK'], 'of', os.environ['WORLD_SIZE'])"


def start(*options):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = "torchrun --nnodes 1 --nproc-per-node 1 --rdzv-backend c10d --rdzv-id lab"
    command += f" --rdzv-endpoint localhost:{port} --rdzv-conf"
    return terminal([*command.split(), ",".join(options), "train.py"], files={"train.py": TRAIN})


def faulty():
    return start("is_host=0", "read_timeout=1")  # FAULT: the host of the endpoint is nowhere


def fixed():
    return start("read_timeout=20")  # MENDED: this node is the host
