"""What the command `sanitize` and the processes under it tell each other.

It gives them a few variables; each leaves an empty file in a folder of the command for how far it
came: "python" and "torch", or "off" (startup/sitecustomize.py), and "watched".
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

EVERY, MARKS = "DDP_HELPERS_SANITIZE_EVERY", "DDP_HELPERS_SANITIZE_MARKS"
IGNORE = "DDP_HELPERS_SANITIZE_IGNORE"  # kinds with a comma between
STARTUP = str(Path(__file__).resolve().with_name("startup"))


def environment(every: int, folder: str, ignore: Sequence[str] = ()) -> dict[str, str]:
    """The variables of the command's processes; of these the reader's stay as they are."""
    before = os.environ.get("PYTHONPATH")
    others = [entry for entry in before.split(os.pathsep) if entry != STARTUP] if before else []
    path = os.pathsep.join([STARTUP, *others])
    own = {"PYTHONPATH": path, EVERY: str(every), MARKS: folder, IGNORE: ",".join(ignore)}
    return {**os.environ, **own}


def every_asked() -> int:
    """Each how manieth step is to be looked at, if this runs under the command; else 0."""
    return int(os.environ.get(EVERY, "0"))


def ignore_asked() -> tuple[str, ...]:
    """The kinds of findings that the command was told to accept."""
    return tuple(kind for kind in os.environ.get(IGNORE, "").split(",") if kind)


def mark_watched() -> None:
    """A process group runs here, and is watched."""
    with contextlib.suppress(KeyError, OSError):  # no command, or one on another machine
        Path(os.environ[MARKS], "watched").touch()


def marks_in(folder: str) -> set[str]:
    """How far any process came."""
    return set(os.listdir(folder))
