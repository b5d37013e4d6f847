"""The optimizer is made before fully_shard.

fully_shard puts new parameters, this rank's shards, in the place of the old ones. An optimizer that
was made before keeps the old ones, which nothing uses any more: it steps, and the model stays as
it was.
"""

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="The optimizer made before fully_shard",
    group="silently wrong",
    says="nothing",
    cause="fully_shard replaces the parameters, and the optimizer steps the old ones.",
    mend="Make the optimizer after `fully_shard(model)`, of what model.parameters() gives then.",
    kind="parameters-replaced",
    sanitize=True,
)


def train(shard_first):
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    if shard_first:
        fully_shard(model)  # MENDED: the optimizer gets the shards
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    if not shard_first:
        fully_shard(model)  # FAULT: the optimizer has what the model had before
    before = model.weight.full_tensor().sum().item()
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(8, 4)).mean().backward()
        optimizer.step()
    moved = model.weight.full_tensor().sum().item() - before
    dist.barrier()
    dist.destroy_process_group()
    return moved


def faulty():
    return train(shard_first=False)


def fixed():
    return train(shard_first=True)
