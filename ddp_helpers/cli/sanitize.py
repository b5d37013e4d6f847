"""`python -m ddp_helpers sanitize`: any command that starts ranks, watched for silent mistakes."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

from ddp_helpers.arguments import check_whole
from ddp_helpers.cli.child_process import run_child
from ddp_helpers.cli.options import add_ignore, ignored
from ddp_helpers.sanitizer import marks
from ddp_helpers.words import shown

REMOTE = {"srun", "sbatch", "salloc", "mpirun", "mpiexec", "mpiexec.hydra", "ssh", "pdsh"}
KEPT_OUT = (
    "python -E, -I and -S, an environment made anew (env -i, another PYTHONPATH) and containers "
    "keep it out: there, put `python -m ddp_helpers sanitize` inside, before what starts the ranks"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.usage = "python -m ddp_helpers sanitize [--every N] [--ignore KIND] [--] COMMAND..."
    parser.add_argument(
        "--every",
        type=int,
        default=1,
        metavar="N",
        help="look at weights and data on each Nth step only, which costs less",
    )
    add_ignore(parser)
    parser.add_argument(
        "command",
        nargs=argparse.REMAINDER,
        metavar="COMMAND...",
        help="what you would type without: torchrun --nproc-per-node 2 train.py",
    )


def run(options: argparse.Namespace) -> int:
    """Run the command; returns the exit code of what it ran, 127 if there is no such thing."""
    check_whole("--every", options.every, least=1)
    ignore = ignored(options)
    own_dashes = ["--"] if options.command and options.arguments else []
    command = [*options.command, *own_dashes, *options.arguments]
    _check(command)
    with tempfile.TemporaryDirectory(prefix="ddp-sanitize-", ignore_cleanup_errors=True) as folder:
        try:
            code = run_child(command, marks.environment(options.every, folder, ignore))
        except OSError as error:
            told = f"error: {command[0]}: {error.strerror}{shown(_hint(command[0]))}"
            print(told, file=sys.stderr)
            return 127 if isinstance(error, FileNotFoundError) else 126
        seen = marks.marks_in(folder)
    if "watched" in seen:
        marks.mark_watched()  # for another `sanitize` around this one
    else:
        print(shown(f"the sanitizer watched nothing{_why(seen, command)}"), file=sys.stderr)
    return code


def _check(command: list[str]) -> None:
    example = "python -m ddp_helpers sanitize torchrun --nproc-per-node 2"
    if not command:
        raise ValueError(f"no command to watch; for example: {example} train.py")
    if command[0].endswith(".py") and shutil.which(command[0]) is None:
        raise ValueError(
            f"{command[0]} is a script: expected the command that starts its ranks, for example "
            f"`{example} {command[0]}`, or `python {command[0]}` if it starts them itself"
        )


def _hint(word: str) -> str:
    """What is in the environment's folder is found by name only once this is active."""
    if os.sep in word or not (beside := Path(sys.executable).with_name(word)).exists():
        return ""
    return f"; there is {beside}"


def _why(seen: set[str], command: list[str]) -> str:
    """How far the processes came; of those on other machines nothing is known."""
    if "off" in seen:
        return ": it was off, see above"
    nodes = os.environ.get("SLURM_JOB_NUM_NODES", "1")
    if nodes != "1" or any(os.path.basename(word) in REMOTE for word in command):
        return " on this machine; of ranks on others it can't tell from here"
    if "python" not in seen:
        return f": no Python took it in\n{KEPT_OUT}"
    if "torch" not in seen:
        return f": no Python that took it in imported torch.distributed\n{KEPT_OUT}"
    return (
        ": torch was imported, but no process that took it in called init_process_group; a script "
        f"that starts without a launcher has no ranks to compare\n{KEPT_OUT}"
    )
