"""Whether all ranks of a group are watched: one that is not would be waited for until the timeout.

It happens where the command `sanitize` was forgotten on one machine, or reached some ranks only.
"""

from __future__ import annotations

import sys

from ddp_helpers.sanitizer.talk.channel import Gone
from ddp_helpers.sanitizer.talk.session import Session

PATIENCE = 60.0  # seconds between the first rank's start and the last one's
ALL, NOT_ALL = "all", "not all"


def off_unless_all_meet(session: Session) -> None:
    """Switch the sanitizer off for all groups of which a rank does not come, and say so."""
    session.on_group.insert(0, session.guarded("all ranks", lambda: _meet(session)))


def _meet(session: Session) -> None:
    channel = session.channel
    if channel is None:
        return
    everyone, missing = range(session.world_size), list[int]()
    channel.publish("here", True)
    try:
        channel.wait("here", everyone, bool, PATIENCE)
    except Gone as gone:
        missing = gone.ranks
    # one may come while another gives up: the first to say so decides for all
    if channel.agree("met", NOT_ALL if missing else ALL) == ALL:
        return
    session.switch_off()
    watched = [rank for rank in everyone if rank not in missing]
    if missing and session.rank == watched[0]:
        print(
            f"the sanitizer is off: rank {missing[0]} is not watched; start all ranks under "
            "`python -m ddp_helpers sanitize`, on each machine",
            file=sys.stderr,
            flush=True,
        )
