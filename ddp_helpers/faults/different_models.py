"""Each rank builds another model.

The number of classes is counted in the rank's own part of the data, or a layer is added under an
`if rank == 0`. DDP compares the parameters when it wraps the model.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Different models",
    group="start-up",
    says="DDP expects same model across all ranks",
    cause="The shape of the model depends on the rank, or on the rank's own data.",
    mend="Take sizes from what all ranks share: the whole dataset's description, a config file.",
    kind="different-models",
    seen_in="mPLUG-Owl#86",
    sanitize=True,
)
LABELS = ([0, 1, 2], [0, 1])  # of each rank's part


def build(classes):
    layers = [torch.nn.Linear(4, 4)] + [torch.nn.Linear(4, 4) for _ in range(classes)]
    torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(*layers))
    dist.barrier()
    dist.destroy_process_group()


def faulty():
    dist.init_process_group("gloo")
    build(len(set(LABELS[dist.get_rank()])))  # FAULT: counted in this rank's data


def fixed():
    dist.init_process_group("gloo")
    build(len(set(LABELS[0]) | set(LABELS[1])))  # MENDED: counted in all data
