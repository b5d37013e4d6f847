"""Ranks that go on after their launcher was killed.

A run hangs, and somebody ends it with `kill -9`. The launcher is gone, its ranks are not: they
wait in C++ and hear no signal. They hold the GPUs, and the port: the next run can't have it.
"""

import socket

from ddp_helpers.faults import Fault
from ddp_helpers.faults._terminal import terminal

FAULT = Fault(
    title="Ranks outlive their launcher",
    group="after the end",
    says="EADDRINUSE",
    cause="Ranks of a launcher that was killed still run, and hold the port (and the GPUs).",
    mend="End the whole process group: `kill -9 -- -PID`; `ss -ltnp` and nvidia-smi show the rest.",
    kind="port-taken",
    seen_in="pytorch#126275",
    in_terminal=True,
)
TRAIN = """
import sys
import torch, torch.distributed as dist, torch.multiprocessing as mp

def train(rank, port, how):
    url = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=url, rank=rank, world_size=2)
    if how == "hang":
        print("running", flush=True)
        dist.recv(torch.zeros(1), src=1 - rank)  # nobody sends
    dist.barrier()
    dist.destroy_process_group()

if __name__ == "__main__":
    mp.start_processes(train, args=sys.argv[1:], nprocs=2, start_method="fork")
"""
TWO_RUNS = """
set -m  # each job is a process group, as in a terminal
python train.py PORT hang > first &
until grep -q running first; do sleep 0.05; done
KILL
wait 2> /dev/null
echo "the launcher has ended; the next run:"
python train.py PORT short
"""


def two_runs(kill):
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    script = TWO_RUNS.replace("PORT", str(port)).replace("KILL", kill)
    return terminal(["bash", "-c", script], files={"train.py": TRAIN}, limit=60)


def faulty():
    return two_runs("kill -KILL $!")  # FAULT: ends the launcher only


def fixed():
    return two_runs("kill -KILL -- -$!; sleep 0.2")  # MENDED: ends its whole process group
