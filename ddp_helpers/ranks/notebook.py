"""What a launch must know of the notebook that it is called from."""

from __future__ import annotations

import linecache
import sys
from typing import Any


def ipython_shell() -> Any:
    """IPython's shell, or None outside of IPython; imports nothing to find out."""
    ipython = sys.modules.get("IPython")
    return ipython.get_ipython() if ipython else None


def is_kernel() -> bool:
    """True in a notebook's kernel: output can be drawn again, and functions stand in cells."""
    return hasattr(ipython_shell(), "kernel")


def notebook_cells() -> tuple[dict[str, str], dict[str, str]]:
    """The text of the notebook's cells by file name, and the name that the reader knows them by."""
    shell = ipython_shell()
    if shell is None:
        return {}, {}
    sources, names = {}, {}
    for filename, entry in list(linecache.cache.items()):
        if len(entry) != 4:  # only a promise to read the file when it is asked for: no cell
            continue
        known = shell.compile.format_code_name(filename)
        if known:
            sources[filename] = "".join(entry[2])
            names[filename] = f"{known[0].lower()} {known[1]}"
    return sources, names
