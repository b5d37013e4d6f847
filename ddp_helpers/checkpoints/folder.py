"""A folder with the last few checkpoints of a run; a damaged one is found, and passed over."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist

from ddp_helpers.arguments import check_whole
from ddp_helpers.checkpoints.file import CheckpointError, load_checkpoint, write_on_rank_0

# hexadecimal digits of the sha256: 64 bits rule chance out, and the name stays readable
_DIGEST_LENGTH = 16
_NAME = re.compile(rf"checkpoint-(\d{{6,}})-([0-9a-f]{{{_DIGEST_LENGTH}}})\.pt(\.damaged)?")
_BEST = "best-"


class CheckpointFolder:
    """Numbered checkpoints, `checkpoint-000012-1f0c...9a.pt`: a number and the content's sha256.

    The digest is part of the name, so one rename puts both in place, and a file that was cut
    short or changed later no longer fits its name. Where a process group runs, all ranks must
    call `save` and `load_newest`; rank 0 writes, and every rank must see the folder.

    Args:
        folder: made if need be. It belongs to one run.
        keep: how many to keep, at least 1. With one alone, damage to it loses the run.

    Raises:
        ValueError: keep below 1, or something else has the folder's name.
    """

    def __init__(self, folder: str | Path, keep: int = 3) -> None:
        check_whole("keep", keep, least=1)
        self.folder, self.keep = Path(folder), keep
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"{folder} is a file: expected a folder, or a name that is free")

    def save(self, **state: object) -> Path:
        """Write one more, then delete the oldest beyond `keep`; takes what save_checkpoint takes.

        Raises:
            CheckpointError: it could not be written; on every rank. The older ones are untouched.
        """
        number = max((_number(path) for path in self._all()), default=0) + 1
        path = self.folder / f"checkpoint-{number:06d}.pt"
        final = write_on_rank_0(state, path, _name_with_digest)
        self._prune(final)
        return final

    def keep_best(self, path: Path) -> None:
        """Give one checkpoint a second name, `best-...`, in place of the one that had it before.

        It is outside of what `keep` counts and `load_newest` looks at. All ranks must call it.

        Raises:
            CheckpointError: it could not be done; on every rank. The one before is untouched.
        """

        def link() -> None:
            before, best = self.best(), path.with_name(_BEST + path.name)
            temporary = path.with_name(f".{best.name}.tmp")
            temporary.unlink(missing_ok=True)
            try:
                os.link(path, temporary)  # the same file, which stays until both names are gone
            except OSError:  # some file systems have no second names
                shutil.copyfile(path, temporary)
            os.replace(temporary, best)
            for old in before:
                if old != best:
                    old.unlink(missing_ok=True)

        _from_rank_0(link)

    def best(self) -> list[Path]:
        """The checkpoint that `keep_best` has kept, as a list of one, or of none."""
        found = self.folder.glob(f"{_BEST}*.pt")
        mine = [path for path in found if _NAME.fullmatch(path.name.removeprefix(_BEST))]
        return sorted(mine, key=_number)

    def load_best(self) -> tuple[Path, dict[str, Any]]:
        """The best one, on the CPU, if it is whole. Each rank may call it, or one alone.

        Raises:
            CheckpointError: there is none, or it is damaged.
        """
        if not (found := self.best()):
            raise CheckpointError(f"no best checkpoint in {self.folder}: train with fit first")
        path = found[-1]  # of two, a run was killed before it could delete the older one
        if problem := damage(path):
            raise CheckpointError(f"{path} {problem}: use one of the newest, or a copy")
        return path, load_checkpoint(path)

    def paths(self) -> list[Path]:
        """The checkpoints, newest first, without those found damaged."""
        whole = [path for path in self._all() if not path.name.endswith(".damaged")]
        return sorted(whole, key=_number, reverse=True)

    def load_newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest that is whole, on the CPU; None if there never was one.

        A damaged one is renamed to `...damaged`, so that it takes no good one's place among those
        kept, and rank 0 says on stderr what happened.

        Raises:
            CheckpointError: there are some, but none is whole, or a rank can't read it. It is
                raised on every rank.
        """
        found = _from_rank_0(self._newest_whole)
        if found is None:
            return None
        self._prune(found)  # a run that was killed just before it could
        state: dict[str, Any] = {}
        error = None
        try:
            state = load_checkpoint(found)
        except (OSError, CheckpointError) as caught:
            error = f"rank {_rank()} can't read it: {caught}"
        if errors := [text for text in _gathered(error) if text]:
            raise CheckpointError(f"{found}: {'; '.join(errors)}; every rank must see the folder")
        return found, state

    def _prune(self, whole: Path) -> None:
        """Delete the oldest beyond `keep`, but never the one that is known to be whole."""
        if _is_rank_0():
            for old in self.paths()[self.keep :]:
                if old != whole:
                    old.unlink(missing_ok=True)
            for leftover in self.folder.glob(f".{_BEST}*.tmp"):  # of a run killed in keep_best
                leftover.unlink(missing_ok=True)

    def _all(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name)]

    def _newest_whole(self) -> Path | None:
        damaged: list[str] = []
        for path in self.paths():
            problem = damage(path)
            if problem is None:
                _tell(damaged, path)
                return path
            damaged.append(f"{path.name} {problem}")
            if not problem.startswith("can't be read"):  # a disk that is away may come back
                path.rename(path.with_name(path.name + ".damaged"))
        if damaged or self._all():
            raise CheckpointError(
                f"no whole checkpoint in {self.folder} ({'; '.join(damaged) or 'all damaged'}): "
                "bring one back from a copy, or name another folder to start anew"
            )
        return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None if its content fits the digest in its name."""
    try:
        size, found = path.stat().st_size, _digest(path)
    except OSError as error:
        return f"can't be read ({error})"
    expected = _name_of(path)[2]
    if found == expected:
        return None
    if size == 0:
        return "is empty"
    return f"is damaged ({size:,} bytes, sha256 {found}..., expected {expected}...)"


def _tell(damaged: list[str], path: Path) -> None:
    for text in damaged:
        print(f"checkpoint {text}: going back to {path.name}", file=sys.stderr, flush=True)


def _name_with_digest(temporary: Path) -> Path:
    name = temporary.name.split(".")[1]  # .checkpoint-000012.pt.host.pid.tmp
    return temporary.with_name(f"{name}-{_digest(temporary)}.pt")


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:_DIGEST_LENGTH]


def _name_of(path: Path) -> re.Match[str]:
    found = _NAME.fullmatch(path.name.removeprefix(_BEST))
    if found is None:
        raise ValueError(f"{path}: expected the name of a checkpoint that CheckpointFolder saved")
    return found


def _number(path: Path) -> int:
    return int(_name_of(path)[1])


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _is_rank_0() -> bool:
    return _rank() == 0


def _from_rank_0(function: Callable[[], Path | None]) -> Path | None:
    """What `function` returns on rank 0, or its CheckpointError, on every rank."""
    found, error = None, None
    if _is_rank_0():
        try:
            found = function()
        except (CheckpointError, OSError) as caught:
            error = str(caught)
    if dist.is_available() and dist.is_initialized():
        news = [(found, error)]
        dist.broadcast_object_list(news, src=0)
        found, error = news[0]
    if error is not None:
        raise CheckpointError(error)
    return found


def _gathered(text: str | None) -> list[str | None]:
    if not (dist.is_available() and dist.is_initialized()):
        return [text]
    values: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, text)
    return values
