"""Make all ranks start from the same model, without DDP."""

import torch
import torch.distributed as dist
from torch import nn

from ddp_helpers.evidence.sent_calls import watched
from ddp_helpers.exercises.core import Exercise, NotYet, Wrong
from ddp_helpers.exercises.on_ranks import exchanged, expect, in_place

EXERCISE = Exercise(
    title="Start equal",
    name="start_equal",
    task="Each rank has made its model from another seed. Give all ranks the model of rank 0, "
    "in place: every weight, and every other number that its state_dict holds.",
    hints=(
        "One rank has it, all others need it. Which collective is that?",
        "BatchNorm keeps numbers that are no parameters. Where does a model keep those?",
        "Loop over model.state_dict().values(): they share their memory with the model.",
    ),
    lesson="DDP does the same when it wraps a model, buffers included.",
    minutes=8,
)


def starter(model):
    for parameter in model.parameters():
        dist.broadcast(parameter.data, src=0)  # something is still missing


def solution(model):
    for tensor in model.state_dict().values():
        dist.broadcast(tensor, src=0)


def make_model(seed):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model(torch.randn(5, 3))  # its buffers are no longer zeros and ones
    model[1].num_batches_tracked += seed
    return model


def on_rank(answer, seed):
    wanted, model = make_model(seed).state_dict(), make_model(seed + dist.get_rank())
    addresses = {name: tensor.data_ptr() for name, tensor in model.state_dict().items()}
    parameters = dict(model.named_parameters())
    with watched() as calls:
        answer(model)
    for name, tensor in model.state_dict().items():
        expect(tensor, wanted[name], f"{name}")
        in_place(tensor, addresses[name], name)
    for name, parameter in model.named_parameters():
        if parameter is not parameters[name]:
            raise NotYet(
                f"{name} is another parameter now, and an optimizer made before would go on with "
                "the old one: change it in place"
            )
        if not parameter.requires_grad:
            raise NotYet(f"{name} no longer learns: its requires_grad is False now")
    exchanged(calls)


def check(ranks):
    for nprocs, seed in ((2, 5), (3, 17)):
        ranks.run(on_rank, nprocs, seed)


def averages(model):
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            dist.all_reduce(tensor)
            tensor /= dist.get_world_size()


def from_itself(model):
    for tensor in model.state_dict().values():
        dist.broadcast(tensor, src=dist.get_rank())


def copies(model):
    for parameter in model.parameters():
        dist.broadcast(parameter.data.clone(), src=0)


def only_weights(model):
    for name, tensor in model.state_dict().items():
        if "weight" in name:
            dist.broadcast(tensor, src=0)


def as_an_object(model):
    box = [model.state_dict()]
    dist.broadcast_object_list(box, src=0)
    model.load_state_dict(box[0])


WRONG = (
    Wrong(averages, "on rank 0 of 2, 0.weight is"),
    Wrong(copies, "on rank 1 of 2, 0.weight is"),
    Wrong(only_weights, "on rank 1 of 2, 0.bias is"),
)
ALSO_RIGHT = (as_an_object,)
STARTER_SAYS = "1.running_mean is"
