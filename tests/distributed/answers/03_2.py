import torch
import torch.distributed as dist
from torch.utils.data import DistributedSampler


# right
def my_share(n):
    return list(range(dist.get_rank(), n, dist.get_world_size()))


# right
def my_share(n):
    return range(dist.get_rank(), n, dist.get_world_size())


# right
def my_share(n: int) -> torch.Tensor:
    return torch.arange(n).tensor_split(dist.get_world_size())[dist.get_rank()]


# right
def my_share(n):
    rank, size = dist.get_rank(), dist.get_world_size()
    return [i for i in range(n) if i % size == rank]


# right
def my_share(n):
    rank, size = dist.get_rank(), dist.get_world_size()
    return [*range(rank * n // size, (rank + 1) * n // size)]


# right
def my_share(n):
    import numpy as np

    return np.array_split(np.arange(n), dist.get_world_size())[dist.get_rank()]


# right
def my_share(n):
    """Numbers of numpy in a list."""
    import numpy as np

    return list(np.arange(n)[dist.get_rank() :: dist.get_world_size()])


# right
def my_share(n):
    size = dist.get_world_size()
    return (i * size + dist.get_rank() for i in range(n) if i * size + dist.get_rank() < n)


# wrong: with n=11 on 2 ranks, sample 0 is evaluated 2 times
def my_share(n):
    return list(DistributedSampler(range(n), shuffle=False))


# wrong: with n=11 on 2 ranks, the samples [10] are never evaluated
def my_share(n):
    return list(DistributedSampler(range(n), shuffle=False, drop_last=True))


# wrong: the shares have [3, 3, 5] samples: all wait for the largest
def my_share(n):
    """The last one takes the rest."""
    rank, size = dist.get_rank(), dist.get_world_size()
    each = n // size
    return list(range(rank * each, n if rank == size - 1 else (rank + 1) * each))


# wrong: the shares have [3, 3, 1] samples
def my_share(n):
    each = -(-n // dist.get_world_size())
    return list(range(n))[dist.get_rank() * each :][:each]


# wrong: the shares have [12, 0] samples
def my_share(n):
    return list(range(n)) if dist.get_rank() == 0 else []


# wrong: with n=12, expected a list of indices, got 6
def my_share(n):
    return len(range(dist.get_rank(), n, dist.get_world_size()))


# wrong: sample 12 does not exist
def my_share(n):
    return [i + 1 for i in range(dist.get_rank(), n, dist.get_world_size())]


# wrong: with n=12 on 3 ranks, sample 2 is evaluated 2 times
def my_share(n):
    return list(range(dist.get_rank(), n, 2))
