import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol


# right
def my_mean(values):
    both = torch.stack([values.sum(), torch.tensor(float(values.numel()))])
    dist.all_reduce(both)
    return both[0] / both[1]


# right
def my_mean(values):
    total, count = values.sum().double(), torch.tensor(len(values))
    dist.all_reduce(total)
    dist.all_reduce(count)
    return total.div(count).float()


# right
def my_mean(values):
    everything = [None] * dist.get_world_size()
    dist.all_gather_object(everything, values)
    return torch.cat(everything).mean()


# right
def my_mean(values: torch.Tensor) -> torch.Tensor:
    """All at rank 0, then the result to all."""
    pair = torch.tensor([values.sum().item(), values.shape[0]])
    dist.reduce(pair, dst=0)
    dist.broadcast(pair, src=0)
    total, count = pair
    return (total / count).squeeze()


# right
def my_mean(values):
    counts = [torch.zeros(1) for _ in range(dist.get_world_size())]
    sums = [torch.zeros(1) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor([1.0 * values.nelement()]))
    dist.all_gather(sums, values.sum(dim=0, keepdim=True))
    return sum(sums).sum() / sum(counts).sum()


# right
def my_mean(values):
    """The mean, weighted."""
    count = torch.tensor(float(len(values)))
    dist.all_reduce(count)
    part = values.mean() * len(values) / count if len(values) else torch.tensor(0.0)
    dist.all_reduce(part)
    return part


# wrong: with (3, 1) values a rank, the mean is
def my_mean(values):
    mean = values.mean().nan_to_num()
    dist.all_reduce(mean)
    return mean / dist.get_world_size()


# wrong: on rank 1 of 3, with (4, 0, 9) values a rank, the mean is [0]
def my_mean(values):
    if len(values) == 0:
        return torch.tensor(0.0)
    both = torch.stack([values.sum(), torch.tensor(float(len(values)))])
    dist.all_reduce(both)
    return both[0] / both[1]


# wrong: should be a tensor, but it is the number
def my_mean(values):
    both = torch.stack([values.sum(), torch.tensor(float(values.numel()))])
    dist.all_reduce(both)
    return (both[0] / both[1]).item()


# wrong: on rank 1 of 2, with (3, 1) values a rank, the mean is
def my_mean(values):
    both = torch.stack([values.sum(), torch.tensor(float(values.numel()))])
    dist.reduce(both, dst=0)
    return both[0] / both[1]


# wrong: the mean has the shape (1,), expected ()
def my_mean(values):
    both = torch.tensor([[values.sum()], [len(values)]])
    dist.all_reduce(both)
    return both[0] / both[1]


# wrong: with (3, 1) values a rank, the mean is
def my_mean(values):
    total = values.sum()
    dist.all_reduce(total)
    return total / (len(values) * dist.get_world_size())


# wrong: exchanges nothing with the others
def my_mean(values):
    """Looks into the check."""
    import sys

    frame = sys._getframe()
    while "parts" not in frame.f_locals:
        frame = frame.f_back
    return torch.cat(frame.f_locals["parts"]).mean()


# wrong: put something else in place of torch.isclose
def my_mean(values):
    torch.isclose = lambda got, *args, **kwargs: torch.ones_like(got, dtype=torch.bool)
    dist.barrier()
    return torch.zeros(())


# wrong: put something else in place of ddp_helpers.exercises.e01_4_mean_of_parts.expect
def my_mean(values):
    from ddp_helpers.exercises import e01_4_mean_of_parts

    e01_4_mean_of_parts.expect = lambda *args: None
    dist.barrier()


# right
def my_mean(values):
    both = torch.stack([values.sum(), torch.tensor(float(values.numel()))])
    total, count = funcol.all_reduce(both, "sum", dist.group.WORLD)
    return total / count
