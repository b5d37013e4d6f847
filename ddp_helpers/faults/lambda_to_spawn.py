"""A lambda, or a function inside a function, given to mp.spawn.

spawn starts a fresh Python and sends it the function's name, not its code. A lambda and a closure
have no name that another process could import.
"""

from ddp_helpers.faults import Fault
from ddp_helpers.faults._terminal import terminal

FAULT = Fault(
    title="A lambda given to spawn",
    group="start-up",
    says="Can't pickle <function <lambda>",
    cause="spawn pickles a function by its name, and a lambda or closure has none to import.",
    mend="Put the function at the top of a file; or use launch(), which sends the code itself.",
    kind="cannot-pickle",
    seen_in="Lightning#10511",
    in_terminal=True,
)
TRAIN = """
import torch.multiprocessing as mp

def train(rank, lr):
    print("rank", rank, "lr", lr)

if __name__ == "__main__":
    lr = 0.1
    {call}
"""


def faulty():
    call = "mp.spawn(lambda rank: train(rank, lr), nprocs=1)"  # FAULT: a lambda can't travel
    return terminal(["python", "train.py"], files={"train.py": TRAIN.format(call=call)})


def fixed():
    call = "mp.spawn(train, args=(lr,), nprocs=1)"  # MENDED: a function with a name
    return terminal(["python", "train.py"], files={"train.py": TRAIN.format(call=call)})
