"""A layer's output is not summed up over the ranks.

In tensor parallel the second of two layers has some of the input features on each rank, so each
rank makes a summand of the output. Nobody adds them up: to_local() gives this rank's summand.
"""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="A summand taken for the sum",
    group="silently wrong",
    says="nothing",
    cause="Each rank has a summand of a layer's output, and goes on with it as if it were all.",
    mend="`output.full_tensor()`, or RowwiseParallel(), which adds the summands up.",
    kind="summand-taken-for-sum",
    sanitize=True,
)


def train(finish):
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    torch.manual_seed(0)
    up, down = torch.randn(6, 4) / 2, torch.randn(3, 6) / 2
    up = torch.nn.Parameter(distribute_tensor(up, mesh, [Shard(0)]))
    down = torch.nn.Parameter(distribute_tensor(down, mesh, [Shard(1)]))
    optimizer = torch.optim.SGD([up, down], lr=0.1)
    x = distribute_tensor(torch.randn(5, 4), mesh)  # whole on each rank
    for _ in range(3):
        optimizer.zero_grad()
        output = torch.nn.functional.linear(torch.relu(torch.nn.functional.linear(x, up)), down)
        loss = (finish(output) - 1).square().mean()
        loss.backward()
        optimizer.step()
    dist.barrier()
    dist.destroy_process_group()
    return loss.item()


def faulty():
    return train(lambda output: output.to_local())  # FAULT: a summand on each rank


def fixed():
    return train(lambda output: output.full_tensor())  # MENDED: their sum, on all ranks
