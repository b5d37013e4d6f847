import torch
import torch.distributed as dist


# right
def average_losses(losses):
    means = torch.stack(losses)
    dist.all_reduce(means)
    return means / dist.get_world_size()


# right
def average_losses(losses):
    means = torch.tensor([float(loss) for loss in losses])
    dist.all_reduce(means)
    return means.div_(dist.get_world_size())


# right
def average_losses(losses):
    mine = torch.cat([loss.view(1) for loss in losses])
    rows = torch.empty(dist.get_world_size() * len(losses))
    dist.all_gather_into_tensor(rows, mine)
    return rows.view(-1, len(losses)).mean(dim=0)


# right
def average_losses(losses):
    mine = torch.stack(losses)
    rows = [torch.zeros_like(mine) for _ in range(dist.get_world_size())]
    job = dist.all_gather(rows, mine, async_op=True)
    job.wait()
    return sum(rows) / len(rows)


# wrong: at most 2; you: 100
def average_losses(losses):
    averages = []
    for loss in losses:
        mean = loss.clone()
        dist.all_reduce(mean)
        averages.append(mean / dist.get_world_size())
    return torch.stack(averages)


# wrong: 2 times too large
def average_losses(losses):
    means = torch.stack(losses)
    dist.all_reduce(means)
    return means


# wrong: the result is
def average_losses(losses):
    return torch.stack(losses)


# wrong: the result should be a tensor
def average_losses(losses):
    means = torch.stack(losses)
    dist.all_reduce(means)
    return (means / dist.get_world_size()).tolist()


# wrong: has the shape (), expected (100,)
def average_losses(losses):
    """One number for all steps."""
    mean = torch.stack(losses).mean()
    dist.all_reduce(mean)
    return mean / dist.get_world_size()


# wrong: on rank 1 of 2, the result is
def average_losses(losses):
    """Rank 0 alone."""
    means = torch.stack(losses)
    dist.reduce(means, dst=0)
    return means / dist.get_world_size()


# wrong: at most 2; you: 100
def average_losses(losses):
    """Not cloned: what was given is changed."""
    jobs = [dist.all_reduce(loss, async_op=True) for loss in losses]
    for job in jobs:
        job.wait()
    return torch.stack(losses) / dist.get_world_size()


# wrong: the result is
class Remembers:
    """The first result again and again."""

    def __init__(self):
        self.known = None

    def __call__(self, losses):
        if self.known is None:
            means = torch.stack(losses)
            dist.all_reduce(means)
            self.known = means / dist.get_world_size()
        return self.known


average_losses = Remembers()


# wrong: nearly right: is it rounded
def average_losses(losses):
    mine = torch.stack(losses).bfloat16()
    dist.all_reduce(mine)
    return mine.float() / dist.get_world_size()
