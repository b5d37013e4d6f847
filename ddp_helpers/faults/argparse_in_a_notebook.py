"""argparse in a notebook.

`parse_args()` reads the command line of the process. A notebook's process is the kernel, and its
command line belongs to Jupyter.
"""

from ddp_helpers.faults import Fault
from ddp_helpers.faults._terminal import terminal

FAULT = Fault(
    title="argparse in a notebook",
    group="start-up",
    says="ipykernel_launcher.py: error: unrecognized arguments: -f kernel-1.json",
    cause="parse_args() reads the kernel's own command line.",
    mend="Give it a list, `parse_args([])`, or use `parse_known_args()`.",
    kind="notebook-argv",
    seen_in="timm#1724",
    in_terminal=True,
)
CELL = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=1)
options = parser.parse_args({given})
"""
KERNEL = "python ipykernel_launcher.py -f kernel-1.json"  # as Jupyter starts it


def faulty():
    cell = CELL.format(given="")  # FAULT: the kernel's arguments
    return terminal(KERNEL.split(), files={"ipykernel_launcher.py": cell})


def fixed():
    cell = CELL.format(given="[]")  # MENDED: none
    return terminal(KERNEL.split(), files={"ipykernel_launcher.py": cell})
