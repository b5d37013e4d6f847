"""The forward goes past the wrapper.

DDP prepares its averaging in its own forward. `ddp.module(x)`, or a method such as
`ddp.module.loss(x)`, computes the same numbers and averages nothing: each rank trains alone.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="The forward skips DDP",
    group="silently wrong",
    says="nothing",
    cause="A forward through `ddp.module` averages no gradients, and the ranks drift apart.",
    mend="Call the wrapper, `ddp(x)`; let forward() of the model lead to other methods.",
    kind="forward-skipped-ddp",
    seen_in="trl#7245",
    sanitize=True,
)


def train(loss_of):
    dist.init_process_group("gloo")
    ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    x = torch.ones(8, 4) * (1 + dist.get_rank())
    for _ in range(3):
        optimizer.zero_grad()
        loss_of(ddp, x).backward()
        optimizer.step()
    dist.barrier()
    dist.destroy_process_group()
    return ddp.module.weight[0, 0].item()


def faulty():
    return train(lambda ddp, x: ddp.module(x).mean())  # FAULT: past the wrapper


def fixed():
    return train(lambda ddp, x: ddp(x).mean())  # MENDED: through it
