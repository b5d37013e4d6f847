"""strict=False, and nothing is loaded.

The checkpoint holds the wrapper's names, `module.weight`; the plain model says `weight`. The
error about missing keys was silenced with strict=False. Now no key fits, nothing is loaded, and
the training "resumes" from random weights.
"""

import torch
import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="strict=False loads nothing",
    group="silently wrong",
    says="nothing",
    cause="Not one name in the checkpoint fits the model, and strict=False hides it.",
    mend="Save `ddp.module.state_dict()`, load with strict=True, or count the keys that fitted.",
    kind="few-keys-matched",
    seen_in="apex#629",
    sanitize=True,
)


def resume(save):
    dist.init_process_group("gloo")
    ddp = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 1))
    torch.nn.init.ones_(ddp.module.weight)
    checkpoint = save(ddp)
    again = torch.nn.Linear(4, 1)
    again.load_state_dict(checkpoint, strict=False)
    dist.barrier()
    dist.destroy_process_group()
    return again.weight.sum().item()


def faulty():
    return resume(save=lambda ddp: ddp.state_dict())  # FAULT: names with "module." in front


def fixed():
    return resume(save=lambda ddp: ddp.module.state_dict())  # MENDED: the model's own names
