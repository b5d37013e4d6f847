import random

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler


# right
def walk(dataset, epochs):
    sampler = DistributedSampler(dataset, shuffle=True)
    loader = DataLoader(dataset, batch_size=4, sampler=sampler)
    seen = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        seen.append([int(x) for (batch,) in loader for x in batch])
    return seen


# right
def walk(dataset, epochs):
    """Without a sampler: the same permutation on all ranks, and every n-th of it."""
    seen = []
    for epoch in range(epochs):
        order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(epoch))
        mine = order[dist.get_rank() :: dist.get_world_size()]
        seen.append([int(dataset[i][0]) for i in mine])
    return seen


# right
def walk(dataset, epochs):
    def one(epoch):
        sampler = DistributedSampler(dataset, seed=100 + epoch)
        return [x.item() for (batch,) in DataLoader(dataset, 3, sampler=sampler) for x in batch]

    return [one(epoch) for epoch in range(epochs)]


# right
def walk(dataset, epochs):
    """As tensors."""
    sampler = DistributedSampler(dataset, shuffle=True)
    loader = DataLoader(dataset, batch_size=4, sampler=sampler)
    seen = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        seen.append(torch.cat([batch for (batch,) in loader]))
    return seen


# right
def walk(dataset, epochs):
    """The samples as their tensors without dimensions."""
    sampler = DistributedSampler(dataset)
    loader = DataLoader(dataset, batch_size=1, sampler=sampler)
    seen = {}
    for epoch in range(epochs):
        sampler.set_epoch(epoch + 17)
        seen[epoch] = [batch.squeeze() for (batch,) in loader]
    return list(seen.values())


# wrong: in epoch 0, the samples [0, 1, 2, 3] are seen more than once
def walk(dataset, epochs):
    loader = DataLoader(dataset, batch_size=4, shuffle=True)
    return [[int(x) for (batch,) in loader for x in batch] for _ in range(epochs)]


# wrong: the same order in the epochs 0 and 1
def walk(dataset, epochs):
    sampler = DistributedSampler(dataset, shuffle=True)
    loader = DataLoader(dataset, batch_size=4, sampler=sampler)
    seen = []
    for epoch in range(epochs):
        sampler.set_epoch(0)
        seen.append([int(x) for (batch,) in loader for x in batch])
    return seen


# wrong: are seen more than once
def walk(dataset, epochs):
    """Another order on each rank: samples are seen twice."""
    sampler = DistributedSampler(dataset, shuffle=True)
    loader = DataLoader(dataset, batch_size=4, sampler=sampler)
    seen = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch * 10 + dist.get_rank())
        seen.append([int(x) for (batch,) in loader for x in batch])
    return seen


# right
def walk(dataset, epochs):
    """The same share each time, mixed anew: worse, but all that is asked."""
    sampler = DistributedSampler(dataset, shuffle=False)
    mine = [int(dataset[i][0]) for i in sampler]
    return [random.sample(mine, len(mine)) for _ in range(epochs)]


# wrong: samples are not seen
def walk(dataset, epochs):
    sampler = DistributedSampler(dataset, shuffle=True)
    loader = DataLoader(dataset, batch_size=4, sampler=sampler, drop_last=True)
    seen = []
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        seen.append([int(x) for (batch,) in loader for x in batch])
    return seen


# wrong: should return 3 lists, one for each epoch
def walk(dataset, epochs):
    sampler = DistributedSampler(dataset, shuffle=True)
    loader = DataLoader(dataset, batch_size=4, sampler=sampler)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        seen = [int(x) for (batch,) in loader for x in batch]
    return seen


# wrong: 'DataLoader' object has no attribute 'set_epoch'
def walk(dataset, epochs):
    sampler = DistributedSampler(dataset, shuffle=True)
    loader = DataLoader(dataset, batch_size=4, sampler=sampler)
    seen = []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        seen.append([int(x) for (batch,) in loader for x in batch])
    return seen


# wrong: the same order in the epochs 0 and 2
def walk(dataset, epochs):
    sampler = DistributedSampler(dataset)
    out = []
    for e in range(epochs):
        sampler.set_epoch(e % 2)
        out.append([int(dataset[i][0]) for i in sampler])
    return out
