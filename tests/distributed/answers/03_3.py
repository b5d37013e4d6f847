import itertools

import torch
import torch.distributed as dist
from torch.utils.data import BatchSampler, DistributedSampler


# right
def batches(n, size, seed, epoch, done):
    generator = torch.Generator().manual_seed(seed + epoch)
    order = torch.randperm(n, generator=generator).tolist()
    mine = order[dist.get_rank() :: dist.get_world_size()]
    return [mine[i : i + size] for i in range(done * size, len(mine), size)]


# right
def batches(n, size, seed, epoch, done):
    """A generator of batches."""
    sampler = DistributedSampler(range(n), seed=seed)
    sampler.set_epoch(epoch)
    yield from itertools.islice(BatchSampler(sampler, size, drop_last=False), done, None)


# right
def batches(n, size, seed, epoch, done):
    """A tensor: a row for each batch."""
    torch.manual_seed(1000 * seed + epoch)
    mine = torch.randperm(n).chunk(dist.get_world_size())[dist.get_rank()]
    return mine.view(-1, size)[done:]


# right
def batches(n, size, seed, epoch, done):
    import random

    order = list(range(n))
    random.Random(f"{seed}, {epoch}").shuffle(order)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    step = size * ranks
    return [
        order[start + rank * size : start + (rank + 1) * size]
        for start in range(done * step, n, step)
    ]


# right
def batches(n, size, seed, epoch, done):
    """Tuples of tensors' numbers."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed * 7919 + epoch))
    mine = order[dist.get_rank() :: dist.get_world_size()]
    return tuple(mine.split(size))[done:]


# wrong: 6 batches, an unbroken run has 5 left
def batches(n, size, seed, epoch, done):
    generator = torch.Generator().manual_seed(seed + epoch)
    order = torch.randperm(n, generator=generator).tolist()
    mine = order[dist.get_rank() :: dist.get_world_size()]
    return [mine[i : i + size] for i in range(done, len(mine), size)]


# wrong: other samples than in an unbroken run
def batches(n, size, seed, epoch, done):
    generator = torch.Generator().manual_seed(seed + epoch + done)
    order = torch.randperm(n, generator=generator).tolist()
    mine = order[dist.get_rank() :: dist.get_world_size()]
    return [mine[i : i + size] for i in range(0, len(mine), size)][done:]


# wrong: the epochs 0 and 1 have the same order
def batches(n, size, seed, epoch, done):
    """Always one order."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(n, generator=generator).tolist()
    mine = order[dist.get_rank() :: dist.get_world_size()]
    return [mine[i : i + size] for i in range(done * size, len(mine), size)]


# wrong: the epochs 0 and 1 have the same order
def batches(n, size, seed, epoch, done):
    mine = list(range(n))[dist.get_rank() :: dist.get_world_size()]
    return [mine[i : i + size] for i in range(done * size, len(mine), size)]


# wrong: epoch 0:
def batches(n, size, seed, epoch, done):
    """Each rank mixes on its own."""
    generator = torch.Generator().manual_seed(seed + epoch + 1000 * dist.get_rank())
    order = torch.randperm(n, generator=generator).tolist()
    mine = order[dist.get_rank() :: dist.get_world_size()]
    return [mine[i : i + size] for i in range(done * size, len(mine), size)]


# wrong: epoch 0:
def batches(n, size, seed, epoch, done):
    """Any order, another in each call."""
    order = torch.randperm(n).tolist()
    mine = order[dist.get_rank() :: dist.get_world_size()]
    return [mine[i : i + size] for i in range(done * size, len(mine), size)]


# wrong: epoch 0:
def batches(n, size, seed, epoch, done):
    """Python's hash of a text differs from process to process."""
    generator = torch.Generator().manual_seed(abs(hash(f"{seed}/{epoch}")) % 2**31)
    order = torch.randperm(n, generator=generator).tolist()
    mine = order[dist.get_rank() :: dist.get_world_size()]
    return [mine[i : i + size] for i in range(done * size, len(mine), size)]


# wrong: expected a list of batches, each a list of indices
def batches(n, size, seed, epoch, done):
    generator = torch.Generator().manual_seed(seed + epoch)
    order = torch.randperm(n, generator=generator).tolist()
    mine = order[dist.get_rank() :: dist.get_world_size()]
    return mine[done * size :]


# wrong: going on after 6 steps: 6 batches
def batches(n, size, seed, epoch, done):
    g = torch.Generator().manual_seed(seed + epoch)
    mine = torch.randperm(n, generator=g)[dist.get_rank() :: dist.get_world_size()].tolist()
    all_ = [mine[i : i + size] for i in range(0, len(mine), size)]
    return all_[-(len(all_) - done) :]


# wrong: the order is not shuffled: rank 0 begins with
def batches(n, size, seed, epoch, done):
    mine = list(range(n))[dist.get_rank() :: dist.get_world_size()]
    mine = mine[(seed + epoch) % len(mine) :] + mine[: (seed + epoch) % len(mine)]
    return [mine[i : i + size] for i in range(done * size, len(mine), size)]
