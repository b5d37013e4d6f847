"""mp.spawn with a function from a notebook cell.

The new process imports the function from `__main__`. In the notebook that is the cells; in the
new process there are no cells. (Here the cell runs with `python -c`, which is the same case.)
"""

from ddp_helpers.faults import Fault
from ddp_helpers.faults._terminal import terminal

FAULT = Fault(
    title="A function from a notebook",
    group="start-up",
    says="Can't get attribute 'train' on <module '__main__' (built-in)>",
    cause="A spawned process imports the function by name, and can't import a notebook's cells.",
    mend="Use launch(), which sends the function itself; or write it to a file with %%writefile.",
    kind="function-not-importable",
    seen_in="Lightning#10511",
    in_terminal=True,
)
CELL = """
def train(rank=0):
    return rank

"""


def faulty():
    start = "import torch.multiprocessing as mp\nmp.spawn(train, nprocs=1)\n"  # FAULT: by name
    return terminal(["python", "-c", CELL + start])


def fixed():
    start = "from ddp_helpers import launch\nlaunch(train, nprocs=1)\n"  # MENDED: by value
    return terminal(["python", "-c", CELL + start])
