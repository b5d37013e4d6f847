"""What every function of torch.distributed ends in: methods of ProcessGroup."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from types import FrameType

# a collective, and which of its arguments holds what must agree between ranks;
# every function of torch.distributed ends in one of them, however it was imported
INPUTS: dict[str, int | None] = {
    "allreduce": 0,
    "allreduce_coalesced": 0,
    "broadcast": 0,
    "reduce": 0,
    "allgather": 1,
    "all_gather_single": 1,
    "_allgather_base": 1,
    "allgather_coalesced": 1,
    "allgather_into_tensor_coalesced": 1,
    "all_gather_single_coalesced": 1,
    "gather": 1,
    "scatter": 0,
    "reduce_scatter": 0,
    "reduce_scatter_single": 0,
    "_reduce_scatter_base": 0,
    "reduce_scatter_tensor_coalesced": 0,
    "reduce_scatter_single_coalesced": 0,
    "alltoall": None,
    "alltoall_base": None,
    "all_to_all_single": None,
    "barrier": None,
    "monitored_barrier": None,
}
# what one rank sends to one other
POINT_TO_POINT = ("send", "recv", "recv_anysource")


def options_in(arguments: Iterable[object]) -> object | None:
    """The one of a method's arguments that holds its options (reduceOp, rootRank, ...)."""
    return next((a for a in arguments if _is_options(a)), None)


def _is_options(value: object) -> bool:
    return hasattr(value, "asyncOp") or type(value).__name__.endswith("Options")


def is_asynchronous(options: object | None) -> bool:
    """True if the function of torch.distributed that we stand in was called with async_op=True."""
    if options is None or hasattr(options, "asyncOp"):
        return bool(getattr(options, "asyncOp", False))
    # up to torch 2.6 not all options tell: torch's function above us knows
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and "async_op" not in frame.f_code.co_varnames:
        frame = frame.f_back
    return frame is not None and bool(frame.f_locals["async_op"])
