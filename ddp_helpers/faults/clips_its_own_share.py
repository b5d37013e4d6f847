"""Each rank clips by the norm of its own share.

Under FSDP a rank has a part of each gradient. Taken out of its DTensor, the part's norm is that of
this rank alone, so every rank scales by a factor of its own, and the whole points elsewhere.
"""

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import clip_grad_norm_

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Clipped by the norm of one share",
    group="silently wrong",
    says="nothing",
    cause="Each rank clips its share of the gradients by the norm of that share, not of the whole.",
    mend="Call `clip_grad_norm_(model.parameters(), ...)` on the sharded parameters themselves.",
    kind="clipped-by-own-norm",
    sanitize=True,
)


def local(model):
    for parameter in model.parameters():
        part = parameter.to_local().detach()
        part.grad = parameter.grad.to_local()
        yield part


def train(clip):
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(dist.get_rank())
    for _ in range(3):
        optimizer.zero_grad()
        (model(torch.randn(8, 4)) * torch.tensor([1.0, 9.0])).square().mean().backward()
        clip(model)
        optimizer.step()
    gradient = model.weight.grad.full_tensor().norm(dim=1).tolist()
    dist.barrier()
    dist.destroy_process_group()
    return gradient


def faulty():
    return train(lambda model: clip_grad_norm_(local(model), 0.1))  # FAULT: plain tensors


def fixed():
    return train(lambda model: clip_grad_norm_(model.parameters(), 0.1))  # MENDED: DTensors
