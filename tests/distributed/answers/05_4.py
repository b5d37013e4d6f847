import itertools

import torch
import torch.distributed as dist


# right
def train(batches, step):
    batches, steps = iter(batches), 0
    while True:
        batch = next(batches, None)
        has = torch.tensor(0.0 if batch is None else 1.0)
        dist.all_reduce(has)
        if has < dist.get_world_size():
            return steps
        step(batch)
        steps += 1


# right
def train(batches, step):
    """Count them first."""
    batches = list(batches)
    shortest = torch.tensor(len(batches))
    dist.all_reduce(shortest, op=dist.ReduceOp.MIN)
    for batch in itertools.islice(batches, int(shortest)):
        step(batch)
    return shortest


# right
def in_step(batches):
    """Hands out a batch as long as all have one."""
    iterator = iter(batches)
    while True:
        try:
            batch, ended = next(iterator), False
        except StopIteration:
            batch, ended = None, True
        ends = [None] * dist.get_world_size()
        dist.all_gather_object(ends, ended)
        if any(ends):
            return
        yield batch


def train(batches, step):
    return sum(1 for _ in map(step, in_step(batches)))


# right
def train(batches, step):
    """Rank 0 hears all, and decides."""
    steps = 0
    for batch in itertools.chain(batches, itertools.repeat(None)):
        ended = torch.tensor([int(batch is None)])
        dist.reduce(ended, dst=0)
        dist.broadcast(ended, src=0)
        if ended.item():
            break
        step(batch)
        steps += 1
    return steps


# wrong: made 5 steps, and 3 can be made together
def train(batches, step):
    """Everybody goes on until the last one has ended."""
    batches, steps, batch = iter(batches), 0, None
    while True:
        following = next(batches, None)
        has = torch.tensor(int(following is not None))
        dist.all_reduce(has)
        if not has:
            return steps
        batch = following if following is not None else batch
        step(batch)
        steps += 1


# wrong: left out or repeated: [2, 3, 4]
def train(batches, step):
    batches = list(batches)
    shortest = torch.tensor(len(batches))
    dist.all_reduce(shortest, op=dist.ReduceOp.MIN)
    for batch in batches[-int(shortest) :]:
        step(batch)
    return int(shortest)


# wrong: 3 steps were made, but 5 was returned
def train(batches, step):
    batches = list(batches)
    shortest = torch.tensor(len(batches))
    dist.all_reduce(shortest, op=dist.ReduceOp.MIN)
    for batch in batches[:shortest]:
        step(batch)
    return len(batches)


# wrong: object of type 'generator' has no len()
def train(batches, step):
    shortest = torch.tensor(len(batches))
    dist.all_reduce(shortest, op=dist.ReduceOp.MIN)
    for batch in itertools.islice(batches, int(shortest)):
        step(batch)
    return int(shortest)


# wrong: 2 steps were made, but 3 was returned
def train(batches, step):
    batches = list(batches)
    for batch in batches[:3]:
        step(batch)
    return 3


# wrong: did not end
def train(batches, step):
    """The flag is asked for after the step."""
    steps = 0
    for batch in batches:
        step(batch)
        steps += 1
        has = torch.tensor(1)
        dist.all_reduce(has, op=dist.ReduceOp.MIN)
    return steps
