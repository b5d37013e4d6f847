"""Lines of a Python stack, named as the reader knows them."""

from __future__ import annotations

import functools
import os
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from ddp_helpers.evidence.records import Frame

LIBRARY_FOLDERS = tuple(
    str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "purelib", "platlib")
)
OWN_FOLDER = str(Path(__file__).resolve().parents[1])
# what stands between the start of a rank and the reader's function
LAUNCHER_FILES = tuple(
    os.path.join(OWN_FOLDER, "ranks", name) for name in ("worker.py", "travel.py")
)
OPEN_FOLDERS = tuple(  # ours, and yet code that a learner runs, reads and changes
    os.path.join(OWN_FOLDER, name) for name in ("templates", "faults", "exercises")
)


@functools.cache  # asked for each line of a stack at each collective
def is_user_file(filename: str) -> bool:
    """True for the reader's own code: neither a library's nor this package's."""
    library = filename.startswith((*LIBRARY_FOLDERS, OWN_FOLDER, "<frozen"))
    return not library or filename.startswith(OPEN_FOLDERS)


def is_launcher_file(filename: str) -> bool:
    """True for the files that run a rank's function; a reader has nothing to look for there."""
    return filename in LAUNCHER_FILES


def make_frame(
    filename: str, line: int, function: str, names: Mapping[str, str], source: str = ""
) -> Frame:
    """Name a stack line as the reader knows it, and say whether it is the reader's own."""
    shown = names.get(filename, filename)
    return Frame(
        shown,
        line,
        function,
        source.strip(),
        is_user=is_user_file(filename),
        is_launcher=is_launcher_file(filename),
    )
