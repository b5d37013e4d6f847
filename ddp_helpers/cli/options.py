"""Options that several commands have."""

from __future__ import annotations

import argparse

from ddp_helpers.sanitizer.kinds import checked


def add_nodes(parser: argparse.ArgumentParser, node_rank: int | None = None) -> None:
    """Which machines there are, and which one this is."""
    parser.add_argument("--nnodes", type=int, default=2, help="how many machines")
    parser.add_argument(
        "--node-rank", type=int, default=node_rank, help="this one's number, from 0"
    )
    parser.add_argument("--master-addr", required=True, help="name or address of machine 0")
    parser.add_argument("--master-port", type=int, default=29500)


def add_nprocs(parser: argparse.ArgumentParser) -> None:
    """How many ranks."""
    parser.add_argument(
        "-n", "--nprocs", type=int, help="ranks; by default one per GPU, or 2 without GPUs"
    )


def add_ignore(parser: argparse.ArgumentParser) -> None:
    """Which findings of the sanitizer are accepted."""
    parser.add_argument(
        "--ignore",
        action="append",
        default=[],
        metavar="KIND",
        help="accept findings of this kind, and go on watching; may be given several times",
    )


def ignored(options: argparse.Namespace) -> tuple[str, ...]:
    """The kinds of findings that are accepted.

    Raises:
        ValueError: there is no such kind.
    """
    return checked("--ignore", [kind for each in options.ignore for kind in each.split(",")])
