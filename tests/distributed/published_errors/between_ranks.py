"""Published errors in what ranks tell each other, and in what each of them makes of it."""

import torch
import torch.distributed as dist
from plain import batches, fit, network, ranks, wrapped
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.fsdp import fully_shard


def pytorch_84803():
    def loses_data(state, bucket):
        steps.append(len(steps))
        lost = dist.get_rank() == 1 and len(steps) == 3
        averaged = allreduce_hook(None, bucket)
        return averaged.then(lambda done: done.value() * (0 if lost else 1))  # it brought zeros

    steps = []
    with ranks():
        ddp, optimizer = wrapped()
        ddp.register_comm_hook(None, loses_data)
        fit(ddp, optimizer)


def pytorch_96600():
    with ranks() as (rank, _):
        net = network()
        for weight in net.parameters():
            dist.broadcast(weight.data, src=0)
            if rank == 1:
                weight.data.zero_()  # the transfer brought zeros
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

        def average():
            for weight in net.parameters():
                dist.all_reduce(weight.grad)
                weight.grad /= 2

        fit(net, optimizer, before_step=average)


def baichuan2_86():
    with ranks() as (rank, _):  # half of the layers on each card, and what the second one receives
        half = network()[:2] if rank == 0 else network()[2:]
        for x, _ in batches():
            with torch.no_grad():
                if rank == 0:
                    dist.send(half(x), dst=1)
                else:
                    dist.recv(between := torch.empty(4, 8), src=0)
                    half(between.zero_())  # the transfer brought zeros


def deepspeed_1801():
    with ranks() as (rank, _):
        ddp, optimizer = wrapped(network(nn.LayerNorm(8)))

        def clip():
            counted = ddp.parameters() if rank == 0 else ddp.module[0].parameters()
            length = torch.stack([weight.grad.norm() for weight in counted]).norm()
            for weight in ddp.parameters():
                weight.grad /= max(1.0, float(length) / 0.1)  # each rank by a length of its own

        fit(ddp, optimizer, before_step=clip)


def deepspeed_5794():
    with ranks() as (rank, _):
        for x, _ in batches():
            tokens = x[: 4 - rank]  # the gate of each rank sends another number of them
            dist.all_to_all_single(torch.empty_like(tokens[:2]), tokens[:2].contiguous())
            if len(tokens) > 3:  # and only who has more of them sends again
                dist.all_to_all_single(torch.empty_like(tokens[2:]), tokens[2:].contiguous())


def deepspeed_6714():
    with ranks() as (rank, _):
        for x, _ in batches():  # this stage has experts, the other one has none
            if rank == 0:
                dist.all_to_all_single(torch.empty_like(x), x)
            dist.all_reduce(x)


def deepspeed_6089():
    with ranks() as (rank, _):
        for x, _ in batches():
            capacity = 2 * (1 + rank)  # each rank works it out from its own tokens
            sent = x[:1].expand(capacity, -1).contiguous()
            dist.all_to_all_single(torch.empty_like(sent), sent)


def pytorch_104336():
    with ranks():
        torch.__future__.set_overwrite_module_params_on_conversion(True)  # as a move to a card does
        ddp, _ = wrapped()
        ddp.double().float()  # there and back: the parameters are others now
        fit(ddp, torch.optim.SGD(ddp.parameters(), lr=0.1))


def x_jxmnop_ddp_out_of_sync():
    with ranks():
        ddp, optimizer = wrapped()
        fit(ddp.module, optimizer)  # not through the wrapper


def accelerate_2665():
    with ranks():
        net = network()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)  # before the model is wrapped
        fit(fully_shard(net), optimizer)
