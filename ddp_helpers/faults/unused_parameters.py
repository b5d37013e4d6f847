"""Parameters that take no part in the loss.

A head that this batch does not need, a branch under an `if`. DDP waits for a gradient of every
parameter; the second forward finds that the first backward never finished.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Unused parameters",
    group="start-up",
    says="Expected to have finished reduction in the prior iteration",
    cause="Some parameters got no gradient, and DDP waits for all of them.",
    mend="Use every parameter in forward; or pass find_unused_parameters=True, which costs time.",
    kind="unused-parameters",
    seen_in="pytorch#43259",
    sanitize=True,
)


class TwoHeads(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.a, self.b = (torch.nn.Linear(4, 4) for _ in range(3))

    def forward(self, x):
        return self.a(self.body(x))  # head b is not used


def train(**options):
    dist.init_process_group("gloo")
    ddp = torch.nn.parallel.DistributedDataParallel(TwoHeads(), **options)
    for _ in range(2):
        ddp(torch.ones(8, 4)).sum().backward()
    dist.barrier()
    dist.destroy_process_group()


def faulty():
    train()  # FAULT: head b never gets a gradient


def fixed():
    train(find_unused_parameters=True)  # MENDED: DDP looks for them in each forward
