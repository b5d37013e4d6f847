import threading

import torch.distributed as dist


# right
def step(grads, work):
    job = dist.all_reduce(grads, async_op=True)
    result = work()
    job.wait()
    return result


# right
def step(grads, work):
    future = dist.all_reduce(grads, async_op=True).get_future()
    try:
        return work()
    finally:
        future.wait()


# right
class Overlap:
    def __init__(self, tensor):
        self.job = dist.all_reduce(tensor, async_op=True)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.job.wait()


def step(grads, work):
    with Overlap(grads):
        return work()


# right
def step(grads, work):
    """In several messages."""
    jobs = [dist.all_reduce(part, async_op=True) for part in grads.chunk(2)]
    result = work()
    for job in jobs:
        job.wait()
    return result


# right
def step(grads, work):
    """The message in a thread of its own."""
    thread = threading.Thread(target=dist.all_reduce, args=(grads,))
    thread.start()
    result = work()
    thread.join()
    return result


# wrong: and rank 0, which was ready, waited for that work
def step(grads, work):
    result = work()
    dist.all_reduce(grads)
    return result


# wrong: waited for it before it called work()
def step(grads, work):
    dist.all_reduce(grads, async_op=True).wait()
    return work()


# wrong: work() returned 42, your function None
def step(grads, work):
    job = dist.all_reduce(grads, async_op=True)
    work()
    job.wait()


# wrong: work() was called 2 times
def step(grads, work):
    job = dist.all_reduce(grads, async_op=True)
    result = work()
    job.wait()
    return work() or result


# wrong: grads is
def step(grads, work):
    dist.all_reduce(grads, async_op=True)
    return work()


# wrong: grads is
def step(grads, work):
    copy = grads.clone()
    job = dist.all_reduce(copy, async_op=True)
    result = work()
    job.wait()
    return result
