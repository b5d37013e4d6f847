"""A collective that nobody waits for.

The gradients are averaged with async_op=True, and the optimizer steps at once. What it finds is the
rank's own gradient, the sum, or something between, as the network likes.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="An asynchronous call without a wait",
    group="silently wrong",
    says="nothing",
    cause="all_reduce(async_op=True) returns at once, and its result is used before it is there.",
    mend="Keep what it returns, and call `.wait()` before the tensor is used.",
    kind="async-not-waited",
    sanitize=True,
)


def train(waits):
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.ones(8, 4) * (1 + dist.get_rank())
    for _ in range(3):
        optimizer.zero_grad()
        (model(x).mean() / dist.get_world_size()).backward()
        calls = [dist.all_reduce(p.grad, async_op=True) for p in model.parameters()]
        if waits:
            for call in calls:
                call.wait()  # MENDED: now the sums are there
        optimizer.step()  # FAULT: perhaps before
    weight = model.weight[0, 0].item()
    dist.barrier()
    dist.destroy_process_group()
    return weight


def faulty():
    return train(waits=False)


def fixed():
    return train(waits=True)
