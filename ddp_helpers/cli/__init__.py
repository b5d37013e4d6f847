"""The command line: `python -m ddp_helpers COMMAND`, one file a command."""

from ddp_helpers.cli.commands import main

__all__ = ["main"]
