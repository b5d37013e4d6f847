"""The sanitizer's side traffic: short records over the rendezvous store, never a collective.

It uses a connection of its own. Whatever becomes of the store, the watched program goes on.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from ddp_helpers.sanitizer.talk.codec import decode, encode
from ddp_helpers.torch_private import DEFAULT_STORE

if TYPE_CHECKING:
    from torch.distributed import Store

R = TypeVar("R")

SHORTEST_PAUSE, LONGEST_PAUSE = 50e-6, 2e-3  # seconds between two looks
LOOK_AROUND = 0.05  # seconds after which a missing record makes us ask what became of its rank


class Gone(Exception):
    """What was waited for will not come; `.ranks` are the missing ones, `.why` says more."""

    def __init__(self, ranks: Sequence[int], why: str) -> None:
        super().__init__(f"{why}: {list(ranks)}")
        self.ranks, self.why = list(ranks), why


class Channel:
    """Records of each rank under a name; any rank can read any other's.

    Args:
        store: a torch.distributed Store that all ranks reach.
        rank, world_size: of the default process group.
    """

    def __init__(self, store: Store, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size
        self.lost = False
        self._store = store
        # one connection, and a hook may run in one of autograd's threads
        self._lock = threading.RLock()

    def publish(self, name: str, record: object) -> None:
        """Leave this rank's record, a dataclass or one plain value, under a name."""
        text = encode(record)
        self._ask(lambda: self._store.set(_key(name, self.rank), text))

    def forget(self, name: str) -> None:
        """Remove this rank's record, so that the store does not grow with the run."""
        self._ask(lambda: self._store.delete_key(_key(name, self.rank)))

    def here(self, name: str, ranks: Sequence[int]) -> bool:
        """True if all these ranks have left their record."""
        return bool(ranks) and bool(self._ask(lambda: self._store.check(_keys(name, ranks))))

    def read(self, name: str, ranks: Sequence[int], kind: type[R]) -> dict[int, R] | None:
        """The records of these ranks by rank, or None if one of them is not there yet.

        Args:
            kind: of record that is left under this name.
        """
        if not ranks:
            return {}
        if not self.here(name, ranks):  # multi_get would wait for what is missing
            return None
        values = self._ask(lambda: self._store.multi_get(_keys(name, ranks)))
        if values is None:
            return None
        return {rank: decode(value, kind) for rank, value in zip(ranks, values, strict=True)}

    def read_those_here(self, name: str, ranks: Sequence[int], kind: type[R]) -> dict[int, R]:
        """The records that are there, by rank."""
        found: dict[int, R] = {}
        for rank in ranks:
            found |= self.read(name, [rank], kind) or {}
        return found

    def wait(
        self,
        name: str,
        ranks: Sequence[int],
        kind: type[R],
        limit: float,
        hopeless: Callable[[list[int]], str | None] = lambda missing: None,
    ) -> dict[int, R]:
        """Wait until all these ranks have left their record.

        Args:
            kind: of record that is left under this name.
            limit: seconds, at most.
            hopeless: asked now and then about the ranks still missing; a text ends the wait.

        Raises:
            Gone: the limit is over (`why` is "limit"), the store is lost ("store"), or
                `hopeless` said so (its text).
        """
        started = looked_at = time.monotonic()
        while (records := self.read(name, ranks, kind)) is None:
            now = time.monotonic()
            if self.lost:
                raise Gone([], "store")
            # seldom, as each question costs a journey to the store for each missing rank
            if now > looked_at + LOOK_AROUND or now > started + limit:
                missing = [rank for rank in ranks if not self.here(name, [rank])]
                why = hopeless(missing) if missing else None
                if why or (missing and now > started + limit):
                    raise Gone(missing, why or "limit")
                looked_at = now
            # ranks come within microseconds where all is well, and within seconds where it is not;
            # so nobody sleeps on for long after the last one has come
            time.sleep(min(max(SHORTEST_PAUSE, (now - started) / 8), LONGEST_PAUSE))
        return records

    def agree(self, name: str, value: str) -> str:
        """What the first rank has said under this name: this value, if it is this rank."""
        said = self._ask(lambda: self._store.compare_set(name, "", value))
        return value if said is None else said.decode()

    def _ask(self, question: Callable[[], R]) -> R | None:
        """Ask the store; once it fails it is given up, and everything looks absent from then on."""
        if self.lost:
            return None
        with self._lock:
            try:
                return question()
            except RuntimeError:  # every error of a torch store is one
                self.lost = True
                return None


def _key(name: str, rank: int) -> str:
    return f"{name}/{rank}"


def _keys(name: str, ranks: Sequence[int]) -> list[str]:
    return [_key(name, rank) for rank in ranks]


def open_channel() -> Channel | None:
    """A channel over the default group's store, or None where that can't be had."""
    import torch.distributed as dist

    store = DEFAULT_STORE.get()()
    with contextlib.suppress(RuntimeError, AttributeError):
        # a connection of its own: a wait here must not block torch's
        store = store.clone()
    rank = dist.get_rank()
    # numbered: records of an earlier group, or of an earlier `with sanitize()` in this one, may
    # still lie in the same store
    number = store.add(f"sanitizers-of/{rank}", 1)
    store = dist.PrefixStore(f"sanitizer-{number}", store)
    return Channel(store, rank, dist.get_world_size())
