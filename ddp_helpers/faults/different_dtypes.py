"""One rank speaks float64.

A value came out of NumPy on one rank, and NumPy's default is float64. The number of elements fits,
the number of bytes does not.
"""

import os

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Different dtypes",
    group="hangs",
    says="SIGABRT",
    cause="A collective needs the same dtype on every rank, and one brings another.",
    mend="Say the dtype where the tensor is made: `torch.tensor(x, dtype=torch.float32)`.",
    kind="different-dtype",
    sanitize=True,
)


def add(value):
    dist.init_process_group("gloo")
    dist.all_reduce(value)
    dist.barrier()
    dist.destroy_process_group()
    return value.sum().item()


def faulty():
    dtype = torch.float64 if os.environ["RANK"] == "1" else torch.float32
    return add(torch.ones(4, dtype=dtype))  # FAULT: float64 on rank 1


def fixed():
    return add(torch.ones(4, dtype=torch.float32))  # MENDED
