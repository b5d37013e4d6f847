import torch
import torch.distributed as dist


# right
def make_step(weights, make_optimizer):
    rank, size = dist.get_rank(), dist.get_world_size()
    optimizer = make_optimizer(weights[rank::size])

    def step():
        optimizer.step()
        for i, weight in enumerate(weights):
            dist.broadcast(weight.data, src=i % size)

    return step


# right
class Step:
    def __init__(self, weights, make_optimizer):
        self.weights, self.size = weights, dist.get_world_size()
        mine = [w for i, w in enumerate(weights) if i % self.size == dist.get_rank()]
        self.optimizer = make_optimizer(mine)

    @torch.no_grad()
    def __call__(self):
        self.optimizer.step()
        jobs = [dist.broadcast(w, i % self.size, async_op=True) for i, w in enumerate(self.weights)]
        for job in jobs:
            job.wait()


make_step = Step


# right
def make_step(weights, make_optimizer):
    """Zeros of all others, summed."""
    rank, size = dist.get_rank(), dist.get_world_size()
    optimizer = make_optimizer(weights[i] for i in range(rank, len(weights), size))

    def step():
        optimizer.step()
        with torch.no_grad():
            for i, weight in enumerate(weights):
                if i % size != rank:
                    weight.zero_()
                dist.all_reduce(weight)

    return step


# wrong: after step 1, weight
def make_step(weights, make_optimizer):
    return make_optimizer(weights[dist.get_rank() :: dist.get_world_size()]).step


# wrong: the optimizer has the weights [0, 1, 2, 3, 4], expected [
def make_step(weights, make_optimizer):
    optimizer = make_optimizer(weights)

    def step():
        optimizer.step()
        for i, weight in enumerate(weights):
            dist.broadcast(weight.data, src=i % dist.get_world_size())

    return step


# wrong: the optimizer has the weights [
def make_step(weights, make_optimizer):
    """In blocks, not in turns."""
    rank, size = dist.get_rank(), dist.get_world_size()
    each = -(-len(weights) // size)
    optimizer = make_optimizer(weights[rank * each : (rank + 1) * each])

    def step():
        optimizer.step()
        for i, weight in enumerate(weights):
            dist.broadcast(weight.data, src=i // each)

    return step


# wrong: expected a function step()
def make_step(weights, make_optimizer):
    make_optimizer(weights[dist.get_rank() :: dist.get_world_size()]).step()


# wrong: weight
def make_step(weights, make_optimizer):
    """Adam begins anew in each step."""

    def step():
        make_optimizer(weights[dist.get_rank() :: dist.get_world_size()]).step()
        for i, weight in enumerate(weights):
            dist.broadcast(weight.data, src=i % dist.get_world_size())

    return step
