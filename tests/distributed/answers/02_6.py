import itertools

import torch
import torch.distributed as dist


# right
def start_equal(model):
    for value in model.state_dict().values():
        dist.broadcast(value, src=0)


# right
def start_equal(model):
    box = [model.state_dict()]
    dist.broadcast_object_list(box)
    model.load_state_dict(box[0])


# right
@torch.no_grad()
def start_equal(model: torch.nn.Module):
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        tensor.mul_(dist.get_rank() == 0)
        dist.all_reduce(tensor)


# right
def start_equal(model):
    jobs = [
        dist.broadcast(t.data, 0, async_op=True) for t in [*model.parameters(), *model.buffers()]
    ]
    for job in jobs:
        job.wait()


# right
def start_equal(model):
    from torch.distributed.utils import _sync_module_states

    _sync_module_states(model, dist.group.WORLD, 2**20, 0, [])


# wrong: 1.num_batches_tracked is
def start_equal(model):
    for parameter in model.parameters():
        dist.broadcast(parameter.data, src=0)
    for buffer in model.buffers():
        if buffer.is_floating_point():
            dist.broadcast(buffer, src=0)


# wrong: on rank 1 of 2, 0.weight is
def start_equal(model):
    state = {k: v.clone() for k, v in model.state_dict().items()}
    for value in state.values():
        dist.broadcast(value, src=0)


# wrong: 0.weight is
def start_equal(model):
    torch.manual_seed(0)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()


# wrong: 0.weight is [0, 0, 0, 0, ...]
def start_equal(model):
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()


# wrong: 0.weight is
def start_equal(model):
    with torch.no_grad():
        for tensor in model.state_dict().values():
            dist.all_reduce(tensor)
            tensor //= dist.get_world_size()


# wrong: 0.weight is
def start_equal(model):
    for value in model.state_dict().values():
        dist.broadcast(value, src=dist.get_world_size() - 1)


# wrong: on rank 1 of 2, 0.weight is
def start_equal(model):
    if dist.get_rank() == 0:
        for value in model.state_dict().values():
            dist.broadcast(value, src=0)


# wrong: ended the whole process inside start_equal
def start_equal(model):
    torch.nn.parallel.DistributedDataParallel(model)
    raise SystemExit


# wrong: is another parameter now
def start_equal(model):
    box = [model.state_dict()]
    dist.broadcast_object_list(box, src=0)
    model.load_state_dict(box[0], assign=True)
