"""The loss of one rank is not finite.

One batch on rank 1 leads to the logarithm of 0. DDP averages the gradients, and after one step all
weights of all ranks are nan: by then nothing tells which rank and which batch it was.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="A loss that is not finite",
    group="silently wrong",
    says="nothing",
    cause="One rank's loss is inf or nan, and the average carries it to all ranks.",
    mend="Let the loss stay finite (log_softmax, clamp), or skip the step on all ranks together.",
    kind="not-finite",
    sanitize=True,
)


def train(loss_of):
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for step in range(4):
        x = torch.ones(8, 4)
        if dist.get_rank() == 1 and step == 2:
            x *= 1000  # an odd batch: sigmoid is 0 or 1 there, as far as float32 can tell
        optimizer.zero_grad()
        loss_of(ddp(x)).backward()
        optimizer.step()
    weight = ddp.module.weight[0, 0].item()
    dist.barrier()
    dist.destroy_process_group()
    return weight


def by_hand(out):
    return -(torch.sigmoid(out).log() + (1 - torch.sigmoid(out)).log()).mean()


def by_torch(out):
    sigmoid = torch.nn.functional.logsigmoid
    return -(sigmoid(out) + sigmoid(-out)).mean()


def faulty():
    return train(loss_of=by_hand)  # FAULT: log(0)


def fixed():
    return train(loss_of=by_torch)  # MENDED: torch's own never takes the logarithm of 0
