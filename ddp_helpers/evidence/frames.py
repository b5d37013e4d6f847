"""Lines of a Python stack, named as the reader knows them."""

from __future__ import annotations

import functools
import os
import re
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from ddp_helpers.evidence.records import Frame


def _as_found_and_resolved(*folders: str) -> tuple[str, ...]:
    """Python names a file by the way it was found, and that may lead over a link."""
    found = (*folders, *(str(Path(folder).resolve()) for folder in folders))
    return tuple(os.path.join(folder, "") for folder in found)


PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
LIBRARY_FOLDERS = _as_found_and_resolved(
    *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")), PACKAGE
)
# an environment may take libraries from another one's folder
INSTALLED = re.compile(r"[/\\](?:site|dist)-packages[/\\]")
# what stands between the start of a rank and the reader's function
LAUNCHER_FILES = tuple(
    os.path.join(PACKAGE, "ranks", name) for name in ("worker.py", "travel.py", "stay.py")
)
OPEN_FOLDERS = _as_found_and_resolved(  # ours, and yet code that a learner runs, reads and changes
    *(os.path.join(PACKAGE, name) for name in ("templates", "faults", "exercises"))
)


@functools.cache  # asked for each line of a stack at each collective
def is_user_file(filename: str) -> bool:
    """True for the reader's own code: neither a library's nor this package's."""
    library = filename.startswith((*LIBRARY_FOLDERS, "<frozen")) or INSTALLED.search(filename)
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
