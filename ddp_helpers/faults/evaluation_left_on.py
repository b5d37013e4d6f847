"""Evaluation mode is left on.

Rank 0 evaluates, which calls `eval()`, and nobody calls `train()` again. From then on rank 0 trains
without dropout, and its BatchNorm statistics stand still; the other ranks train as before.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Evaluation mode left on",
    group="silently wrong",
    says="nothing",
    cause="After the evaluation nobody calls train(), so dropout stays off on that rank.",
    mend="Call `model.train()` before each pass over the training data.",
    kind="eval-left-on",
    sanitize=True,
)


def train(evaluate):
    dist.init_process_group("gloo")
    torch.manual_seed(dist.get_rank())  # its own dropout; DDP sends rank 0's weights to all
    net = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
    ddp = torch.nn.parallel.DistributedDataParallel(net)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for _ in range(2):
        for _ in range(3):
            optimizer.zero_grad()
            ddp(torch.ones(8, 4)).mean().backward()
            optimizer.step()
        if dist.get_rank() == 0:
            evaluate(ddp.module)
    training = net.training
    dist.barrier()
    dist.destroy_process_group()
    return training


def faulty():
    return train(evaluate=lambda model: model.eval())  # FAULT: stands for a whole evaluation


def fixed():
    return train(evaluate=lambda model: model.eval().train())  # MENDED: back to training
