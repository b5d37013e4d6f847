"""What a process and all that it starts hold: looked at again and again, the most counts.

Memory is split by who shares it. What processes have written, and /dev/shm, is a seat's own; pages
of files (the libraries) are in memory once, however many seats there are.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

EVERY = 0.5  # seconds between two looks; they must not slow the lesson
FILES_EVERY = 6  # looks: which files are mapped takes longer to read, and changes little
KIB = 1024
TORCH = "libtorch_cpu"
READY = "ddp-standby"  # the name of a rank that waits for a launch
SERVER = "forkserver import main"


@dataclass(frozen=True)
class Held:
    """At one look, or the most of all looks; bytes, or counts."""

    memory: int = 0
    """What no other seat shares."""
    files_mapped: int = 0
    """Pages of files, each counted once."""
    processes: int = 0
    threads: int = 0
    ranks: int = 0
    """Processes with torch that start no others: those that compute."""
    sockets: int = 0
    files: int = 0
    """Open files of all processes."""
    most_files: int = 0
    """Open files of the process that has most."""
    cpu_seconds: float = 0.0

    def or_more(self, other: Held) -> Held:
        """Of each, what is more."""
        return Held(**{name: max(value, vars(other)[name]) for name, value in vars(self).items()})


class Watch:
    """Looks at some processes and their families in a thread, until the block ends."""

    def __init__(self, *pids: int) -> None:
        self.pids = [*pids]
        self.most = Held()
        self.looks: list[tuple[float, int]] = []
        """When, and the memory of each look; for one who wants the whole course of it."""
        self._torch: dict[int, bool] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._end.wait(EVERY):
            held = self.look(with_files=number % FILES_EVERY == 0)
            self.looks.append((time.monotonic(), held.memory))
            self.most = self.most.or_more(held)
            number += 1

    def look(self, with_files: bool = True) -> Held:
        """What they hold now; 0 of a process that has ended meanwhile."""
        families = [process for pid in self.pids for process in family(pid)]
        pids = [process.pid for process in families]
        parents = {parent for process in families if (parent := _parent(process))}
        opened = [_open_files(pid) for pid in pids]
        return Held(
            memory=sum(map(own_memory, pids)),
            files_mapped=_files_mapped(pids) if with_files else 0,
            processes=len(pids),
            threads=sum(map(_threads, pids)),
            ranks=sum(self._computes(p) for p in families if p.pid not in parents),
            sockets=len({name for names in opened for name in names if name.startswith("socket:")}),
            files=sum(map(len, opened)),
            most_files=max(map(len, opened), default=0),
            cpu_seconds=sum(map(_cpu_seconds, families)),
        )

    def _computes(self, process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.Error):
            ended = process.status() == psutil.STATUS_ZOMBIE
            if ended or process.pid in self.pids or process.name() == READY:
                return False
            own = _parent(process) in self.pids and SERVER in " ".join(process.cmdline())
            return not own and self._has_torch(process.pid)
        return False

    def _has_torch(self, pid: int) -> bool:
        if not self._torch.get(pid):
            self._torch[pid] = TORCH in _read(pid, "maps")
        return self._torch[pid]


def family(pid: int) -> list[psutil.Process]:
    """A process and all that it has started, directly or not; none if it has ended."""
    with contextlib.suppress(psutil.Error):
        first = psutil.Process(pid)
        return [first, *first.children(recursive=True)]
    return []


def own_memory(pid: int) -> int:
    """Bytes that a process has written, and its part of /dev/shm; shared ones by their share."""
    sizes = _kib_of(_read(pid, "smaps_rollup"))
    return KIB * (sizes.get("Pss_Anon", 0) + sizes.get("Pss_Shmem", 0))


def _files_mapped(pids: list[int]) -> int:
    """Bytes of files in memory: of each file what the process has that has most of it."""
    most: dict[str, int] = {}
    for pid in pids:
        here: dict[str, int] = {}
        path = ""
        for line in _read(pid, "smaps").splitlines():
            words = line.split()
            if not words[0].endswith(":"):  # the head of a mapping; its sixth word is the file
                path = words[5] if len(words) > 5 and words[5].startswith("/") else ""
            elif path and words[0] in ("Rss:", "Anonymous:"):  # what was written to is no file's
                sign = 1 if words[0] == "Rss:" else -1
                here[path] = here.get(path, 0) + sign * KIB * int(words[1])
        for path, size in here.items():
            if not path.startswith("/dev/shm/"):
                most[path] = max(size, most.get(path, 0))
    return sum(most.values())


def _kib_of(text: str) -> dict[str, int]:
    rows = (line.split() for line in text.splitlines() if line.endswith(" kB"))
    return {words[0].rstrip(":"): int(words[1]) for words in rows}


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="replace")
    except OSError:
        return ""


def _open_files(pid: int) -> list[str]:
    names = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                names.append(os.readlink(entry.path))
    return names


def _threads(pid: int) -> int:
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/task"))
    return 0


def _parent(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return process.ppid()
    return 0


def _cpu_seconds(process: psutil.Process) -> float:
    """With those of its children that have ended."""
    with contextlib.suppress(psutil.Error):
        times = process.cpu_times()
        return times.user + times.system + times.children_user + times.children_system
    return 0.0
