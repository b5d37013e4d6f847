"""Where the course's data lies. Loads no torch, so that a command can tell it at once."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def data_root(root: str | Path | None = None) -> Path:
    """The folder that holds mnist_5k/ and austen/: `root`, else DDP_HELPERS_DATA, else ours.

    Ours is _data/ inside the package where a wheel was installed, and data/ beside it in the
    repository.
    """
    if root is None:
        installed = PACKAGE / "_data"
        ours = installed if installed.is_dir() else PACKAGE.parent / "data"
        root = os.environ.get("DDP_HELPERS_DATA") or ours
    return Path(root).expanduser()
