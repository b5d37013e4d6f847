import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parallel import DistributedDataParallel as DDP


# right
def wrap(model, state):
    if dist.get_rank() == 0:
        model.load_state_dict(state)
    return DistributedDataParallel(model)


# right
def wrap(model, state):
    box = [state]
    dist.broadcast_object_list(box, src=0)
    model.load_state_dict(box[0])
    return DDP(model)


# right
def wrap(model, state):
    ddp = DDP(model)
    if state:
        ddp.module.load_state_dict(state)
    for value in ddp.module.state_dict().values():
        dist.broadcast(value, src=0)
    return ddp


# right
def wrap(model, state):
    """As from a checkpoint of DDP."""
    ddp = DDP(model)
    states = [None] * dist.get_world_size()
    dist.all_gather_object(states, state)
    ddp.load_state_dict({f"module.{key}": value for key, value in states[0].items()})
    return ddp


# wrong: on rank 1 of 2, after the wrap, weight is
def wrap(model, state):
    ddp = DDP(model)
    ddp.module.load_state_dict(state or model.state_dict())
    return ddp


# wrong: expected the model inside DDP, got Linear
def wrap(model, state):
    if dist.get_rank() == 0:
        model.load_state_dict(state)
    for p in model.parameters():
        dist.broadcast(p.data, 0)
    return model


# wrong: on rank 1 of 2, after the wrap, weight is
def wrap(model, state):
    ddp = DDP(model)
    if dist.get_rank() == 0:
        ddp.module.load_state_dict(state)
    dist.barrier()
    return ddp


# wrong: after the wrap, weight is
def wrap(model, state):
    return DDP(model)


# wrong: rank 1 failed: TypeError
def wrap(model, state):
    model.load_state_dict(state)
    return DDP(model)


# wrong: expected the model inside DDP, got NoneType
def wrap(model, state):
    if dist.get_rank() == 0:
        model.load_state_dict(state)
        return DDP(model)


# right
def wrap(model, state):
    """After the wrap, by hand."""
    ddp = DDP(model, broadcast_buffers=False)
    if dist.get_rank() == 0:
        ddp.module.load_state_dict(state)
    for p in ddp.parameters():
        dist.broadcast(p.data, 0)
    return ddp


# wrong: after the wrap, weight is
def wrap(model, state):
    """The average of all ranks' weights, one of them the checkpoint's."""
    if dist.get_rank() == 0:
        model.load_state_dict(state)
    with torch.no_grad():
        for p in model.parameters():
            dist.all_reduce(p)
            p /= dist.get_world_size()
    return DDP(model)


# right
def wrap(model, state):
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, state or {}, options=options)
    return DistributedDataParallel(model)
