"""`python -m ddp_helpers preflight`: can these machines meet?."""

from __future__ import annotations

import argparse
import sys

from ddp_helpers import cluster
from ddp_helpers.cli.options import add_nodes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add_nodes(parser, node_rank=0)
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="how long to wait for the others"
    )


def run(options: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    checks = cluster.preflight(
        nnodes=options.nnodes,
        node_rank=options.node_rank,
        master_addr=options.master_addr,
        master_port=options.master_port,
        seconds=options.seconds,
    )
    for result in checks:
        print(result, file=sys.stdout if result.ok else sys.stderr)
    return int(not all(result.ok for result in checks))
