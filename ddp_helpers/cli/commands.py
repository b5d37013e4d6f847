"""Learn and start data-parallel PyTorch: check, train, run, bench, plan, diagnose, and more."""

from __future__ import annotations

import argparse
import importlib
import io
import os
import signal
import sys
from collections.abc import Sequence

from ddp_helpers.ranks import LaunchError
from ddp_helpers.words import shown

COMMANDS = {
    "check": "Tell what this machine can do, with advice; exit code 1 if something must be mended.",
    "train": "Train the course's small CNN on the shipped digits, with real ranks.",
    "run": "Run a function of a script on several ranks; what follows -- goes to the script.",
    "sanitize": "Run any command that starts ranks, and watch these for silent mistakes.",
    "verify": "Compare a training on n ranks with one process: 0 equal, 1 parts, 2 can't compare.",
    "torchrun": "Write the torchrun line for each machine; what follows -- goes to the script.",
    "preflight": "Start it on every machine: can they meet? 1 if something must be mended.",
    "diagnose": "Read the log of any run (torchrun, spawn, Slurm), name the cause; 1 if unknown.",
    "explain": "Tell what one message means, or which known ones are nearest; 1 if none is.",
    "plan": "Predict step time, efficiency, hours and cost for more ranks; what fits in memory.",
    "bench": "Measure how your own training scales, name what bounds it, and try what helps.",
    "classroom": "For a class: seats, copies to hand out, a board, answers in one folder; `reset`.",
    "new": "Copy a template.",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a closed one is None, a notebook's another
            stream.reconfigure(errors="backslashreplace")  # a terminal may lack letters
    words = list(sys.argv[1:] if argv is None else argv)
    ours = words.index("--") if "--" in words else len(words)
    options = _parser(words[:1]).parse_args(words[:ours])
    options.arguments = words[ours + 1 :]
    try:
        code = options.run(options)
        if sys.stdout:
            sys.stdout.flush()  # here an error has one line, at Python's end it has a traceback
        return code
    except BrokenPipeError:  # the reader has left (`| head -1`): nobody is there to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for the flush at Python's end
        return 128 + signal.SIGPIPE
    except LaunchError as error:
        print(error, file=sys.stderr)
        return 1
    except (ValueError, TypeError, OSError) as error:
        print(f"error: {shown(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped", file=sys.stderr)
        return 130


def _parser(chosen: Sequence[str]) -> argparse.ArgumentParser:
    """The commands, and the options of the chosen one: only its file is loaded."""
    parser = argparse.ArgumentParser(prog="python -m ddp_helpers", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, what in COMMANDS.items():
        sub = commands.add_parser(name, help=what, description=what)
        if name in chosen:
            command = importlib.import_module(f"ddp_helpers.cli.{name}")
            sub.set_defaults(run=command.run)
            command.add_arguments(sub)
    return parser
