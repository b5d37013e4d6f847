import copy

import torch
import torch.distributed as dist


# right
def validate(ddp, x):
    if dist.get_rank() == 0:
        model = ddp.module
        model.eval()
        with torch.no_grad():
            mean = model(x).mean()
        model.train()
        return mean


# right
@torch.no_grad()
def validate(ddp, x):
    if dist.get_rank() != 0:
        return None
    try:
        return ddp.module.eval()(x).mean()
    finally:
        ddp.module.train()


# right
def validate(ddp, x):
    """On a copy."""
    if dist.get_rank():
        return
    twin = copy.deepcopy(ddp.module).requires_grad_(False).eval()
    return twin(x).mean()


# right
def validate(ddp, x):
    """Everybody to eval and back; only rank 0 works."""
    ddp.eval()
    result = None
    if dist.get_rank() == 0:
        with torch.inference_mode():
            result = ddp.module(x).mean().item()
    ddp.train()
    return result


# right
def validate(ddp, x):
    """Without a module's own mode: a function of its tensors."""
    if dist.get_rank() == 0:
        state = {k: v.detach() for k, v in ddp.module.state_dict().items()}
        twin = copy.deepcopy(ddp.module).eval()
        return torch.func.functional_call(twin, state, (x,)).mean()


# wrong: calls broadcast, you or DDP's forward: the others go on at once
def validate(ddp, x):
    ddp.eval()
    with torch.no_grad():
        mean = ddp(x).mean()
    ddp.train()
    return mean


# wrong: BatchNorm learns in train mode
def validate(ddp, x):
    if dist.get_rank() == 0:
        with torch.no_grad():
            return ddp.module(x).mean()


# wrong: the model is still in eval mode
def validate(ddp, x):
    if dist.get_rank() == 0:
        ddp.module.eval()
        with torch.no_grad():
            return ddp.module(x).mean()


# wrong: drags the graph of its gradients along
def validate(ddp, x):
    if dist.get_rank() == 0:
        ddp.module.eval()
        mean = ddp.module(x).mean()
        ddp.module.train()
        return mean


# wrong: calls broadcast, you or DDP's forward: the others go on at once
def validate(ddp, x):
    """All ranks wait for the result."""
    mean = torch.zeros(())
    if dist.get_rank() == 0:
        ddp.module.eval()
        with torch.no_grad():
            mean = ddp.module(x).mean()
        ddp.module.train()
    dist.broadcast(mean, src=0)
    return mean if dist.get_rank() == 0 else None


# wrong: has the shape (9, 2), expected ()
def validate(ddp, x):
    if dist.get_rank() == 0:
        ddp.module.eval()
        with torch.no_grad():
            output = ddp.module(x)
        ddp.module.train()
        return output


# wrong: the average output is
def validate(ddp, x):
    if dist.get_rank() == 0:
        ddp.eval()
        ddp.require_forward_param_sync = False
        with torch.no_grad():
            mean = ddp(x[:4]).mean()
        ddp.train()
        return mean


# wrong: has changed the gradient of
def validate(ddp, x):
    if dist.get_rank() == 0:
        ddp.module.eval()
        with torch.no_grad():
            mean = ddp.module(x).mean()
        ddp.zero_grad()
        ddp.module.train()
        return mean
