"""Checkpoints that are whole or not there: rank 0 writes, every rank may read right after."""

from __future__ import annotations

import contextlib
import glob
import os
import pickle
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

# characters of torch's own text in an error: two lines of a terminal
_LONGEST_REASON = 160
_ZIP_START = b"PK\x03\x04"


class CheckpointError(RuntimeError):
    """A checkpoint is damaged, or holds what cannot be loaded back safely."""


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel or torch.compile, or `model`.

    A wrapper's own state_dict() puts "module." before every name, so that only the same wrapper
    can load it. Save and evaluate the unwrapped module.
    """
    while True:
        if isinstance(model, DistributedDataParallel | DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):  # torch.compile
            model = inner
        else:
            return model


def save_checkpoint(path: str | Path, **state: object) -> Path:
    """Write a checkpoint on rank 0 while the other ranks wait; then every rank can load it.

    The file is written under another name in the same folder, flushed to the disk, read back,
    and only then renamed. A run that dies while saving leaves the previous checkpoint untouched.
    Where a process group runs, all ranks must call this.

    Args:
        path: where to; its folder is made if need be.
        **state: tensors, numbers, text, lists and dicts of these, and anything with a
            state_dict(), of which that is saved. A model is unwrapped first.

    Returns:
        The path.

    Raises:
        ValueError: no state was given.
        CheckpointError: a value could not be loaded back, or rank 0 could not write. It is
            raised on every rank, so that no rank waits for one that has failed.
    """
    if not state:
        raise ValueError("nothing to save: pass model=..., optimizer=..., epoch=...")
    return write_on_rank_0(state, Path(path), lambda temporary: Path(path))


def write_on_rank_0(state: dict[str, object], path: Path, name_of: Callable[[Path], Path]) -> Path:
    """Rank 0 writes and renames; all ranks wait for it and get the final path, or the error.

    Args:
        path: what messages and the temporary file are called after.
        name_of: from the finished temporary file to the final path, asked on rank 0.
    """
    error: str | None = None
    cause, final = None, path
    grouped = dist.is_available() and dist.is_initialized()
    if not grouped or dist.get_rank() == 0:
        try:
            final = _write({name: _plain(value) for name, value in state.items()}, path, name_of)
        except Exception as caught:
            error, cause = f"could not save {path}: {_reason(caught)}", caught
    if grouped:
        # a barrier that also carries the news: after a plain one the others would go on alone
        news = [(error, final)]
        dist.broadcast_object_list(news, src=0)
        error, final = news[0]
    if error:
        raise CheckpointError(error) from cause
    return final


def load_checkpoint(path: str | Path, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """Read a checkpoint: the dict that `save_checkpoint` was given, models as state dicts.

    Args:
        path: the file.
        map_location: where the tensors go. "cpu" is safe on every rank; without it each rank
            would put a copy on the GPU that the tensors came from, which is mostly GPU 0.

    Raises:
        FileNotFoundError: no such file.
        CheckpointError: the file is cut short, no checkpoint, or holds more than plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"no checkpoint {path}: expected a file that save_checkpoint wrote; train first, or "
            "correct the path"
        )
    state = _read(path, map_location, name=path)
    if not isinstance(state, dict):
        raise CheckpointError(
            f"{path} holds a {type(state).__name__}: expected a dict; save with save_checkpoint"
        )
    return state


def _plain(value: object) -> object:
    if isinstance(value, nn.Module):
        return unwrap(value).state_dict()
    return value.state_dict() if hasattr(value, "state_dict") else value


def _write(state: dict[str, object], path: Path, name_of: Callable[[Path], Path]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    with _removed_on_error(temporary):
        with open(temporary, "wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())  # without it a power cut can leave the new name, empty
        _read(temporary, "meta", name=path)  # what can't be loaded must not replace what can
        final = name_of(temporary)
        os.replace(temporary, final)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)
    return final


def _remove_leftovers(path: Path) -> None:
    """Delete temporary files of runs on this machine that died while saving to `path`."""
    start = glob.escape(f".{path.name}.{socket.gethostname()}")
    for leftover in path.parent.glob(f"{start}.*.tmp"):
        pid = leftover.name.split(".")[-2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def _removed_on_error(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _read(path: Path, map_location: str | torch.device, name: Path) -> object:
    """torch.load without running code from the file, and with one clear error about `name`."""
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except pickle.UnpicklingError as error:
        if "Weights only load failed" not in str(error) or not _is_torch_file(path):
            raise CheckpointError(_damaged(path, name, error)) from error
        raise CheckpointError(
            f"{name} holds more than tensors and plain values ({_reason(error)}): save a "
            "state_dict(), numbers, text, lists and dicts"
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, IndexError) as error:
        raise CheckpointError(_damaged(path, name, error)) from error


def _is_torch_file(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(len(_ZIP_START)) == _ZIP_START  # torch.save writes a zip archive


def _damaged(path: Path, name: Path, error: Exception) -> str:
    return (
        f"{name} ({path.stat().st_size:,} bytes) is damaged or no checkpoint "
        f"({_reason(error)}): expected a whole file from save_checkpoint; use an older one"
    )


def _reason(error: Exception) -> str:
    """The line of torch's long texts that says what was wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if "Unsupported" in line or "GLOBAL" in line]
    text = (telling or lines or [type(error).__name__])[0]
    return text if len(text) < _LONGEST_REASON else text[: _LONGEST_REASON - 3] + "..."
