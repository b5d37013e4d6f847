"""A collective inside the loss.

A contrastive loss wants the features of all ranks. `dist.all_gather` fetches the numbers, but
autograd does not see it: the gradient that should flow back to the other ranks is missing.
"""

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="A collective inside autograd",
    group="silently wrong",
    says="nothing",
    cause="dist.all_gather and dist.all_reduce have no gradient; part of the loss is a constant.",
    mend="Use torch.distributed.nn.functional, and know that it sums the ranks' gradients.",
    kind="no-gradient-through-collective",
    seen_in="fromage#33",
    sanitize=True,
)


def plain_gather(features):
    parts = [torch.empty_like(features) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, features)  # FAULT: comes back without a gradient
    parts[dist.get_rank()] = features
    return torch.cat(parts)


def gather_with_gradient(features):
    return torch.cat(differentiable.all_gather(features))  # MENDED: its backward sums


def train(gather):
    dist.init_process_group("gloo")
    torch.manual_seed(dist.get_rank())
    ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 2))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        features = ddp(torch.randn(8, 4))
        (features @ gather(features).T).logsumexp(1).mean().backward()
        optimizer.step()
    dist.barrier()
    dist.destroy_process_group()
    return ddp.module.weight.grad.norm().item()


def faulty():
    return train(plain_gather)


def fixed():
    return train(gather_with_gradient)
