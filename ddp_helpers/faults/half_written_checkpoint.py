"""A checkpoint is read while it is written.

Rank 0 saves, and the others load "the latest" at once. Sometimes they are quick enough to find
half a file. On another day the job is stopped in the middle of a save, and the file stays so.
"""

import os
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="A half-written checkpoint",
    group="silently wrong",
    says="PytorchStreamReader failed reading zip archive",
    cause="torch.save writes into the final file, and another rank reads before it is whole.",
    mend="Write to a temporary file, rename it, and let the others wait in a barrier.",
    kind="checkpoint-incomplete",
    seen_in="apex#629",
)


class SlowFile:
    """Stands for a network disk: it takes its time after each piece."""

    def __init__(self, path):
        self.file = path.open("wb", buffering=0)

    def write(self, data):
        time.sleep(0.02)
        return self.file.write(data)

    def flush(self):
        pass


def share(whole):
    dist.init_process_group("gloo")
    folder = [tempfile.mkdtemp()]
    dist.broadcast_object_list(folder, src=0)
    path = Path(folder[0], "checkpoint.pt")
    if dist.get_rank() == 0:
        part = path.with_suffix(".tmp") if whole else path
        torch.save({"weight": torch.ones(4, 4)}, SlowFile(part))  # FAULT: straight into the file
        os.replace(part, path)  # MENDED: appears as a whole, or not at all
    if whole:
        dist.barrier()  # MENDED: nobody looks before it is there
    while not path.exists() or path.stat().st_size < 64:
        time.sleep(0.001)
    total = torch.load(path)["weight"].sum().item()
    dist.barrier()
    dist.destroy_process_group()
    return total


def faulty():
    return share(whole=False)


def fixed():
    return share(whole=True)
