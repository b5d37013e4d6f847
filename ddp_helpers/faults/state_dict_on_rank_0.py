"""The whole state dict is gathered on rank 0 only.

No rank has the whole of a sharded model, so to make a full state dict all ranks must send their
shares: it is a collective, though its name does not say so. Under `if rank == 0` it waits for ever.
"""

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="A full state dict on rank 0 only",
    group="hangs",
    says="nothing",
    cause="Rank 0 gathers the shards for a full state dict, and no other rank sends its own.",
    mend="Make the state dict on all ranks, and let only rank 0 write it.",
    kind="rank-did-not-come",
    timeout=4,
    sanitize=True,
)


def save(everybody):
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    fully_shard(model)
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    state = None
    if everybody or dist.get_rank() == 0:
        state = get_model_state_dict(model, options=options)  # FAULT: a collective on rank 0
    shapes = {name: list(value.shape) for name, value in (state or {}).items()}
    if dist.get_rank() == 0:
        print(shapes)  # here the file would be written
    dist.barrier()
    dist.destroy_process_group()
    return shapes


def faulty():
    return save(everybody=False)


def fixed():
    return save(everybody=True)  # MENDED: all ranks gather, one writes
