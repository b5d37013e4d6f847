"""`python -m ddp_helpers torchrun`: the torchrun line for each machine."""

from __future__ import annotations

import argparse

from ddp_helpers import cluster
from ddp_helpers.cli.options import add_nodes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_nodes(parser)
    parser.add_argument("--nproc-per-node", default="gpu", help="ranks on each machine")
    parser.add_argument("--interface", help="the network card that leads to the others")
    parser.add_argument("script", help="the training script")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    nodes = range(options.nnodes) if options.node_rank is None else [options.node_rank]
    for node_rank in nodes:
        line = cluster.torchrun_line(
            options.script,
            options.arguments,
            nnodes=options.nnodes,
            node_rank=node_rank,
            nproc_per_node=options.nproc_per_node,
            master_addr=options.master_addr,
            master_port=options.master_port,
            # only this machine's own card is known here
            interface=options.interface
            or (options.node_rank is not None and cluster.interface_to(options.master_addr))
            or None,
        )
        print(line)
    return 0
