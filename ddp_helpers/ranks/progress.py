"""`report(step=..., total=..., loss=...)`: a rank tells its launcher how far it is."""

from __future__ import annotations

import contextlib
import math
import select
import socket
import time

from ddp_helpers.ranks import wire
from ddp_helpers.ranks.messages import Report

MOST_PER_SECOND = 30  # more than a reader can see; the rest would only slow the rank
LAST_ONE_WAITS = 0.5  # seconds: the last report is worth a moment
_link: socket.socket | None = None
_last_sent = 0.0


def report(*, step: int, total: int | None = None, loss: float | None = None) -> None:
    """Tell the launcher how far this rank is; does nothing without `launch()`.

    Costs a few microseconds and does not wait for a busy launcher. `launch(..., live=True)` draws
    what it hears.

    Args:
        step: steps done so far.
        total: steps in all, if known.
        loss: the current loss; give `loss.item()` seldom on a GPU, as it waits for the GPU.
    """
    global _last_sent
    if _link is None:
        return
    now = time.monotonic()
    if now < _last_sent + 1 / MOST_PER_SECOND and step != total:
        return
    _last_sent = now
    number: float | str | None = None if loss is None else float(loss)
    if isinstance(number, float) and not math.isfinite(number):
        number = repr(number)  # nan and inf are not JSON
    if step == total:
        select.select([], [_link], [], LAST_ONE_WAITS)
    whole = None if total is None else int(total)
    with contextlib.suppress(OSError):  # the launcher is busy: this report is dropped
        wire.send_report(_link, Report(int(step), whole, number))


def connect(link: socket.socket) -> None:
    """Send this rank's reports through a socket; the worker calls it once."""
    global _link
    _link = link
