"""What the published errors are put into: a plain training on two ranks, right as it is."""

import contextlib

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

FEATURES, CLASSES = 6, 3


@contextlib.contextmanager
def ranks():
    """A process group; yields this rank, and how many there are."""
    dist.init_process_group("gloo")
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def network(*middle):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(FEATURES, 8), *middle, nn.ReLU(), nn.Linear(8, CLASSES))


def wrapped(net=None, **options):
    """The network under DDP, and an optimizer for it."""
    ddp = DistributedDataParallel(network() if net is None else net, **options)
    return ddp, torch.optim.SGD(ddp.parameters(), lr=0.1)


def batches(**options):
    """A loader in which each rank has its own share of 48 samples, four at a time."""
    draws = torch.Generator().manual_seed(7)
    x = torch.randn(48, FEATURES, generator=draws)
    data = TensorDataset(x, torch.randint(CLASSES, (48,), generator=draws))
    return DataLoader(data, 4, sampler=DistributedSampler(data), **options)


def fit(model, optimizer, data=None, clear=True, before_step=lambda: None):
    for x, y in data or batches():
        if clear:
            optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        before_step()
        optimizer.step()


def right():
    """Nothing is wrong with it: no tool may say a word."""
    with ranks():
        fit(*wrapped())
