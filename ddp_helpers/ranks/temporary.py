"""Where sockets of multiprocessing lie: a name has 107 bytes at most, and TMPDIR may be long."""

from __future__ import annotations

import contextlib
import multiprocessing.util
import os
import socket
import tempfile

ELSEWHERE = ("/tmp", "/var/tmp", "/dev/shm")
PREFIX = "pymp-"  # multiprocessing's own


def socket_folder() -> str:
    """This process's folder for sockets, made if there is none; it is removed with the process.

    Raises:
        OSError: no folder will do.
    """
    if folder := multiprocessing.current_process()._config.get("tempdir"):  # type: ignore[attr-defined]  # no public name
        return folder
    before, tempfile.tempdir = tempfile.tempdir, socket_parent()
    try:
        return multiprocessing.util.get_temp_dir()
    finally:
        tempfile.tempdir = before


def socket_parent(prefix: str = PREFIX) -> str:
    """The folder of TMPDIR, or another one where sockets can't be made there.

    Args:
        prefix: how the names of the folders to be made in it begin; eight letters follow.

    Raises:
        OSError: no folder will do.
    """
    usual = ""
    with contextlib.suppress(FileNotFoundError):  # no usual place can be written
        usual = tempfile.gettempdir()
    for folder in filter(None, (usual, os.environ.get("XDG_RUNTIME_DIR"), *ELSEWHERE)):
        if _takes_sockets(folder, prefix):
            return folder
    raise OSError(
        f"TMPDIR={os.environ.get('TMPDIR', '')!r}: ranks need a folder for their sockets, but none "
        f"can be made there, nor in {', '.join(ELSEWHERE)}: `export TMPDIR=` with a folder that "
        "can be written, on a local disk, whose path has at most 70 bytes (and a `umask` that "
        "leaves you your own rights)"
    )


def _takes_sockets(folder: str, prefix: str) -> bool:
    """Tried: too long a path, no right to write, and a disk that has no sockets look alike."""
    try:
        with (
            tempfile.TemporaryDirectory(prefix=prefix, dir=folder) as inside,
            socket.socket(socket.AF_UNIX) as probe,
        ):
            probe.bind(os.path.join(inside, "listener-12345678"))
    except OSError:
        return False
    return True
