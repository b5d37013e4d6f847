"""A script for several ranks, started as a single process.

`python train.py` is what the fingers know. The script asks the environment which rank it is, and
nobody has told it.
"""

from ddp_helpers.faults import Fault
from ddp_helpers.faults._terminal import terminal

FAULT = Fault(
    title="RANK is not set",
    group="start-up",
    says="environment variable RANK expected, but not set",
    cause="`python` starts one process and sets no RANK; `torchrun` does.",
    mend="Start it with `torchrun --standalone --nproc-per-node 2 train.py`.",
    kind="environment-not-set",
    seen_in="HRNet#35",
    in_terminal=True,
)
TRAIN = """
import torch.distributed as dist
dist.init_process_group("gloo")
print("rank", dist.get_rank())
dist.barrier()
dist.destroy_process_group()
"""


def faulty():
    return terminal(["python", "train.py"], files={"train.py": TRAIN})  # FAULT: one process


def fixed():
    command = "torchrun --standalone --nproc-per-node 2 train.py"  # MENDED: sets RANK
    return terminal(command.split(), files={"train.py": TRAIN})
