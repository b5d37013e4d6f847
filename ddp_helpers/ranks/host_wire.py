"""What a launcher and its hosts say to each other. Both sides read it here.

The two ends of ssh, or of srun, are pipes: a message is a line that begins with MARK, and all other
lines are of somebody else, such as a greeting that a login prints.

1. A host says `Hello`. The first one opens the store where the ranks meet: `Opened`. Each other one
   is asked to `Meet` it, and says `Met`.
2. The launcher sends the `Task`. A host says `Began` or, if it can't, `Refused`.
3. While ranks run, the host passes on what they print and report, and how they end.
4. `Stop`, a failure or the limit ends them. A host that is about to end its ranks notes where they
   stand and says `Looked`; once all hosts have, the launcher says `End`. Else ranks of another host
   would only tell that they had lost a connection.
5. When all of them have ended the host says `Left`, and ends.

Both sides send a `Beat` every few seconds. A launcher that ends, however it ends, closes the pipe;
where a network breaks nobody does, and a side that hears nothing for long ends by itself.
"""

from __future__ import annotations

import base64
import hashlib
import pickle
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from ddp_helpers.evidence.records import RankResult
from ddp_helpers.ranks.supervisor import Ending

MARK = b"ddp-helpers:"
FIRST, OTHER = "first", "other"  # what a host is: the first one has the store
BEAT = 2.0  # seconds
LONGEST_SILENCE = 30.0  # seconds that a launcher waits for a beat
LONGEST_SILENCE_OF_LAUNCHER = 60.0  # seconds; its reader may have paused it with Ctrl-Z
READ_AT_ONCE = 1 << 20  # bytes
LONGEST_MEETING = 10.0  # seconds for a host to call the first one, at all of its addresses


@dataclass(frozen=True)
class Hello:
    """A host is there."""

    versions: dict[str, str]
    """Of what must be the same everywhere, by its name."""
    addresses: tuple[str, ...]
    """Where others may reach it, the likeliest first."""
    clock: float
    """Its `time.monotonic()`."""


@dataclass(frozen=True)
class Opened:
    """The first host has the store, at this port."""

    port: int


@dataclass(frozen=True)
class Meet:
    """Find out which of these addresses of the first host can be reached."""

    addresses: tuple[str, ...]
    port: int


@dataclass(frozen=True)
class Met:
    """The first one that can, or nothing."""

    address: str


@dataclass(frozen=True)
class Began:
    """The ranks start now."""

    note: str = ""
    """For the reader."""


@dataclass(frozen=True)
class Refused:
    """No rank can start here, and why."""

    why: str


@dataclass(frozen=True)
class Printed:
    """A rank has printed lines."""

    rank: int
    lines: list[str]


@dataclass(frozen=True)
class Reported:
    """A rank has told how far it is."""

    rank: int
    step: int
    total: int | None
    loss: float | str | None


@dataclass(frozen=True)
class RankEnded:
    """A rank has ended: `done`, `failed` or `ended`."""

    rank: int
    how: str


@dataclass(frozen=True)
class Looked:
    """The ranks of this host are about to be ended; it is known where they stand."""


@dataclass(frozen=True)
class Left:
    """All ranks of the host have ended, and this is what they left; values are still pickled."""

    ranks: tuple[RankResult[Any], ...]
    ending: Ending


@dataclass(frozen=True)
class Beat:
    """Still here."""


@dataclass(frozen=True)
class Stop:
    """Look where the ranks stand, and be ready to end them."""


@dataclass(frozen=True)
class End:
    """End the ranks; all hosts have looked."""


def encode(message: object) -> bytes:
    """A message as a line."""
    return MARK + base64.b64encode(pickle.dumps(message)) + b"\n"


class Reader:
    """Makes messages of what a pipe brings."""

    def __init__(self) -> None:
        self._rest: list[bytes] = []

    def read(self, data: bytes) -> Iterator[object]:
        """The messages that are whole now.

        Raises:
            Exception: one is of another version of this file.
        """
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = b"".join((*self._rest, lines[0]))
            self._rest = []
        self._rest.append(rest)
        for line in lines:
            _, mark, text = line.partition(MARK)
            if mark:
                yield pickle.loads(base64.b64decode(text))


def versions() -> dict[str, str]:
    """What must be the same on all hosts: a function that travels is code of one Python."""
    known = {"Python": "{}.{}".format(*sys.version_info)}
    known |= {name: _installed(name) for name in ("torch", "cloudpickle")}
    files = sorted(Path(__file__).parent.glob("*.py"))
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return known | {"ddp_helpers": f"{_installed('ddp_helpers')} ({digest[:8]})"}


def _installed(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"
