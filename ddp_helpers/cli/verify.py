"""`python -m ddp_helpers verify`: does a training on n ranks do what one process does?"""

from __future__ import annotations

import argparse
import shlex
import sys

from ddp_helpers.cli.options import add_nprocs
from ddp_helpers.verifier import verify

HELP = """\
TARGET is path/script.py:function, or path/script.py to run it as a program. It trains with DDP, as
it would under torchrun, and needs no change. It is ended after --steps steps, and runs three times
or more: on n ranks; on one rank with the same batches, united, and the same first weights; and so
once more, moved by a rounding, to learn what rounding makes.

Exit code: 0 equal, 1 it parts, 2 it can't be compared.

A script that divides by the batch size it was given needs another one on one rank, the global one:
verify train.py -n 2 --alone "--batch-size 64" -- --batch-size 32

The function's own files (checkpoints, logs) are written as always. "{folder}" in an argument
becomes an empty folder, one for each run:  verify train.py -n 2 -- --run-folder "{folder}"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = HELP
    add = parser.add_argument
    add("target", metavar="TARGET", help="path/script.py:function, or path/script.py")
    add_nprocs(parser)
    add("--steps", type=int, default=5, help="of the first optimizer that are compared")
    add("--float64", action="store_true", help="double precision, no autocast: little can hide")
    add("--alone", default="", metavar="WORDS", help="arguments for the run on one rank, besides")
    add("--threads-per-rank", type=int, help="the same in all runs; by default cores // ranks")
    add("--timeout", type=float, default=600.0, help="seconds for each run")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    target = options.target
    sys.argv = [target.rpartition(":")[0] or target, *options.arguments]
    verdict = verify(
        target,
        options.nprocs,
        steps=options.steps,
        float64=options.float64,
        alone=shlex.split(options.alone),
        timeout=options.timeout,
        threads_per_rank=options.threads_per_rank,
    )
    print(verdict)
    return verdict.exit_code
