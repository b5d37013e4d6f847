"""A network interface that this machine does not have.

`export GLOO_SOCKET_IFNAME=eth7` helped on the old cluster, and has been in the start script ever
since. On this machine the interfaces have other names.
"""

import os

import torch.distributed as dist

from ddp_helpers.faults import Fault

FAULT = Fault(
    title="Wrong interface",
    group="many machines",
    says="Unable to find address for: eth7",
    cause="GLOO_SOCKET_IFNAME (or NCCL_SOCKET_IFNAME) names an interface that is not there.",
    mend="Leave it unset, or take a name that `ip -brief address` shows.",
    kind="no-such-interface",
    seen_in="pytorch#73656",
)


def faulty():
    os.environ["GLOO_SOCKET_IFNAME"] = "eth7"  # FAULT: from another machine
    dist.init_process_group("gloo")


def fixed():
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # MENDED: the loopback, right for one machine
    dist.init_process_group("gloo")
    dist.barrier()
    dist.destroy_process_group()
