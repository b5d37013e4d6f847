"""Learners' copies of the course: made, made anew, and set back, and nobody's work is lost by it.

A copy holds `notebooks/` without outputs, `course/` to read in (templates, faults), a README
and `.ddp_class/`: the originals for a reset, the learner's progress and their last answers.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ddp_helpers.arguments import check_whole
from ddp_helpers.classroom.contents import Contents, contents
from ddp_helpers.classroom.learners import SEAT
from ddp_helpers.data.folder import data_root
from ddp_helpers.exercises import progress_file

KEPT = "kept"  # the folder, in notebooks/, where a reset puts what the learner had


@dataclass(frozen=True)
class Made:
    """What became of one learner's copy."""

    folder: Path
    new: tuple[str, ...]
    """Notebooks that were put there, or that a newer original has replaced."""
    left: tuple[str, ...]
    """Notebooks that the learner has changed, and that stayed as they are."""


def hand_out(
    folder: str | Path,
    learners: int | Sequence[str] | None = None,
    source: str | Path | None = None,
    language: str | None = None,
) -> list[Made]:
    """Make learners' copies; where there is one already, bring only what they have not changed.

    Args:
        folder: becomes one copy; with `learners`, it holds one for each: learner-01, learner-02 ...
        learners: how many copies; or a name for each, of which its folder is made.
        source: the folder of notebooks; by default the one beside the package.
        language: zh_CN for the Chinese ones.

    Raises:
        ValueError: learners is no number from 1 on, a name can't be a folder's or is there twice,
            or there is no such language.
        FileNotFoundError: there are no notebooks, or no data.
        FileExistsError: the folder holds something else.
    """
    names: Sequence[str | None] = [None]
    if isinstance(learners, Sequence):
        names = _checked_names(learners)
    elif learners is not None:
        check_whole("learners", learners, least=1)
        digits = max(2, len(str(learners)))
        names = [f"learner-{number:0{digits}}" for number in range(1, learners + 1)]
    handed = contents(source, language)
    if not (data_root() / "mnist_5k").is_dir():
        raise FileNotFoundError(
            f"no {data_root() / 'mnist_5k'}: expected the course's data; DDP_HELPERS_DATA names it"
        )
    top, made = Path(folder), []
    for name in names:
        copy = top / _as_folder(name) if name else top
        _check_ours(copy)
        made.append(_fill(copy, handed, name))
    return made


def read_names(file: str | Path) -> list[str]:
    """The names in a file, one a line; empty lines count for nothing."""
    return [line.strip() for line in Path(file).read_text("utf-8-sig").splitlines() if line.strip()]


def _checked_names(names: Sequence[str]) -> list[str]:
    if not names:
        raise ValueError("no name: expected one for each copy")
    for number, name in enumerate(names, start=1):
        if not _as_folder(name) or len(name) > progress_file.LONGEST_NAME or not name.isprintable():
            raise ValueError(
                f"name {number}, {name!r}: expected 1 to {progress_file.LONGEST_NAME} letters that "
                "a folder's name can have, such as Ada"
            )
    folders = [_as_folder(name).lower() for name in names]
    for name, folder in zip(names, folders, strict=True):
        if folders.count(folder) > 1:
            raise ValueError(f"name {name!r} is there twice, expected another for each learner")
    return [*names]


def _as_folder(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name).strip("._")


def reset(which: Iterable[str] = (), start: str | Path = ".") -> list[str]:
    """Set notebooks of a copy back to what was handed out; says what was done, a line for each.

    What the learner had is moved to notebooks/kept/, under its name and the time.

    Args:
        which: such as "03" or a whole name; none: all.
        start: a folder of the copy.

    Raises:
        FileNotFoundError: `start` is in no copy.
        ValueError: there is no such notebook.
    """
    own = progress_file.class_folder(start)
    if own is None:
        raise FileNotFoundError(
            f"{Path(start).resolve()} is in no learner's copy: go to the folder that was handed "
            "out, or name it with --folder"
        )
    originals = {file.name: file for file in sorted((own / "originals").glob("*.ipynb"))}
    names = [_named(one, [*originals]) for one in which] or [*originals]
    return [_set_back(originals[name], own.parent / "notebooks" / name) for name in names]


def _named(which: str, names: list[str]) -> str:
    found = [name for name in names if name in (which, Path(which).name)]
    found = found or [name for name in names if name.startswith(f"{which.zfill(2)}_")]
    if len(found) != 1:
        numbers = ", ".join(name.partition("_")[0] for name in names)
        raise ValueError(f"notebook {which!r}: expected one of {numbers}")
    return found[0]


def _set_back(original: Path, target: Path) -> str:
    if target.is_file() and target.read_bytes() == original.read_bytes():
        return f"{target.name}: it is as it was handed out"
    kept = _put_aside(target)
    _copy(original, target)
    said = f"; what you had is {target.parent.name}/{KEPT}/{kept}" if kept else ""
    return f"{target.name}: as it was handed out{said}"


def _put_aside(target: Path) -> str:
    """Move what is there to `kept/`, under a free name; "" if nothing is there."""
    if not os.path.lexists(target):
        return ""
    folder = target.parent / KEPT
    folder.mkdir(exist_ok=True)
    at = time.strftime("%Y-%m-%d_%H-%M-%S")
    number = 0
    while os.path.lexists(
        aside := folder / f"{target.stem}.{at}{f'_{number}' if number else ''}{target.suffix}"
    ):
        number += 1
    target.rename(aside)
    return aside.name


# ------------------------------------------------------------------ what a copy holds


def _check_ours(copy: Path) -> None:
    if copy.exists() and not copy.is_dir():
        raise FileExistsError(f"{copy} is a file, expected a folder")
    if not copy.is_dir() or (copy / progress_file.CLASS).is_dir():
        return
    if any(copy.glob(f"*/{progress_file.CLASS}")):
        raise FileExistsError(
            f"{copy} holds the copies of a class, expected one copy: give --learners, or --names, "
            "as when you handed them out"
        )
    if any(copy.iterdir()):
        raise FileExistsError(
            f"{copy} holds files that are no learner's copy, expected an empty folder: choose "
            "another one"
        )


def _fill(copy: Path, handed: Contents, name: str | None) -> Made:
    own = copy / progress_file.CLASS
    for folder in (own / "originals", own / "answers", copy / "notebooks"):
        folder.mkdir(parents=True, exist_ok=True)
    new, left = [], []
    for file, content in handed.notebooks.items():
        original, target = own / "originals" / file, copy / "notebooks" / file
        before = original.read_bytes() if original.exists() else None
        if target.exists() and target.read_bytes() not in (before, content):
            left.append(file)
        elif not target.exists() or before != content:
            _write(target, content)
            new.append(file)
        _write(original, content)
    for place, content in handed.files.items():
        if not (copy / place).exists():  # what is there may be the learner's work
            _write(copy / place, content)
    if name:
        _write(own / SEAT, name.encode())
    if name and not (own / "progress.json").exists():
        state = {"format": progress_file.FORMAT, "learner": name, "exercises": {}}
        _write(own / "progress.json", json.dumps(state, indent=1).encode())
    return Made(copy, tuple(new), tuple(left))


def _copy(source: Path, target: Path) -> None:
    _write(target, source.read_bytes())


def _write(target: Path, content: bytes) -> None:
    """Whole or not at all."""
    if target.exists() and target.read_bytes() == content:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
