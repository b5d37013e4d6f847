"""`python -m ddp_helpers run`: a function of any script on several ranks."""

from __future__ import annotations

import argparse
import sys

from ddp_helpers import launch
from ddp_helpers.arguments import check_whole
from ddp_helpers.cli.options import add_ignore, add_nprocs, ignored
from ddp_helpers.ranks.reach import SLURM
from ddp_helpers.sanitizer.marks import every_asked
from ddp_helpers.sanitizer.talk.session import Options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.add_argument("target", help="path/script.py:function")
    add_nprocs(parser)
    parser.add_argument(
        "--hosts",
        metavar="A,B",
        help="machines that ssh reaches without a password, in place of this one; or slurm",
    )
    parser.add_argument("--nprocs-per-host", type=int, metavar="N", help="ranks on each of them")
    parser.add_argument("--timeout", type=float, default=86_400.0, help="seconds for the whole run")
    parser.add_argument("--start-method", default="forkserver", choices=("forkserver", "spawn"))
    parser.add_argument("--threads-per-rank", type=int)
    parser.add_argument(
        "--sanitize",
        type=int,
        nargs="?",
        const=1,
        default=0,
        metavar="N",
        help="watch for silent mistakes; look at weights and data on each Nth step only",
    )
    add_ignore(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    ignore, every = ignored(options), options.sanitize
    check_whole("--sanitize", every, least=0)
    every = every or every_asked()  # the command `sanitize` may be around this one
    if ignore and not every:
        raise ValueError(f"--ignore {ignore[0]}: nothing is watched without --sanitize; add it")
    script, _, _ = options.target.rpartition(":")
    sys.argv = [script, *options.arguments]
    result = launch(
        options.target,
        options.nprocs,
        hosts=options.hosts.split(",") if options.hosts not in (None, SLURM) else options.hosts,
        nprocs_per_host=options.nprocs_per_host,
        timeout=options.timeout,
        start_method=options.start_method,
        threads_per_rank=options.threads_per_rank,
        sanitize=Options(every, ignore) if every else False,
    )
    return 0 if result.quit_by is None else 1
