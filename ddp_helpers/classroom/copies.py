"""Learners' copies of the course: made, made anew, and set back, and nobody's work is lost by it.

A copy holds `notebooks/` without outputs, `course/` to read in (templates, faults, troubleshooting)
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
from ddp_helpers.classroom.lessons import lessons
from ddp_helpers.data.folder import PACKAGE, data_root
from ddp_helpers.exercises import progress_file

KEEP = "keep-output"  # the tag of a cell whose output stays
# what a text says after a cell that not every machine can run: its output is there to be read
TO_READ = re.compile(r"read the committed (figure|output)")
OUTSIDE = re.compile(r"\]\((?:\.\./)+([^)#\s]+)")  # a link out of the folder of notebooks
READ_ME = Path(__file__).with_name("copy_readme.md")  # in other languages copy_readme.zh_CN.md
OTHER_LANGUAGE = re.compile(r"\n\n\[(?:中文|English)\]\([^)]+\).*$")  # which is not handed out
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
    learners: int | None = None,
    source: str | Path | None = None,
    language: str | None = None,
) -> list[Made]:
    """Make learners' copies; where there is one already, bring only what they have not changed.

    Args:
        folder: becomes one copy; with `learners`, it holds one for each: learner-01, learner-02 ...
        learners: how many copies.
        source: the folder of notebooks; by default the one beside the package.
        language: zh_CN for the Chinese ones.

    Raises:
        ValueError: learners is no number from 1 on, or there is no such language.
        FileNotFoundError: there are no notebooks, or no data.
        FileExistsError: the folder holds something else.
    """
    names: Sequence[str | None] = [None]
    if learners is not None:
        check_whole("learners", learners, least=1)
        digits = max(2, len(str(learners)))
        names = [f"learner-{number:0{digits}}" for number in range(1, learners + 1)]
    notebooks, linked = _cleared(source, language)
    if not (data_root() / "mnist_5k").is_dir():
        raise FileNotFoundError(
            f"no {data_root() / 'mnist_5k'}: expected the course's data; DDP_HELPERS_DATA names it"
        )
    top, made = Path(folder), []
    for name in names:
        copy = top / name if name else top
        _check_ours(copy)
        made.append(_fill(copy, notebooks, linked, _read_me(language), name))
    return made


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
    found = found or [name for name in names if name.startswith(f"{which}_")]
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
    if copy.is_dir() and any(copy.iterdir()) and not (copy / progress_file.CLASS).is_dir():
        raise FileExistsError(
            f"{copy} holds files that are no learner's copy, expected an empty folder: choose "
            "another one"
        )


def _fill(
    copy: Path,
    notebooks: dict[str, bytes],
    linked: dict[str, Path],
    read_me: bytes,
    name: str | None,
) -> Made:
    own = copy / progress_file.CLASS
    for folder in (own / "originals", own / "answers", copy / "notebooks"):
        folder.mkdir(parents=True, exist_ok=True)
    new, left = [], []
    for file, content in notebooks.items():
        original, target = own / "originals" / file, copy / "notebooks" / file
        before = original.read_bytes() if original.exists() else None
        if target.exists() and target.read_bytes() not in (before, content):
            left.append(file)
        elif not target.exists() or before != content:
            _write(target, content)
            new.append(file)
        _write(original, content)
    if not (copy / "README.md").exists():
        _write(copy / "README.md", read_me)
    for place, source in linked.items():
        _to_read_in(source, copy / "course" / place)
    if name and not (own / "progress.json").exists():
        state = {"format": progress_file.FORMAT, "learner": name, "exercises": {}}
        _write(own / "progress.json", json.dumps(state, indent=1).encode())
    return Made(copy, tuple(new), tuple(left))


def _read_me(language: str | None) -> bytes:
    """What a learner reads first; English, where there is none in their language."""
    theirs = READ_ME.with_suffix(f".{language}.md")
    return (theirs if theirs.exists() else READ_ME).read_bytes()


def _to_read_in(source: Path, target: Path) -> None:
    """A file or folder that a notebook links to; one that is there may be the learner's work."""
    if source.is_dir():
        for file in source.iterdir():
            if file.is_file() and file.name != "__init__.py":
                _to_read_in(file, target / file.name)
    elif not target.exists():
        _write(target, source.read_bytes())


def _cleared(
    source: str | Path | None, language: str | None
) -> tuple[dict[str, bytes], dict[str, Path]]:
    """The notebooks by name, as learners get them; and what they link to, by place."""
    english = lessons(source)
    source = english[0].parent
    if language and not (source / language).is_dir():
        raise ValueError(f"language {language!r}: expected zh_CN, or none for English")
    found: dict[str, bytes] = {}
    linked: dict[str, Path] = {}
    for file in english:
        stays = _stays(json.loads(file.read_text(encoding="utf-8")))
        chosen = source / language / file.name if language else file
        notebook = json.loads(chosen.read_text(encoding="utf-8"))
        for number, cell in enumerate(notebook["cells"]):
            for path in _clear(cell, cell.get("id", number) in stays):
                places = (source.parent / path, PACKAGE.parent / path)
                linked |= {_place(path): place for place in places if place.exists()}
        text = json.dumps(notebook, indent=1, ensure_ascii=False)
        found[file.name] = (text + "\n").encode()
    return found, linked


def _stays(notebook: dict) -> set[object]:
    """The cells whose outputs stay: those with the tag, and those that the text tells to read.

    By id: a translated notebook has one cell more.
    """
    stays: set[object] = set()
    code: object = 0  # the last code cell so far
    for number, cell in enumerate(notebook["cells"]):
        if cell["cell_type"] == "code":
            code = cell.get("id", number)
            if KEEP in cell["metadata"].get("tags", ()):
                stays.add(code)
        elif TO_READ.search("".join(cell["source"])):
            stays.add(code)
    return stays


def _clear(cell: dict, stays: bool) -> set[str]:
    """Take the output away, unless it stays; make the links those of a copy, and return them."""
    if cell["cell_type"] == "markdown":
        text = "".join(cell["source"])
        text = OTHER_LANGUAGE.sub("", text)
        text = re.sub(r"\]\((?:\.\./)+README[\w.-]*\.md", "](README", text)
        linked = {path.rstrip("/") for path in OUTSIDE.findall(text)}
        text = OUTSIDE.sub(lambda link: f"](../course/{_place(link[1])}", text)
        cell["source"] = text.replace("](README", "](../README.md").splitlines(keepends=True)
        return linked
    cell["execution_count"] = None
    if not stays:
        cell["outputs"] = []
        cell["metadata"].pop("jupyter", None)  # nothing is there to be folded
    return set()


def _place(path: str) -> str:
    """Where it stands in `course/`; a folder called ddp_helpers would be found by `import`."""
    return path.rstrip("/").removeprefix("ddp_helpers/")


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
