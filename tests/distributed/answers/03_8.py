import torch
import torch.nn.functional as F
from torch import nn


# right
def train_step(ddp, optimizer, parts):
    optimizer.zero_grad()
    for x, y in parts:
        (nn.functional.cross_entropy(ddp(x), y) / len(parts)).backward()
    optimizer.step()


# right
def train_step(ddp, optimizer, parts):
    """Divided at the end, cleared by hand."""
    for p in ddp.parameters():
        p.grad = None
    with ddp.no_sync():
        for x, y in parts[:-1]:
            nn.CrossEntropyLoss()(ddp(x), y).backward()
    x, y = parts[-1]
    nn.CrossEntropyLoss()(ddp(x), y).backward()
    for p in ddp.parameters():
        p.grad /= len(parts)
    optimizer.step()


# right
def train_step(ddp, optimizer, parts):
    """All in one batch; cleared afterwards, too."""
    x, y = map(torch.cat, zip(*parts, strict=True))
    optimizer.zero_grad(set_to_none=False)
    nn.functional.cross_entropy(ddp(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()


# wrong: times as far
def train_step(ddp, optimizer, parts):
    optimizer.zero_grad()
    for x, y in parts:
        nn.functional.cross_entropy(ddp(x), y).backward()
    optimizer.step()


# wrong: step 2 is not the one of a single process
def train_step(ddp, optimizer, parts):
    for x, y in parts:
        (nn.functional.cross_entropy(ddp(x), y) / len(parts)).backward()
    optimizer.step()


# wrong: step 1 is not the one of a single process
def train_step(ddp, optimizer, parts):
    for x, y in parts:
        optimizer.zero_grad()
        nn.functional.cross_entropy(ddp(x), y).backward()
        optimizer.step()


# wrong: step 1 is not the one of a single process
def train_step(ddp, optimizer, parts):
    """Past DDP: each rank goes its own way."""
    optimizer.zero_grad()
    for x, y in parts:
        (nn.functional.cross_entropy(ddp.module(x), y) / len(parts)).backward()
    optimizer.step()


# wrong: the model is in eval mode
def train_step(ddp, optimizer, parts):
    ddp.eval()
    optimizer.zero_grad()
    for x, y in parts:
        (F.cross_entropy(ddp(x), y) / len(parts)).backward()
    optimizer.step()
