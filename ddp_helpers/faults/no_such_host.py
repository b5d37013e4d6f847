"""The address of rank 0 is misspelt.

MASTER_ADDR comes from a config file of another cluster, or a name that only one of the nodes can
resolve. Each rank tries until its patience ends.
"""

from datetime import timedelta

import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="No such host",
    group="many machines",
    says="while trying to connect to (no-such-host.invalid",
    cause="The name in MASTER_ADDR or init_method belongs to no machine that this one knows.",
    mend="Check it with `getent hosts NAME` on every node, or give an IP address.",
    kind="address-unreachable",
    seen_in="pytorch#73656",
    nprocs=1,
)


def faulty():
    dist.init_process_group(
        "gloo",
        init_method="tcp://no-such-host.invalid:29500",  # FAULT: nobody has this name
        rank=1,
        world_size=2,
        timeout=timedelta(seconds=1),
    )


def fixed():
    dist.init_process_group("gloo")  # MENDED: the launcher's address
    dist.destroy_process_group()
