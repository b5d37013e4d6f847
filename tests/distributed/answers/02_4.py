import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks


# right
def half_hook(state, bucket):
    half = bucket.buffer().to(torch.bfloat16)
    job = dist.all_reduce(half, async_op=True)
    return job.get_future().then(lambda done: done.value()[0].float() / dist.get_world_size())


# right
def half_hook(state, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    half = bucket.buffer().bfloat16().div_(dist.get_world_size())
    future = dist.all_reduce(half, async_op=True).get_future()

    def back(done):
        buffer = bucket.buffer()
        buffer.copy_(done.value()[0])
        return buffer

    return future.then(back)


# right
def half_hook(state, bucket):
    """Waits at once, with a future that is done."""
    half = bucket.buffer().bfloat16()
    dist.all_reduce(half)
    future = torch.futures.Future()
    future.set_result(half.float().div(dist.get_world_size()))
    return future


# right
class Half:
    def __call__(self, state, bucket):
        size = dist.get_world_size()
        mine = bucket.buffer().type(torch.bfloat16)
        rows = [torch.empty_like(mine) for _ in range(size)]
        job = dist.all_gather(rows, mine, async_op=True)
        return job.get_future().then(lambda _: torch.stack(rows).float().mean(dim=0))


half_hook = Half()


# wrong: but float32 was sent, not bfloat16
def half_hook(state, bucket):
    job = dist.all_reduce(bucket.buffer() / dist.get_world_size(), async_op=True)
    return job.get_future().then(lambda done: done.value()[0])


# wrong: but float32 was sent, not bfloat16
def half_hook(state, bucket):
    """Rounds, and sends float32."""
    rounded = bucket.buffer().bfloat16().float() / dist.get_world_size()
    job = dist.all_reduce(rounded, async_op=True)
    return job.get_future().then(lambda done: done.value()[0])


# wrong: but float16 was sent, not bfloat16
def half_hook(state, bucket):
    half = bucket.buffer().half()
    job = dist.all_reduce(half, async_op=True)
    return job.get_future().then(lambda done: done.value()[0].float() / dist.get_world_size())


# wrong: the hook is torch's own: write it yourself
def half_hook(state, bucket):
    return default_hooks.bf16_compress_hook(None, bucket)


# wrong: the gradient of weight is
def half_hook(state, bucket):
    half = bucket.buffer().bfloat16()
    job = dist.all_reduce(half, async_op=True)
    return job.get_future().then(lambda done: done.value()[0].float())


# wrong: the future's value is bfloat16 of the shape (21,), expected float32
def half_hook(state, bucket):
    half = bucket.buffer().bfloat16()
    job = dist.all_reduce(half, async_op=True)
    return job.get_future().then(lambda done: done.value()[0] / dist.get_world_size())


# wrong: expected a future
def half_hook(state, bucket):
    half = bucket.buffer().bfloat16()
    dist.all_reduce(half)
    return half.float() / dist.get_world_size()


# wrong: the future's value is a list, expected float32
def half_hook(state, bucket):
    half = bucket.buffer().bfloat16()
    future = dist.all_reduce(half, async_op=True).get_future()
    future.then(lambda done: done.value()[0].float() / dist.get_world_size())
    return future


# wrong: the gradient of weight is
def half_hook(state, bucket):
    """Every second number: half the bytes."""
    buffer = bucket.buffer()
    job = dist.all_reduce(buffer[::2].clone(), async_op=True)
    return job.get_future().then(
        lambda done: done.value()[0].repeat_interleave(2)[: len(buffer)] / dist.get_world_size()
    )


# wrong: the gradient of weight is
def half_hook(state, bucket):
    """Sends nothing."""
    future = torch.futures.Future()
    future.set_result(bucket.buffer())
    return future


# wrong: but int8 was sent, not bfloat16
def half_hook(state, bucket):
    """8 bits, a quarter of the bytes."""
    buffer = bucket.buffer()
    top = buffer.abs().max()
    dist.all_reduce(top, op=dist.ReduceOp.MAX)
    small = (buffer / top * 63).round().to(torch.int8)
    job = dist.all_reduce(small, async_op=True)
    return job.get_future().then(
        lambda done: done.value()[0].float() * top / 63 / dist.get_world_size()
    )
