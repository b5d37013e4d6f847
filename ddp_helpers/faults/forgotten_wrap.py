"""The model is never wrapped.

Everything is there: the process group, the sampler, the loop. Only the line with
DistributedDataParallel is missing, or wraps another model than the one that is trained.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="The forgotten wrap",
    group="silently wrong",
    says="nothing",
    cause="The optimizer steps a model that no DDP wraps, so no gradient is averaged.",
    mend="Wrap the model, and use what comes back: `model = DistributedDataParallel(model)`.",
    kind="unwrapped-model",
    sanitize=True,
)


def train(wrap):
    dist.init_process_group("gloo")
    model = wrap(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.ones(8, 4) * (1 + dist.get_rank())
    for _ in range(3):
        optimizer.zero_grad()
        model(x).mean().backward()
        optimizer.step()
    weight = sum(p.sum().item() for p in model.parameters())
    dist.barrier()
    dist.destroy_process_group()
    return weight


def faulty():
    return train(wrap=lambda model: model)  # FAULT: a plain model


def fixed():
    return train(wrap=torch.nn.parallel.DistributedDataParallel)  # MENDED
