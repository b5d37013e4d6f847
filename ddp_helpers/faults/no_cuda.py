"""`.cuda()` on a machine without CUDA.

The loop was written on a server, with `.cuda()` in five places. The first of them ends the run on
any other machine.
"""

import torch

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="No CUDA",
    group="start-up",
    says="Torch not compiled with CUDA enabled",
    cause="The device is written into the code, and this machine has no such device.",
    mend='Choose the device once: `pg.device`, or "cuda" only if torch.cuda.is_available().',
    kind="no-cuda",
    env={"CUDA_VISIBLE_DEVICES": ""},
)


def faulty():
    return torch.nn.Linear(2, 2).cuda().weight.device.type  # FAULT: there is no GPU


def fixed():
    device = "cuda" if torch.cuda.is_available() else "cpu"  # MENDED: what is there
    return torch.nn.Linear(2, 2).to(device).weight.device.type
