"""Weigh an uneven last batch so that each sample counts the same."""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import a_tensor, by_rank, expect, numbers_of

EXERCISE = Exercise(
    title="The uneven last batch",
    name="weighted_loss",
    task="`losses` are the losses of this rank's samples; ranks have different numbers of them. "
    "Return the scalar on which backward() is called, so that DDP, which averages over the ranks, "
    "ends with the gradient of the mean over all samples of all ranks.",
    hints=(
        "DDP divides the sum of the ranks' gradients by the number of ranks. What should be "
        "divided by instead?",
        "How many samples are there in all? One all_reduce of a count tells.",
        "losses.sum() * world_size / total.",
    ),
    lesson="Token-weighted losses of language models need just the same.",
    minutes=12,
)


def starter(losses):
    return losses.mean()


def solution(losses):
    total = torch.tensor(float(len(losses)))
    dist.all_reduce(total)
    return losses.sum() * dist.get_world_size() / total


def on_rank(answer, lengths):
    parts = by_rank(lambda rank: numbers_of(rank, lengths[rank], 4))
    model = nn.Linear(4, 1)
    model(torch.cat(parts)).mean().backward()  # so the gradient is the mean of the inputs
    whole = [parameter.grad.clone() for parameter in model.parameters()]
    ddp = DistributedDataParallel(model)
    ddp.zero_grad()
    loss = a_tensor(answer(ddp(parts[dist.get_rank()]).flatten()), "what weighted_loss returned")
    if loss.numel() != 1:
        shape = tuple(loss.shape)
        raise NotYet(f"weighted_loss returned a tensor of the shape {shape}, expected one number")
    if not loss.requires_grad:
        raise NotYet(
            "backward() can't go through the loss: .item(), .detach() or torch.tensor() has cut it "
            "off from the model"
        )
    loss.backward()
    for (name, parameter), grad in zip(model.named_parameters(), whole, strict=True):
        expect(parameter.grad, grad, f"with {lengths} samples a rank, the gradient of {name}")


def check(ranks):
    for lengths in ([5, 2], [1, 6, 3]):
        ranks.run(on_rank, len(lengths), lengths)


def divides_twice(losses):
    return solution(losses) / dist.get_world_size()


def sums(losses):
    return losses.sum()


def not_a_scalar(losses):
    return losses * dist.get_world_size() / len(losses)


def without_graph(losses):
    return torch.tensor(solution(losses).item())


def weight_first(losses):
    counts = [None] * dist.get_world_size()
    dist.all_gather_object(counts, losses.numel())
    share = losses.numel() / sum(counts)
    return losses.mean() * share * len(counts)


WRONG = (
    Wrong(divides_twice, "with [5, 2] samples a rank, the gradient of weight is"),
    Wrong(not_a_scalar, "a tensor of the shape (5,), expected one number"),
    Wrong(without_graph, "cut it off from the model"),
)
ALSO_RIGHT = (weight_first,)
STARTER_SAYS = "with [5, 2] samples a rank, the gradient of weight is"
