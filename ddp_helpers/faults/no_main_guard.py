"""A script that starts processes, without a main guard.

A spawned process first runs the script again, to find the function in it. Without the guard it
arrives at the line that spawns processes, and so on.
"""

from ddp_helpers.faults import Fault
from ddp_helpers.faults._terminal import terminal

FAULT = Fault(
    title="No main guard",
    group="start-up",
    says="An attempt has been made to start a new process before the",
    cause="Each new process runs the whole script, and would start processes itself.",
    mend='Put the starting line under `if __name__ == "__main__":`.',
    kind="no-main-guard",
    seen_in="Lightning#10511",
    in_terminal=True,
)
TRAIN = """
import torch.multiprocessing as mp

def train(rank):
    print("rank", rank)

{guard}mp.spawn(train, nprocs=1)
"""


def faulty():
    script = TRAIN.format(guard="")  # FAULT: runs in every process
    return terminal(["python", "train.py"], files={"train.py": script})


def fixed():
    script = TRAIN.format(guard='if __name__ == "__main__": ')  # MENDED: only in the first
    return terminal(["python", "train.py"], files={"train.py": script})
