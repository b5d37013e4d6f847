import torch
from torch.distributed.tensor import DTensor


# right
def local(tensor):
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def size(tensors):
    return sum(local(t).numel() * local(t).element_size() for t in tensors if t is not None)


def bytes_held(model, optimizer):
    kept = [t for state in optimizer.state.values() for t in state.values()]
    return {
        "weights": size(model.parameters()),
        "gradients": size(p.grad for p in model.parameters()),
        "optimizer": size(t for t in kept if torch.is_tensor(t) and t.dim() > 0),
    }


# right
def bytes_held(model, optimizer):
    """As tensors of whole numbers."""
    found = dict.fromkeys(("weights", "gradients", "optimizer"), 0)
    pieces = [("weights", p.detach()) for p in model.parameters()]
    pieces += [("gradients", p.grad) for p in model.parameters() if p.grad is not None]
    for state in optimizer.state_dict()["state"].values():
        pieces += [("optimizer", t) for t in state.values() if getattr(t, "ndim", 0)]
    for kind, tensor in pieces:
        mine = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        found[kind] += mine.nbytes
    return {kind: torch.tensor(total) for kind, total in found.items()}


# wrong: weights are
def bytes_held(model, optimizer):
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return {"weights": weights, "gradients": weights, "optimizer": 2 * weights}


# wrong: gradients are
def bytes_held(model, optimizer):
    weights = sum(
        (p.to_local() if isinstance(p, DTensor) else p).nbytes for p in model.parameters()
    )
    return {"weights": weights, "gradients": weights, "optimizer": 2 * weights}


# wrong: expected a dict with the keys weights, gradients, optimizer
def bytes_held(model, optimizer):
    return sum(p.nbytes for p in model.parameters())


# wrong: bytes_held failed in a run of
def bytes_held(model, optimizer):
    return {"weights": 0, "gradients": sum(p.grad.nbytes for p in model.parameters())}


# wrong: optimizer are
def local(t):
    return t.to_local() if isinstance(t, DTensor) else t


def size(t):
    t = local(t)
    return t.numel() * t.element_size()


def bytes_held(model, optimizer):
    ps = list(model.parameters())
    return {
        "weights": sum(map(size, ps)),
        "gradients": sum(size(p.grad) for p in ps if p.grad is not None),
        "optimizer": sum(
            size(v) for s in optimizer.state.values() for k, v in s.items() if k != "step"
        ),
    }


# wrong: is gone: look at it
def local(t):
    return t.to_local() if isinstance(t, DTensor) else t


def size(t):
    t = local(t)
    return t.numel() * t.element_size()


def bytes_held(model, optimizer):
    ps = list(model.parameters())
    out = {
        "weights": sum(map(size, ps)),
        "gradients": sum(size(p.grad) for p in ps if p.grad is not None),
        "optimizer": sum(
            size(v)
            for s in optimizer.state.values()
            for v in s.values()
            if torch.is_tensor(v) and v.dim()
        ),
    }
    optimizer.zero_grad()
    return out
