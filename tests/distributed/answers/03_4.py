import torch
import torch.distributed as dist


# right
def train(losses, limit, step):
    for number, loss in enumerate(losses, start=1):
        step()
        mean = torch.tensor(float(loss))
        dist.all_reduce(mean)
        if mean / dist.get_world_size() < limit:
            return number
    return len(losses)


# right
def train(losses, limit, step):
    made = 0
    while made < len(losses):
        step()
        made += 1
        everything = [None] * dist.get_world_size()
        dist.all_gather_object(everything, float(losses[made - 1]))
        if sum(everything) / len(everything) < limit:
            break
    return made


# right
def train(losses, limit, step):
    """Rank 0 decides, and tells the others."""
    number = 0
    for number, loss in enumerate(losses, 1):
        step()
        total = torch.as_tensor(loss, dtype=torch.float64).clone()
        dist.reduce(total, dst=0)
        stop = torch.tensor(int(total.item() < limit * dist.get_world_size()))
        dist.broadcast(stop, src=0)
        if stop:
            break
    return number


# right
def mean_of(value):
    value = torch.tensor([value], dtype=torch.float32)
    dist.all_reduce(value)
    return (value / dist.get_world_size()).item()


class Train:
    def __call__(self, losses, limit, step):
        self.steps = torch.tensor(0)
        for loss in losses:
            step()
            self.steps += 1
            if mean_of(loss) < limit:
                return self.steps
        return self.steps


train = Train()


# wrong: the ranks stopped too early
def train(losses, limit, step):
    for number, loss in enumerate(losses, start=1):
        step()
        lowest = torch.tensor(float(loss))
        dist.all_reduce(lowest, op=dist.ReduceOp.MIN)
        if lowest < limit:
            return number
    return len(losses)


# wrong: all losses are sent before the first step
def train(losses, limit, step):
    """All the averages in front of the first step."""
    means = torch.tensor(losses)
    dist.all_reduce(means)
    means /= dist.get_world_size()
    for number, mean in enumerate(means, start=1):
        step()
        if mean < limit:
            return number
    return len(losses)


# wrong: but called step()
def train(losses, limit, step):
    for number, loss in enumerate(losses, start=1):
        mean = torch.tensor(float(loss))
        dist.all_reduce(mean)
        if mean / dist.get_world_size() < limit:
            return number
        step()
    return len(losses)


# wrong: but called step()
def train(losses, limit, step):
    for number, loss in enumerate(losses):
        step()
        mean = torch.tensor(float(loss))
        dist.all_reduce(mean)
        if mean / dist.get_world_size() < limit:
            return number
    return len(losses)


# wrong: the ranks stopped too late
def train(losses, limit, step):
    """The sum, not the average."""
    for number, loss in enumerate(losses, start=1):
        step()
        total = torch.tensor(float(loss))
        dist.all_reduce(total)
        if total < limit:
            return number
    return len(losses)


# wrong: the ranks stopped too early
def train(losses, limit, step):
    """Rank 0's own loss decides."""
    for number, loss in enumerate(losses, start=1):
        step()
        mine = torch.tensor(float(loss))
        dist.broadcast(mine, src=0)
        if mine < limit:
            return number
    return len(losses)


# wrong: returned None, but called step()
def train(losses, limit, step):
    """The result of the last step is not returned where nothing stops it."""
    for number, loss in enumerate(losses, start=1):
        step()
        mean = torch.tensor(float(loss))
        dist.all_reduce(mean)
        if mean / dist.get_world_size() < limit:
            return number


# wrong: the ranks stopped too late
def train(losses, limit, step):
    """At the end, never before it."""
    for _ in losses:
        step()
    return len(losses)


# wrong: but called step()
def train(losses, limit, step):
    """Two steps in one."""
    for number, loss in enumerate(losses, start=1):
        step()
        step()
        mean = torch.tensor(float(loss))
        dist.all_reduce(mean)
        if mean / dist.get_world_size() < limit:
            return number
    return len(losses)


# wrong: with limit=0.5, the ranks stopped too early
def train(losses, limit, step):
    for number, loss in enumerate(losses, start=1):
        step()
        t = torch.tensor(float(loss), dtype=torch.float64)
        dist.all_reduce(t)
        if t / dist.get_world_size() <= limit:
            return number
    return len(losses)


# wrong: no message is sent after the last step()
def train(losses, limit, step):
    for number, loss in enumerate(losses, start=1):
        t = torch.tensor(float(loss))
        dist.all_reduce(t)
        step()
        if t / dist.get_world_size() < limit:
            return number
    return len(losses)


# wrong: with limit=0.5, the ranks stopped too late
def train(losses, limit, step):
    for number, loss in enumerate(losses, start=1):
        step()
        t = torch.tensor(float(loss)).bfloat16()
        dist.all_reduce(t)
        if t / dist.get_world_size() < limit:
            return number
    return len(losses)
