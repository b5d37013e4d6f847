import torch
import torch.distributed as dist
from torch import nn


# right
def prepare(seed):
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    torch.manual_seed(seed + 1 + dist.get_rank())
    return model.weight.detach(), torch.rand(4)


# right
def prepare(seed):
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    noise = torch.rand(dist.get_world_size(), 4)
    return [model.weight, noise[dist.get_rank()]]


# right
def prepare(seed: int):
    mine = torch.Generator().manual_seed(1_000_003 * seed + dist.get_rank())
    torch.manual_seed(seed)
    return nn.Linear(3, 2).weight.data, torch.randn(4, generator=mine)


# right
def prepare(seed):
    """Rank 0's weight for all."""
    torch.manual_seed(seed * dist.get_world_size() + dist.get_rank())
    model = nn.Linear(3, 2)
    dist.broadcast(model.weight.data, src=0)
    return model.weight.detach().clone(), torch.rand(4)


# right
def prepare(seed):
    """Python's random numbers, as a list."""
    import random

    torch.manual_seed(seed)
    weight = nn.Linear(3, 2).weight.detach()
    dice = random.Random(seed * 1000 + dist.get_rank())
    return weight, [dice.random() for _ in range(4)]


# wrong: the ranks 0 and 1 start with different weights
def prepare(seed):
    torch.manual_seed(seed + dist.get_rank())
    model = nn.Linear(3, 2)
    return model.weight.detach(), torch.rand(4)


# wrong: same seed: the noise is not the same again
def prepare(seed):
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    torch.seed()
    return model.weight.detach(), torch.rand(4)


# wrong: another seed: the noise is the same
def prepare(seed):
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    torch.manual_seed(dist.get_rank())
    return model.weight.detach(), torch.rand(4)


# wrong: another seed: the weight is the same
def prepare(seed):
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    torch.manual_seed(seed + dist.get_rank())
    return model.weight.detach(), torch.rand(4)


# wrong: some draw the same numbers
def prepare(seed):
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    return model.weight.detach(), torch.rand(4) + dist.get_rank()


# wrong: expected the weight and four numbers
def prepare(seed):
    """Rank 1 with this seed draws what rank 0 draws with the next."""
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    torch.manual_seed(seed + dist.get_rank())
    return model.weight.detach()


# wrong: expected the model's weight, a tensor of 2 x 3, got Linear
def prepare(seed):
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    torch.manual_seed(seed ^ dist.get_rank())
    return model, torch.rand(4)


# wrong: some draw the same numbers
def prepare(seed):
    torch.manual_seed(seed)
    weight = nn.Linear(3, 2).weight.detach()
    return weight, torch.full((4,), float(seed + dist.get_rank()))


# wrong: the same seed in the next run
def prepare(seed):
    import os

    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    torch.manual_seed(seed + os.getpid())
    return model.weight.detach(), torch.rand(4)


# wrong: some draw the same numbers
def prepare(seed):
    torch.manual_seed(seed)
    model = nn.Linear(3, 2)
    return model.weight.detach(), torch.rand(4).roll(dist.get_rank())
