"""Find the bugs: every rank is wrong in the same way."""

import copy

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddp_helpers.exercises.core import Exercise, NotYet, Wrong

EXERCISE = Exercise(
    title="Find the bugs: wrong on every rank alike",
    name="train_step",
    task="Make one step of the optimizer. `parts` holds this rank's micro-batches [(x, y), ...], "
    "all equally large, and `ddp` is the wrapped model. It must be the step of one process with "
    "the whole batch, and so must the next one. This version has two bugs. All ranks have them, so "
    "the ranks agree.",
    hints=(
        "Compare with one process, not with the other rank. What differs in the first step, and "
        "what only from the second one on?",
        "backward() adds to the gradients that are there. How many means are added up in one step, "
        "and what is left over from the step before?",
        "optimizer.zero_grad() at the start, and (loss / len(parts)).backward().",
    ),
    lesson="Ranks that agree may be wrong together. `python -m ddp_helpers verify train.py -n 2` "
    "compares any training with one process.",
    minutes=8,
)


def starter(ddp, optimizer, parts):
    for x, y in parts:
        loss = nn.functional.cross_entropy(ddp(x), y)
        loss.backward()
    optimizer.step()


def solution(ddp, optimizer, parts):
    optimizer.zero_grad()
    for x, y in parts:
        loss = nn.functional.cross_entropy(ddp(x), y)
        (loss / len(parts)).backward()
    optimizer.step()


def on_rank(answer, pieces):
    rank, ranks = dist.get_rank(), dist.get_world_size()
    one = nn.Linear(4, 3)
    ddp = DistributedDataParallel(copy.deepcopy(one))
    alone, shared = (torch.optim.SGD(m.parameters(), lr=0.1) for m in (one, ddp))
    for step in (1, 2, 3):
        x = torch.randn(ranks * pieces * 2, 4)
        y = torch.randint(3, (len(x),))
        mine = (whole.chunk(ranks)[rank].split(2) for whole in (x, y))
        before = one.weight.detach().clone()
        answer(ddp, shared, list(zip(*mine, strict=True)))
        if not ddp.training:
            raise NotYet(f"after step {step} the model is in eval mode: it has to go on training")
        alone.zero_grad()
        nn.functional.cross_entropy(one(x), y).backward()
        alone.step()
        compare(ddp.module.weight.detach() - before, one.weight.detach() - before, step, pieces)


def compare(moved, right, step, pieces):
    if torch.allclose(moved, right, rtol=1e-3, atol=1e-6):
        return
    factor = (moved * right).sum() / right.square().sum()
    along = torch.allclose(moved, factor * right, rtol=1e-3, atol=1e-6)
    how = f"it goes {factor:.2f} times as far" if along else "it goes another way"
    raise NotYet(
        f"with {pieces} micro-batches a rank, step {step} is not the one of a single process with "
        f"the whole batch: {how}"
    )


def check(ranks):
    for nprocs, pieces in ((2, 3), (3, 2), (2, 1)):
        ranks.run(on_rank, nprocs, pieces)


def only_cleared(ddp, optimizer, parts):
    optimizer.zero_grad()
    starter(ddp, optimizer, parts)


def only_divided(ddp, optimizer, parts):
    for x, y in parts:
        (nn.functional.cross_entropy(ddp(x), y) / len(parts)).backward()
    optimizer.step()


def cleared_too_often(ddp, optimizer, parts):
    for x, y in parts:
        optimizer.zero_grad()
        (nn.functional.cross_entropy(ddp(x), y) / len(parts)).backward()
    optimizer.step()


def divided_by_the_ranks(ddp, optimizer, parts):
    optimizer.zero_grad()
    for x, y in parts:
        loss = nn.functional.cross_entropy(ddp(x), y) / len(parts)
        (loss / dist.get_world_size()).backward()
    optimizer.step()


def in_one_go(ddp, optimizer, parts):
    x, y = (torch.cat(each) for each in zip(*parts, strict=True))
    nn.functional.cross_entropy(ddp(x), y).backward()
    optimizer.step()
    optimizer.zero_grad()


def with_no_sync(ddp, optimizer, parts):
    with ddp.no_sync():
        for x, y in parts[:-1]:
            (nn.functional.cross_entropy(ddp(x), y) / len(parts)).backward()
    x, y = parts[-1]
    (nn.functional.cross_entropy(ddp(x), y) / len(parts)).backward()
    optimizer.step()
    optimizer.zero_grad()


WRONG = (
    Wrong(only_cleared, "the whole batch: it goes 3.00 times as far"),
    Wrong(only_divided, "step 2 is not the one of a single process"),
    Wrong(cleared_too_often, "the whole batch: it goes another way"),
    Wrong(divided_by_the_ranks, "the whole batch: it goes 0.50 times as far"),
)
ALSO_RIGHT = (in_one_go, with_no_sync)
STARTER_SAYS = "it goes 3.00 times as far"
