import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol


# right
def attach(model):
    jobs = []

    def hook(parameter):
        jobs.append((parameter, dist.all_reduce(parameter.grad, async_op=True)))

    def finish():
        while jobs:
            parameter, job = jobs.pop()
            job.wait()
            parameter.grad /= dist.get_world_size()

    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(hook)
    return finish


# right
class Averager:
    def __init__(self, model):
        self.futures = []
        for p in model.parameters():
            p.register_post_accumulate_grad_hook(self.start)

    def start(self, p):
        p.grad.div_(dist.get_world_size())
        self.futures.append(dist.all_reduce(p.grad, async_op=True).get_future())

    def __call__(self):
        torch.futures.wait_all(self.futures)
        self.futures.clear()


attach = Averager


# right
def attach(model):
    """The gradient is replaced by another tensor."""
    jobs = {}

    def hook(p):
        copy = p.grad.clone() / dist.get_world_size()
        jobs[p] = copy, dist.all_reduce(copy, async_op=True)

    def finish():
        for p, (copy, job) in jobs.items():
            job.wait()
            p.grad = copy
        jobs.clear()

    [p.register_post_accumulate_grad_hook(hook) for p in model.parameters()]
    return finish


# right
def attach(model):
    """Gathers, in place of a sum."""
    started = []

    def hook(p):
        rows = [torch.empty_like(p.grad) for _ in range(dist.get_world_size())]
        started.append((p, rows, dist.all_gather(rows, p.grad, async_op=True)))

    def finish():
        for p, rows, job in started:
            job.wait()
            p.grad.copy_(sum(rows) / len(rows))
        del started[:]

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(hook)
    return finish


# wrong: backward stands still for a message
def attach(model):
    def hook(p):
        dist.all_reduce(p.grad)
        p.grad /= dist.get_world_size()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(hook)
    return lambda: None


# wrong: nothing is sent while backward still has a layer
def attach(model):
    """Nothing during backward."""

    def finish():
        for p in model.parameters():
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()

    return finish


# wrong: after backward 1, the gradient of
def attach(model):
    jobs = []

    def hook(p):
        jobs.append(dist.all_reduce(p.grad, async_op=True))
        p.grad /= dist.get_world_size()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(hook)
    return lambda: [job.wait() for job in jobs]


# wrong: after backward 2, the gradient of 0.weight is
def attach(model):
    """The list is never emptied."""
    jobs = []

    def hook(p):
        jobs.append((p, dist.all_reduce(p.grad, async_op=True)))

    def finish():
        for p, job in jobs:
            job.wait()
            p.grad /= dist.get_world_size()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(hook)
    return finish


# wrong: after backward 1, the gradient of
def attach(model):
    """A hook on the tensor sees the gradient before it is stored."""
    jobs = []

    def hook(grad):
        jobs.append(dist.all_reduce(grad, async_op=True))
        return grad / dist.get_world_size()

    for p in model.parameters():
        p.register_hook(hook)
    return lambda: [job.wait() for job in jobs]


# wrong: backward stands still for a message
def attach(model):
    from torch.distributed._composable.replicate import replicate

    replicate(model)  # DDP, under another name
    return lambda: None


# wrong: attach returned None, expected a function
def attach(model):
    jobs = []

    def hook(p):
        jobs.append((p, dist.all_reduce(p.grad, async_op=True)))

    def finish():
        for p, job in jobs:
            job.wait()
            p.grad /= dist.get_world_size()
        jobs.clear()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(hook)
    finish()


# right
def attach(model):
    waiting = {}

    def hook(p):
        waiting[p] = funcol.all_reduce(p.grad, "sum", dist.group.WORLD)

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(hook)

    def finish():
        for p, total in waiting.items():
            p.grad = funcol.wait_tensor(total) / dist.get_world_size()
        waiting.clear()

    return finish


# wrong: nobody waits for all_reduce(async_op=True)
def attach(model):
    last = None

    def hook(p):
        nonlocal last
        p.grad /= dist.get_world_size()
        last = dist.all_reduce(p.grad, async_op=True)

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(hook)

    def finish():
        last.wait()

    return finish


# wrong: while backward still has a layer to do
def attach(model):
    jobs, params = [], list(model.parameters())
    count = 0

    def hook(p):
        nonlocal count
        count += 1
        if count == len(params):
            count = 0
            for q in params:
                q.grad /= dist.get_world_size()
                jobs.append(dist.all_reduce(q.grad, async_op=True))

    for p in params:
        p.register_post_accumulate_grad_hook(hook)

    def finish():
        for job in jobs:
            job.wait()
        jobs.clear()

    return finish


# right
def attach(model):
    params = [p for p in model.parameters() if p.requires_grad]
    jobs, full = [], []

    def send():
        flat = torch.cat([q.grad.flatten() for q in full])
        jobs.append((list(full), flat, dist.all_reduce(flat, async_op=True)))
        full.clear()

    def hook(p):
        full.append(p)
        if len(full) == 2:
            send()

    for p in params:
        p.register_post_accumulate_grad_hook(hook)

    def finish():
        if full:
            send()
        for group, flat, job in jobs:
            job.wait()
            flat /= dist.get_world_size()
            at = 0
            for q in group:
                q.grad = flat[at : at + q.numel()].view_as(q)
                at += q.numel()
        jobs.clear()

    return finish


# wrong: still held after the third
def attach(model):
    """Divides first, so that the gradients come out right; but the list only grows."""
    futures = []

    def hook(p):
        p.grad.div_(dist.get_world_size())
        futures.append(dist.all_reduce(p.grad, async_op=True).get_future())

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(hook)
    return lambda: torch.futures.wait_all(futures)


# right
def attach(model):
    """One place for each parameter, which the next step takes over."""
    waiting = {}

    def hook(p):
        p.grad /= dist.get_world_size()
        waiting[p] = dist.all_reduce(p.grad, async_op=True)

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(hook)
    return lambda: [job.wait() for job in waiting.values()]
