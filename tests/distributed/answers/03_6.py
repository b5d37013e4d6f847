import torch
import torch.distributed as dist


# right
def weighted_loss(losses):
    count = torch.tensor(float(len(losses)))
    dist.all_reduce(count)
    return losses.sum() * dist.get_world_size() / count


# right
def weighted_loss(losses):
    counts = [None] * dist.get_world_size()
    dist.all_gather_object(counts, losses.numel())
    return losses.mean() * len(losses) / (sum(counts) / len(counts))


# right
def weighted_loss(losses):
    rows = [torch.zeros(1, dtype=torch.long) for _ in range(dist.get_world_size())]
    dist.all_gather(rows, torch.tensor([losses.shape[0]]))
    average = torch.cat(rows).float().mean()
    return (losses / average).sum()


# right
def weighted_loss(losses):
    """A loop, in float64."""
    count = torch.tensor(losses.size(0), dtype=torch.float64)
    dist.all_reduce(count, op=dist.ReduceOp.SUM)
    weight = dist.get_world_size() / count.item()
    total = losses.new_zeros(())
    for loss in losses:
        total = total + weight * loss
    return total


# wrong: 2 times too small
def weighted_loss(losses):
    count = torch.tensor(float(len(losses)))
    dist.all_reduce(count)
    return losses.sum() / count


# wrong: the gradient of weight is
def weighted_loss(losses):
    return losses.sum()


# wrong: 2 times too small
def weighted_loss(losses):
    both = torch.stack([losses.sum(), torch.tensor(float(len(losses)))])
    dist.all_reduce(both)
    return both[0] / both[1]


# wrong: should be a tensor, but it is the number
def weighted_loss(losses):
    count = torch.tensor(float(len(losses)))
    dist.all_reduce(count)
    return (losses.sum() * dist.get_world_size() / count).item()


# wrong: of the shape (5,), expected one number
def weighted_loss(losses):
    count = torch.tensor(float(len(losses)))
    dist.all_reduce(count)
    return losses * dist.get_world_size() / count


# wrong: .item(), .detach() or torch.tensor() has cut it off
def weighted_loss(losses):
    count = torch.tensor(float(len(losses)))
    dist.all_reduce(count)
    return (losses.sum() * dist.get_world_size() / count).detach()


# wrong: the gradient of weight is
def weighted_loss(losses):
    """The largest number of samples, as padding would have it."""
    count = torch.tensor(float(len(losses)))
    dist.all_reduce(count, op=dist.ReduceOp.MAX)
    return losses.sum() / count


# wrong: backward through the graph a second time
def weighted_loss(losses):
    count = torch.tensor(float(len(losses)))
    dist.all_reduce(count)
    (losses.sum() * dist.get_world_size() / count).backward()
    return losses.mean()
