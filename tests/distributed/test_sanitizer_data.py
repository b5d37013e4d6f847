"""The sanitizer's checks of data, random numbers, checkpoints, the start and speed, on real ranks."""

import os
import random

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

from ddp_helpers import LaunchError, launch, process_group
from ddp_helpers.data import make_eval_loader, make_train_loader

pytestmark = pytest.mark.usefixtures("no_process_left")
SIZE = 48


def numbers(size=SIZE):
    generator = torch.Generator().manual_seed(7)
    return TensorDataset(
        torch.randn(size, 3, generator=generator), torch.randn(size, 1, generator=generator)
    )


def model_and_optimizer(**options):
    torch.manual_seed(0)  # the same model everywhere: that is right
    ddp = DistributedDataParallel(nn.Linear(3, 1), **options)
    return ddp, torch.optim.SGD(ddp.parameters(), lr=0.01)


def fit(ddp, optimizer, batches):
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.mse_loss(ddp(x), y).backward()
        optimizer.step()


def kinds(fn, *args, nprocs=2, **options):
    """The kinds of all findings of a run, serious or not; a run that fails otherwise is an error."""
    try:
        result = launch(fn, nprocs, args=args, sanitize=True, echo=False, timeout=60, **options)
    except LaunchError as error:
        assert error.result.findings, str(error)
        result = error.result
    return {finding.kind for finding in result.findings}


# ---- the order of epochs


def train_epochs(advance, workers=0, epochs=2):
    with process_group():
        data = numbers()
        sampler = DistributedSampler(data)
        loader = DataLoader(data, 8, sampler=sampler, num_workers=workers)
        ddp, optimizer = model_and_optimizer()
        for epoch in range(epochs):
            if advance:
                sampler.set_epoch(epoch)
            fit(ddp, optimizer, loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_that_is_not_advanced(workers):
    assert kinds(train_epochs, False, workers) == {"epoch-not-advanced"}
    assert kinds(train_epochs, True, workers) == set()
