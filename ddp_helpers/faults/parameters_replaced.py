"""The module's parameters are replaced after the wrap.

DDP puts its hooks at the parameters that the module has when it is wrapped. load_state_dict with
assign=True gives the module other ones, and `.to()` or `.half()` give them other data: nothing is
averaged any more.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Parameters replaced after the wrap",
    group="silently wrong",
    says="nothing",
    cause="DDP averages the parameters of the wrap, and the module has others by now.",
    mend="Load, move and cast the module first, and wrap it last.",
    kind="parameters-replaced",
    seen_in="pytorch#104336",
    sanitize=True,
)


def load(net):
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    net.load_state_dict(state, assign=True)
    return net.requires_grad_()


def train(load_late):
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    net = torch.nn.Linear(4, 1)
    if not load_late:
        load(net)  # MENDED: before the wrap
    options = {"find_unused_parameters": load_late}  # else torch stops at the second step
    ddp = torch.nn.parallel.DistributedDataParallel(net, **options)
    if load_late:
        load(net)  # FAULT: the module gets other parameters
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (ddp(torch.ones(8, 4)).mean() * (1 + dist.get_rank())).backward()
        optimizer.step()
    weight = net.weight[0, 0].item()
    dist.barrier()
    dist.destroy_process_group()
    return weight


def faulty():
    return train(load_late=True)


def fixed():
    return train(load_late=False)
