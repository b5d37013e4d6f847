import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol


# right
def total(values):
    result = values.sum()
    dist.all_reduce(result)
    return result


# right
def total(values):
    everything = [None for _ in range(dist.get_world_size())]
    dist.all_gather_object(everything, float(values.sum()))
    return torch.tensor(sum(everything))


# right
def total(values):
    result = torch.zeros(())
    if len(values) > 0:
        result += values.sum()
    dist.all_reduce(result, op=dist.ReduceOp.SUM)
    return result


# right
def total(values):
    result = torch.tensor(0.0)
    for value in values:
        result = result + value
    work = dist.all_reduce(result, async_op=True)
    work.wait()
    return result


# right
def total(values):
    """The empty one pads with a nought."""
    if not values.numel():
        values = torch.zeros(1)
    result = values.sum(dim=0)
    dist.reduce(result, 0)
    dist.broadcast(result, 0)
    return result


# wrong: on rank 1 of 3, with (2, 0, 5) values a rank, the sum is [0]
def total(values):
    if len(values) == 0:
        return torch.tensor(0.0)
    result = values.sum()
    dist.all_reduce(result)
    return result


# wrong: the sum is
def total(values):
    result = values.mean()
    dist.all_reduce(result)
    return result


# wrong: with (3, 4) values a rank, the sum is
def total(values):
    return values.sum()


# wrong: 2 times too large: a sum for a mean, or summed twice?
def total(values):
    result = values.sum()
    dist.all_reduce(result)
    dist.all_reduce(result)
    return result


# wrong: on rank 1 of 2, with (3, 4) values a rank, the sum is
def total(values):
    result = values.sum()
    dist.reduce(result, dst=0)
    return result


# wrong: .item(), .tolist() or float() has taken it out of its tensor
def total(values):
    result = values.sum()
    dist.all_reduce(result)
    return result.item()


# wrong: total did not end within 1.5 s
def total(values):
    while len(values) == 0:
        pass
    result = values.sum()
    dist.all_reduce(result)
    return result


# right
def total(values):
    return funcol.all_reduce(values.sum(), reduceOp="sum", group=dist.group.WORLD)


# right
def total(values):
    group = dist.new_group()
    result = values.sum(0, keepdim=True)
    dist.all_reduce(result, group=group)
    dist.destroy_process_group(group)
    return result.squeeze()
