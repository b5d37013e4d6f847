"""The old launcher's --local-rank.

`python -m torch.distributed.launch` gave each script a flag `--local_rank=0`, later renamed to
`--local-rank=0`. torchrun sets a variable instead. A script and a launcher of different years do
not understand each other.
"""

from ddp_helpers.faults import Fault
from ddp_helpers.faults._terminal import terminal

FAULT = Fault(
    title="The --local-rank flag",
    group="start-up",
    says="error: unrecognized arguments: --local-rank=0",
    cause="The launcher passes a flag that the script does not know.",
    mend='Start with torchrun, and read `int(os.environ["LOCAL_RANK"])`.',
    kind="local-rank-flag",
    seen_in="timm#1724",
    in_terminal=True,
)
TRAIN = """
import argparse, os
parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=1)
options = parser.parse_args()
print("local rank", os.environ.get("LOCAL_RANK"))
"""


def faulty():
    command = "python train.py --local-rank=0"  # FAULT: as torch.distributed.launch starts it
    return terminal(command.split(), files={"train.py": TRAIN})


def fixed():
    command = "python train.py"  # MENDED: as torchrun starts it
    return terminal(command.split(), files={"train.py": TRAIN}, env={"LOCAL_RANK": "0"})
