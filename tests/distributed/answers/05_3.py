import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol


# right
def count_samples(loss, samples, log):
    total = loss.clone()
    dist.all_reduce(total)
    if dist.get_rank() == 0:
        log(total)
    count = torch.tensor(float(samples))
    dist.all_reduce(count)
    return count


# right
def count_samples(loss, samples, log):
    """The count first; the loss only to rank 0."""
    count = torch.as_tensor(samples)
    dist.all_reduce(count)
    total = loss.detach().clone()
    dist.reduce(total, 0)
    dist.get_rank() or log(total)
    return count


# right
def count_samples(loss, samples, log):
    pairs = [None] * dist.get_world_size()
    dist.all_gather_object(pairs, (float(loss), samples))
    losses, counts = zip(*pairs, strict=True)
    if dist.get_rank() == 0:
        log(sum(losses))
    return torch.tensor(sum(counts))


# right
def count_samples(loss, samples, log):
    """Not cloned: the caller's loss becomes the sum."""
    jobs = [dist.all_reduce(loss, async_op=True)]
    jobs.append(dist.all_reduce(count := torch.tensor(1.0 * samples), async_op=True))
    for job in jobs:
        job.wait()
    if not dist.get_rank():
        log(loss)
    return count.squeeze()


# wrong: rank 1 called log(), too
def count_samples(loss, samples, log):
    total = loss.clone()
    dist.all_reduce(total)
    log(total)
    count = torch.tensor(float(samples))
    dist.all_reduce(count)
    return count


# wrong: 2 times too small
def count_samples(loss, samples, log):
    total = loss.clone()
    dist.all_reduce(total)
    if dist.get_rank() == 0:
        log(total / dist.get_world_size())
    count = torch.tensor(float(samples))
    dist.all_reduce(count)
    return count


# wrong: the number of samples is
def count_samples(loss, samples, log):
    """The order differs between the ranks."""
    count, total = torch.tensor(float(samples)), loss.clone()
    order = [total, count] if dist.get_rank() == 0 else [count, total]
    for tensor in order:
        dist.all_reduce(tensor)
    if dist.get_rank() == 0:
        log(total)
    return count


# wrong: the number of samples is [20], expected [21]
def count_samples(loss, samples, log):
    total = loss.clone()
    dist.all_reduce(total)
    if dist.get_rank() == 0:
        log(total)
    return torch.tensor(float(samples * dist.get_world_size()))


# wrong: has the shape (1,), expected ()
def count_samples(loss, samples, log):
    total = loss.clone()
    dist.all_reduce(total)
    if dist.get_rank() == 0:
        log(total)
    count = torch.tensor([float(samples)])
    dist.all_reduce(count)
    return count


# wrong: should be a tensor, but it is the number 21
def count_samples(loss, samples, log):
    total = loss.clone()
    dist.all_reduce(total)
    if dist.get_rank() == 0:
        log(total)
    count = torch.tensor(float(samples))
    dist.all_reduce(count)
    return int(count)


# wrong: what is logged is
def count_samples(loss, samples, log):
    """A barrier in place of the call that is missing."""
    count = torch.tensor(float(samples))
    if dist.get_rank() == 0:
        log(loss)
    dist.barrier()
    dist.all_reduce(count)
    return count


# right
def count_samples(loss, samples, log):
    total = funcol.all_reduce(loss, "sum", dist.group.WORLD)
    count = funcol.all_reduce(torch.tensor(samples), "sum", dist.group.WORLD)
    dist.get_rank() or log(total)
    return count


# wrong: what is logged is
def count_samples(loss, samples, log):
    total = loss.clone()
    job = dist.all_reduce(total, async_op=True)
    if dist.get_rank() == 0:
        log(total)
    job.wait()
    count = torch.tensor(float(samples))
    dist.all_reduce(count)
    return count
