"""A torch that lacks a private name: the run goes on, and a note says what is left out."""

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from ddp_helpers import launch, process_group, sanitize, torch_private


def train():
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(32, 4), torch.arange(32) % 3)
    with process_group("gloo") as pg:
        ddp = DistributedDataParallel(nn.Linear(4, 3))
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        sampler = DistributedSampler(data, pg.world_size, pg.rank)
        loader = DataLoader(data, 8, sampler=sampler, num_workers=1, persistent_workers=True)
        for epoch in range(2):
            sampler.set_epoch(epoch)
            for x, y in loader:
                optimizer.zero_grad()
                cross_entropy(ddp(x), y).backward()
                optimizer.step()
        total = torch.ones(1)
        dist.all_reduce(total)
        assert total.item() == pg.world_size
        return ddp.module.weight.detach()


def train_without(name):
    private = getattr(torch_private, name)
    for part in private if isinstance(private, tuple) else (private,):
        object.__setattr__(part, "path", "_no_such_name")
    with sanitize() as session:
        weight = train()
    return weight, [(finding.kind, finding.cause) for finding in session.findings]


@pytest.mark.usefixtures("no_process_left")
@pytest.mark.parametrize(
    ("name", "lost"),
    [
        ("DEFAULT_STORE", "can't compare anything"),
        ("LOADER_ITERATOR", "DataLoaders are not followed"),
        ("NEXT_INDEX", "DataLoaders are not followed"),
        ("RESET", "DataLoaders are not followed"),
        ("WORKER_ITERATOR", "random numbers of workers are not compared"),
        ("FIND_TENSORS", "backwards of DDP models are not followed"),
        ("NOT_COMPILED", "forwards of DDP models are not followed"),
        ("SAVED_DATA", "losses over unequal batches are not compared"),
        ("CREATE_STORE", None),
        ("GROUPS", None),
        ("FETCHERS", "random numbers of workers are not compared"),
        ("PLAIN_TENSORS", None),
    ],
)
def test_a_training_goes_on_without_a_name(name, lost):
    (plain, _) = launch(train, 2, echo=False, timeout=60).values
    (weight, told), _ = launch(train_without, 2, args=(name,), echo=False, timeout=60).values
    assert torch.equal(weight, plain)
    if name != "SAVED_DATA":  # an old torch lacks it anyway
        told = [(kind, cause) for kind, cause in told if "SavedTensor" not in cause]
    missing = [cause for kind, cause in told if kind == "not-in-this-torch"]
    assert len(missing) == len(told) == bool(lost)
    assert all(lost in cause and "has no" in cause for cause in missing)
