"""Several machines: the torchrun line for each, checks of their network, and two to learn on."""

from ddp_helpers.cluster.network import interface_to, preflight, torchrun_line
from ddp_helpers.cluster.two_hosts import TwoHosts

__all__ = ["TwoHosts", "interface_to", "preflight", "torchrun_line"]
