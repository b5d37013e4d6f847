"""Accuracy over a padded split.

DistributedSampler makes all ranks equally long: it repeats samples from the front until they are.
For training that is harmless. In an evaluation some samples count twice: of nine samples one is
right, and the padded split says 2 of 10.
"""

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Padded evaluation",
    group="silently wrong",
    says="nothing",
    cause="DistributedSampler repeats samples to fill up the last rank, and they count twice.",
    mend="Split without padding, `range(rank, len(data), world_size)`, and sum the counts.",
    kind="padded-evaluation",
    seen_in="pytorch#25162",
    sanitize=True,
)


def accuracy(split):
    dist.init_process_group("gloo")
    labels = torch.tensor([1, 0, 0, 0, 0, 0, 0, 0, 0])  # the model always answers 1
    data = TensorDataset(torch.arange(9.0), labels)
    net = torch.nn.Linear(1, 2)
    net.weight.data.zero_()
    net.bias.data = torch.tensor([0.0, 1.0])
    ddp = torch.nn.parallel.DistributedDataParallel(net).eval()
    counts = torch.zeros(2)
    with torch.no_grad():
        for x, y in split(data):
            counts += torch.tensor([(ddp.module(x[:, None]).argmax(1) == y).sum(), len(y)])
    dist.all_reduce(counts)
    dist.destroy_process_group()
    return round((counts[0] / counts[1]).item(), 3)


def faulty():
    def split(data):
        sampler = DistributedSampler(data, shuffle=False)  # FAULT: 9 samples become 10
        return DataLoader(data, batch_size=3, sampler=sampler)

    return accuracy(split)


def fixed():
    def split(data):
        mine = range(dist.get_rank(), len(data), dist.get_world_size())  # MENDED: 5 and 4
        return DataLoader(Subset(data, mine), batch_size=3)

    return accuracy(split)
