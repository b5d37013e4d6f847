"""What a learner has done, in one file of their own: written whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import getpass
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

VARIABLE = "DDP_HELPERS_PROGRESS"
FORMAT = 1
PATIENCE = 2.0  # seconds for another notebook that writes at the same moment


class Damaged(ValueError):
    """A progress file can't be read."""


def path() -> Path:
    """Where the file is: `~/.ddp_helpers/progress.json`, or what DDP_HELPERS_PROGRESS says.

    Raises:
        OSError: neither is known.
    """
    if given := os.environ.get(VARIABLE):
        return Path(given)
    try:
        return Path.home() / ".ddp_helpers" / "progress.json"
    except RuntimeError:  # a container's user: no HOME, and no line in /etc/passwd
        raise OSError("HOME is not set") from None


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
        good = good and all(isinstance(each["tries"], int) for each in records)
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
        print(f"{damaged}: it is kept as {aside.name}, and a new one begins")
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
        print(f"progress is not kept: {error}; set {VARIABLE} to a file that you may write")
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
        print(f"the guess is not kept: {error}; set {VARIABLE} to a file that you may write")


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
    target = path()
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(state, file, indent=1)
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
