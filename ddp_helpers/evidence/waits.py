"""Which collective a rank waits in, read from its Python stack."""

from __future__ import annotations

from collections.abc import Sequence

from ddp_helpers.evidence.records import Frame

WAITING_FUNCTIONS = (
    "all_reduce all_gather all_gather_into_tensor all_gather_object all_to_all all_to_all_single "
    "barrier broadcast broadcast_object_list gather gather_object reduce reduce_scatter "
    "reduce_scatter_tensor scatter scatter_object_list send recv monitored_barrier "
    "init_process_group new_group"
).split()
DDP_FILE = "torch/nn/parallel/distributed.py"
DDP_WAITS = {
    "__init__": "DistributedDataParallel(...)",
    "_pre_forward": "the forward of DDP",  # it sends buffers, and agrees on buckets
}


# a rank that waits there has begun to start its group, and not all others have
TORCH_MEETS, WE_MEET = "torch/distributed/rendezvous.py", "ddp_helpers/group/devices.py"


def waiting_in(stack: Sequence[Frame]) -> str | None:
    """The collective that a rank waits in, from its Python stack (outermost line first)."""
    if any(frame.function == "cleanup_distributed" for frame in stack):
        return "the clean-up of its process group"
    return next(filter(None, map(_call, stack)), None)


def _call(frame: Frame) -> str | None:
    if "torch/distributed/" in frame.filename and frame.function in WAITING_FUNCTIONS:
        return frame.function
    agrees = frame.filename.endswith(WE_MEET) and frame.function == "agree"
    if agrees or frame.filename.endswith(TORCH_MEETS):
        return "init_process_group"
    if frame.filename.endswith(DDP_FILE):
        return DDP_WAITS.get(frame.function)
    if frame.function == "backward" and frame.filename.endswith("torch/_tensor.py"):
        return "backward"
    return None
