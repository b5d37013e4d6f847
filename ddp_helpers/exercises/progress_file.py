"""What a learner has done, in one file of their own: written whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import inspect
import itertools
import json
import os
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

from ddp_helpers.words import shown

VARIABLE = "DDP_HELPERS_PROGRESS"
CLASS = ".ddp_class"  # in a learner's copy of the course: what belongs to the class
FORMAT = 1
LONGEST_NAME = 40  # letters; a row of a board has room for it
PATIENCE = 2.0  # seconds for another notebook that writes at the same moment


class Damaged(ValueError):
    """A progress file can't be read."""


def path() -> Path:
    """Where the file is: where DDP_HELPERS_PROGRESS says, in a learner's copy, or at home.

    Raises:
        OSError: none is known.
    """
    if given := os.environ.get(VARIABLE):
        return Path(given)
    if folder := class_folder():
        return folder / "progress.json"
    try:
        return Path.home() / ".ddp_helpers" / "progress.json"
    except RuntimeError:  # a container's user: no HOME, and no line in /etc/passwd
        raise OSError("HOME is not set") from None


def class_folder(start: str | Path = ".") -> Path | None:
    """The folder `.ddp_class` of the learner's copy of the course that `start` lies in, if any."""
    try:
        here = Path(start).resolve()
    except OSError:  # the current folder is deleted
        return None
    for folder in (here, *here.parents):
        if (folder / CLASS).is_dir():
            return folder / CLASS
    return None


def read(file: Path) -> dict:
    """A progress file: `learner`, a record for each exercise, and perhaps `guesses`.

    Raises:
        Damaged: it is not what `note` writes; the text says where and why.
        FileNotFoundError: there is none.
    """
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
        good = state["format"] == FORMAT and isinstance(state["learner"], str)
        records = state["exercises"].values()
        counts = [each.get(name, 0) for each in records for name in ("tries", "hints")]
        texts = [each.get(name, "") for each in records for name in ("last_at", "passed_at")]
        good = good and all("tries" in each for each in records)
        good = good and all(isinstance(count, int) for count in counts)
        good = good and all(isinstance(text, str) for text in texts)
        if not good:
            raise ValueError(f"format {state['format']!r}, expected {FORMAT}")
    except FileNotFoundError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise Damaged(f"{file} is no progress file, or damaged ({reason})") from None
    return state


def current() -> dict:
    """This learner's state. A damaged file is kept under another name, and a new one begins."""
    try:
        return read(path())
    except FileNotFoundError:
        return {"format": FORMAT, "learner": _user(), "exercises": {}}
    except Damaged as damaged:
        aside = _free_name(path().with_suffix(f".damaged-{time.strftime('%Y%m%d-%H%M%S')}"))
        os.replace(path(), aside)
        print(shown(f"{damaged}: it is kept as {aside.name}, and a new one begins"))
        return current()


def note(number: str, **changes: object) -> dict:
    """Change the record of an exercise; numbers are added, other values replace.

    Where the file can't be written, says so and goes on: a check must not fail for that.
    """
    try:
        with locked():
            state = current()
            record = state["exercises"].setdefault(number, {"tries": 0, "hints": 0})
            for name, value in changes.items():
                counted = isinstance(value, int) and not isinstance(value, bool)
                record[name] = record.get(name, 0) + value if counted else value
            _write(state)
            return record
    except OSError as error:
        print(shown(f"progress is not kept: {error}; set {VARIABLE} to a file that you may write"))
        return {}


def note_guess(about: str, **what: object) -> None:
    """Keep a guess and what came out; a second one of the same question replaces it.

    Where the file can't be written, says so and goes on.
    """
    try:
        with locked():
            state = current()
            state.setdefault("guesses", {})[about] = what
            _write(state)
    except OSError as error:
        print(shown(f"the guess is not kept: {error}; set {VARIABLE} to a file that you may write"))


def keep_answer(number: str, answer: object, done: bool, said: str) -> None:
    """In a learner's copy of a class: keep the answer as a file, beside the progress. Else nothing.

    One that was right is not replaced by one that isn't. Where it can't be written, says so.
    """
    if (folder := class_folder()) is None:
        return
    file = folder / "answers" / f"{number}.py"
    kind = "right" if done else "not right yet"
    head = f"# {number}: {kind}, {time.strftime('%FT%T%z')}\n"
    remarks = "".join(f"# {line}\n" for line in said.splitlines())
    try:
        if not done and file.exists() and was_right(file):
            return
        _write_whole(file, f"{head}{remarks}\n{_text_of(answer)}\n")
    except OSError as error:
        print(shown(f"the answer is not kept: {error}"))


def _text_of(answer: object) -> str:
    """As the learner wrote it; one who passed no function, or typed it into a prompt, has none."""
    try:
        return textwrap.dedent(inspect.getsource(answer)).rstrip()  # type: ignore[arg-type]  # or it raises
    except Exception:  # a check must not fail for what inspect makes of somebody's object
        return f"# its text can't be had: {type(answer).__name__}"


def said_of(answer: Path) -> str:
    """What the check said of a kept answer; "" where there is none."""
    try:
        lines = answer.read_text(encoding="utf-8").splitlines()[1:]
    except (OSError, ValueError):
        return ""
    remarks = itertools.takewhile(lambda line: line.startswith("# "), lines)
    return "\n".join(line[2:] for line in remarks)


def was_right(answer: Path) -> bool:
    """Did the check of this kept answer pass?"""
    with answer.open(encoding="utf-8") as file:
        return ": right, " in file.readline()


def rename(name: str) -> None:
    """Let the learner be called so, on the instructor's board and in reports.

    Raises:
        ValueError: an empty name, a long one, or one with letters that can't be printed.
        OSError: it can't be written.
    """
    name = " ".join(name.split())
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise ValueError(f"name {name!r}: expected 1 to {LONGEST_NAME} letters, such as Ada")
    with locked():
        state = current()
        state["learner"] = name
        _write(state)


def passed(state: dict) -> list[str]:
    """The exercises that are done."""
    return [number for number, each in state["exercises"].items() if each.get("passed_at")]


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """One writer at a time, so that no notebook overwrites what another has just noted."""
    path().parent.mkdir(parents=True, exist_ok=True)
    with open(path().with_suffix(".lock"), "a") as lock:
        limit = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > limit:
                    raise OSError(f"{lock.name} is held by another process") from None
                time.sleep(0.02)
            except OSError:
                break  # a file system without locks: one learner rarely has two writers
        yield


def _write(state: dict) -> None:
    _write_whole(path(), json.dumps(state, indent=1))


def _write_whole(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _free_name(wanted: Path) -> Path:
    names = (wanted.with_name(f"{wanted.name}{number or ''}") for number in range(10_000))
    return next(name for name in names if not name.exists())


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"
