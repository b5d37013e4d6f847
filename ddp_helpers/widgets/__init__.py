"""Explorables: move a control, and see what the ranks do.

    from ddp_helpers import widgets
    widgets.explore("sampler")               # the last line of a cell
    widgets.explore("sampler", ranks=3)      # where its controls stand at the start

Each is one file with `explorable()`, and the arithmetic behind it as plain functions. The pages of
the course run the same files in the browser.
"""

from __future__ import annotations

import importlib
import inspect
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ddp_helpers.widgets.base import Live

NAMES = (
    *("machine_room", "collectives", "ring", "one_step", "sampler", "accumulation", "ladder"),
    *("monitor", "overlap", "planner", "memory", "fault_lab"),
)


def explore(name: str, **start: object) -> Live:
    """An explorable, ready to be shown as the last line of a notebook cell.

    Args:
        name: one of `NAMES`.
        start: where its controls stand at the start.

    Raises:
        ValueError: there is no such explorable.
        TypeError: it has no such control.
    """
    if name not in NAMES:
        raise ValueError(f"no explorable {name!r}: expected one of {', '.join(NAMES)}")
    make = importlib.import_module(f"{__name__}.{name}").explorable
    known = inspect.signature(make).parameters
    for given in start:
        if given not in known:
            raise TypeError(f"{name} has no control {given!r}; it has: {', '.join(known)}")
    from ddp_helpers.widgets.base import Live

    explorable = make(**start)
    return (explorable.shown_by or Live)(explorable)
