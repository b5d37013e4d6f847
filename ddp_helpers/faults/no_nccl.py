"""nccl on a machine that has none.

The example was written for a server. On a laptop, on macOS or with the CPU build, PyTorch has no
NCCL, and without a GPU it could do nothing anyway.
"""

import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="No NCCL",
    group="start-up",
    says="Distributed package doesn't have NCCL built in",
    cause="nccl needs a CUDA build of PyTorch and a GPU for each rank.",
    mend='Use "gloo" on a CPU, or leave the choice to process_group().',
    kind="no-nccl",
    seen_in="pyskl#79",
)


def faulty():
    dist.init_process_group("nccl")  # FAULT: not on this machine


def fixed():
    dist.init_process_group("gloo")  # MENDED: works on every CPU
    dist.barrier()
    dist.destroy_process_group()
