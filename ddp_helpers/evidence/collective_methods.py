"""What every function of torch.distributed ends in: methods of ProcessGroup."""

from __future__ import annotations

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
