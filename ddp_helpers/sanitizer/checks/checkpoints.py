"""A file must not be read, or written, by one rank while another one writes it."""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ddp_helpers.evidence.records import Finding, name_ranks
from ddp_helpers.sanitizer.compare.callsite import Place, innermost, places, user_frames
from ddp_helpers.sanitizer.talk.session import Session
from ddp_helpers.sanitizer.watch.order import Moment, Order, is_before

MOST_LOADS = 200  # whoever reads more files than this reads its data with torch.load
KEPT = 64  # accesses of a rank that are compared
ADVICE = (
    "let one rank write, then let all ranks come to dist.barrier() before any of them reads the "
    "file; better still, write to another name and then os.replace() it"
)


@dataclass(frozen=True)
class Access:
    """One torch.save or torch.load of a file."""

    what: str
    """`save` or `load`."""
    path: str
    begin: Moment
    end: Moment | None
    """None while it runs."""
    place: Place | None


@dataclass(frozen=True)
class FilesRecord:
    """The last accesses of one rank."""

    host: str
    accesses: tuple[Access, ...]


class CheckpointChecker:
    """Compares who saved and who loaded which file when."""

    def __init__(self, session: Session, order: Order) -> None:
        self.session, self.order = session, order
        self.forget()

    def put_patches(self) -> None:
        """Stand in for torch.save and torch.load."""
        put = self.session.patches.put
        for module in (torch, torch.serialization):
            put(module, "save", functools.partial(self._watched, "save", 1))
            put(module, "load", functools.partial(self._watched, "load", 0))

    def forget(self) -> None:
        """A new process group starts."""
        self.accesses: dict[tuple[str, str], Access] = {}  # the last of each kind
        self.loads = 0
        self._inside = False

    def _watched(self, what: str, position: int, original: Callable) -> Callable:
        begin = self.session.guarded("checkpoints", self._begin)
        end = self.session.guarded("checkpoints", self._end)

        def access(*args: object, **kwargs: object) -> object:
            file = args[position] if len(args) > position else kwargs.get("f")
            if self.session.channel is None or self._inside:
                return original(*args, **kwargs)
            self._inside, begun = True, None
            try:
                begun = begin(what, file)
                return original(*args, **kwargs)
            finally:
                self._inside = False
                if begun:
                    end(begun)

        return access

    def _begin(self, what: str, file: object) -> Access | None:
        path = path_of(file)
        if path is None or (what == "load" and self._too_many()):
            return None
        frames, _ = user_frames(3)
        begun = Access(what, path, self.order.now(), None, innermost(places(frames)))
        self.accesses.pop((what, path), None)
        self.accesses[what, path] = begun
        while len(self.accesses) > KEPT:
            del self.accesses[next(iter(self.accesses))]
        self._show()
        self._compare(begun)
        return begun

    def _too_many(self) -> bool:
        self.loads += 1
        return self.loads > MOST_LOADS

    def _end(self, begun: Access) -> None:
        key = begun.what, begun.path
        if self.accesses.get(key) is begun:
            self.accesses[key] = replace(begun, end=self.order.now())
        self._show()

    def _show(self) -> None:
        channel, rank = self.session.line, self.session.rank
        accesses = tuple(self.accesses.values())
        channel.publish("files", FilesRecord(socket.gethostname(), accesses))
        channel.here("files", [rank])  # answered only once the record is there for others, too

    def _compare(self, mine: Access) -> None:
        """Look at what the others have begun so far; what they begin later, they compare."""
        session = self.session
        others = [rank for rank in range(session.world_size) if rank != session.rank]
        for rank, record in session.line.read_those_here("files", others, FilesRecord).items():
            for theirs in record.accesses if record.host == socket.gethostname() else ():
                if clash(mine, rank, theirs):
                    session.found(self._finding(mine, rank, theirs))

    def _finding(self, mine: Access, rank: int, theirs: Access) -> Finding:
        session = self.session
        both = sorted([(session.rank, mine), (rank, theirs)], key=lambda one: one[1].what)
        (loader, first), (saver, second) = both
        name = os.path.basename(mine.path)
        if first.what == second.what:
            ranks = sorted((loader, saver))
            cause = f"{name_ranks(ranks)} save to {name}, and nothing orders them"
        else:
            ranks = [loader, saver]
            cause = f"rank {loader} loads {name} and rank {saver} saves it, and nothing orders them"
        details = tuple(
            f"rank {who}: torch.{one.what} at {self._where(one.place)}"
            for who, one in sorted(both, key=lambda one: one[0])
        )
        return Finding(
            "checkpoint-read-while-written",
            cause,
            ADVICE,
            tuple(ranks),
            session.step,
            session.frame_of(mine.place),
            details,
        )

    def _where(self, place: Place | None) -> str:
        return str(self.session.frame(place)) if place else "an unknown line"


def clash(mine: Access, other: int, theirs: Access) -> bool:
    """True if two accesses of one file, one of them to write, are not ordered.

    Args:
        mine: this rank's, which begins now; so it can't have been before theirs, seen now.
        other, theirs: another rank and one of its accesses.
    """
    if mine.path != theirs.path or mine.what == theirs.what == "load":
        return False
    return theirs.end is None or not is_before(theirs.end, other, mine.begin)


def path_of(file: object) -> str | None:
    """The real path of what torch.save or torch.load was given, or None if it is no file."""
    path = os.fspath(file) if isinstance(file, str | os.PathLike) else getattr(file, "name", None)
    if not isinstance(path, str) or path == os.devnull:
        return None
    return os.path.realpath(path)
