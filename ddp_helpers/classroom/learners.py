"""Who is in the class: progress files, and the learners' copies that some of them lie in."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ddp_helpers.exercises import progress_file

SEAT = "handed-out-as"  # in a copy's .ddp_class: its name in the class
MARK = ".collected-by-ddp_helpers"  # in a folder of reports, where no learner is to be found


@dataclass(frozen=True)
class Learner:
    """One learner, and what they have done."""

    name: str
    """As they have chosen; with the place behind it where another has the same."""
    key: str
    """Such a name that files can have; no other learner has it."""
    student: str
    """What their copy was handed out as, which stays when they choose a name; else the key."""
    state: dict
    """A progress file, as `progress_file.read` gives it."""
    copy: Path | None
    """Their copy of the course, if the progress lies in one."""


def find(places: Iterable[str | Path]) -> tuple[list[Learner], list[str]]:
    """The learners of these places, by name, and a line for each file that could not be read.

    Args:
        places: progress files; learners' copies; folders that hold some of either.
    """
    states: dict[Path, dict] = {}
    problems = []
    for path in _progress_files(places):
        if path.exists() and not path.is_file():  # a pipe would keep the reader waiting
            problems.append(f"{path} is no file")
            continue
        try:
            states[path] = progress_file.read(path)
        except FileNotFoundError:
            problems.append(f"{path}: there is no such file")
        except progress_file.Damaged as damaged:
            problems.append(str(damaged))
    called = Counter(state["learner"] for state in states.values())
    seats = {path: handed_out_as(path.parent) for path in states}
    alike = Counter((state["learner"], seats[path]) for path, state in states.items())
    taken: set[str] = set()
    students: set[str] = set()
    learners = []
    for path, state in sorted(states.items(), key=lambda item: (item[1]["learner"], item[0])):
        # whatever somebody has written into their file: a board prints it in a terminal
        name = "".join(letter if letter.isprintable() else "?" for letter in state["learner"])
        name = name[: progress_file.LONGEST_NAME] or "?"
        own = path.parent if path.parent.name == progress_file.CLASS else None
        seat, shared = seats[path], called[state["learner"]] > 1
        key = _free_key(f"{name}_{seat}" if shared and seat else name, taken)
        if shared:
            told = seat if alike[state["learner"], seat] == 1 else ""
            name += f" ({told or (own.parent if own else path)})"
        student = _free_key(seat or key, students)
        learners.append(Learner(name, key, student, state, own.parent if own else None))
    return learners, problems


def handed_out_as(own: Path) -> str:
    """The name under which a copy was handed out, of its folder `.ddp_class`; "" for no such copy.

    It is kept in a file: copies are moved to where a learner works, and learners choose names.
    """
    try:
        with (own / SEAT).open(encoding="utf-8") as file:
            text = file.read(progress_file.LONGEST_NAME)
    except (OSError, ValueError):
        return ""
    return re.sub(r"[^\w.-]+", "_", text).strip("._")


def _progress_files(places: Iterable[str | Path]) -> list[Path]:
    """Of a folder: those of the copies in it; in one without copies each file may be one."""
    found: list[Path] = []
    for place in map(Path, places):
        if not place.is_dir():
            found.append(place)
            continue
        copies = [place] if (place / progress_file.CLASS).is_dir() else []
        copies += [own.parent for own in sorted(place.rglob(progress_file.CLASS))]
        kept = [copy / progress_file.CLASS / "progress.json" for copy in dict.fromkeys(copies)]
        # a copy whose learner has not begun has none yet
        found += [file for file in kept if file.exists()] or [
            file
            for file in sorted(place.rglob("*.json"))
            if not any((folder / MARK).exists() for folder in file.parents)
        ]
    return list(dict.fromkeys(found))


def _free_key(name: str, taken: set[str]) -> str:
    wanted = re.sub(r"[^\w.-]+", "_", name).strip("._") or "learner"
    key, number = wanted, 1
    while key.lower() in taken:  # some file systems know no capitals
        number += 1
        key = f"{wanted}-{number}"
    taken.add(key.lower())
    return key
