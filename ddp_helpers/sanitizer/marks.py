"""What the command `sanitize` and the processes under it tell each other.

It gives them two variables; each leaves an empty file in a folder of the command for how far it
came: "python" and "torch", or "off" (startup/sitecustomize.py), and "watched".
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

EVERY, MARKS = "DDP_HELPERS_SANITIZE_EVERY", "DDP_HELPERS_SANITIZE_MARKS"
STARTUP = str(Path(__file__).resolve().with_name("startup"))


def environment(every: int, folder: str) -> dict[str, str]:
    """The variables of the command's processes; of these the reader's stay as they are."""
    before = os.environ.get("PYTHONPATH")
    others = [entry for entry in before.split(os.pathsep) if entry != STARTUP] if before else []
    path = os.pathsep.join([STARTUP, *others])
    return {**os.environ, "PYTHONPATH": path, EVERY: str(every), MARKS: folder}


def every_asked() -> int:
    """Each how manieth step is to be looked at, if this runs under the command; else 0."""
    return int(os.environ.get(EVERY, "0"))


def mark_watched() -> None:
    """A process group runs here, and is watched."""
    with contextlib.suppress(KeyError, OSError):  # no command, or one on another machine
        Path(os.environ[MARKS], "watched").touch()


def marks_in(folder: str) -> set[str]:
    """How far any process came."""
    return set(os.listdir(folder))
