"""All that is known to go wrong, as one list and one page."""

from ddp_helpers.troubleshooting.examples import Example, read_examples
from ddp_helpers.troubleshooting.known import COMMAND, Trouble, command, page, troubles
from ddp_helpers.troubleshooting.nearest import find_nearest

__all__ = [
    "COMMAND",
    "Example",
    "Trouble",
    "command",
    "find_nearest",
    "page",
    "read_examples",
    "troubles",
]
