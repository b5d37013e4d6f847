"""The failure lab: one small file per fault, each run for real on the CPU.

    from ddp_helpers import faults
    faults.names("hangs")                         # which faults there are
    faults.run("one_extra_collective")            # see it happen, and what the report says
    faults.run("one_extra_collective", fixed=True)
    faults.torch_says("one_extra_collective")     # what torch alone would have printed

A file holds a `FAULT` record, `faulty()` and `fixed()`: what each rank runs, or for a fault of
the command line (`in_terminal`) the command itself.
"""

from ddp_helpers.faults._catalogue import (
    FOLDER,
    GROUPS,
    LONG_ENOUGH,
    Fault,
    Seen,
    names,
    record,
)
from ddp_helpers.faults._lab import Markdown, load, run, table, torch_says

__all__ = [
    "FOLDER",
    "GROUPS",
    "LONG_ENOUGH",
    "Fault",
    "Markdown",
    "Seen",
    "load",
    "names",
    "record",
    "run",
    "table",
    "torch_says",
]
