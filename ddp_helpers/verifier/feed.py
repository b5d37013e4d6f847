"""The batches of a training: noted on n ranks, united and given again on one.

On n ranks every sample is noted as its dataset gave it, before it becomes part of a batch. On one
rank the same DataLoader gives, for each batch, the samples of all ranks, through its own
`collate_fn`. So streams and random augmentations can be compared, too.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from torch.utils.data import DataLoader

from ddp_helpers.evidence.frames import is_user_file
from ddp_helpers.evidence.patches import Patches
from ddp_helpers.torch_private import LOADER_ITERATOR, NEXT_INDEX
from ddp_helpers.verifier.feed_pass import FeedPass
from ddp_helpers.verifier.neutral import seed_all
from ddp_helpers.verifier.noted import NotedPass, length_of
from ddp_helpers.verifier.records import Plan, RankRecord
from ddp_helpers.verifier.samples import hashable

FIRST_SEED = 5_000  # of the draws after a batch: the same on all ranks
MARK = "_verified_pass"


class Feed:
    """Stands between a DataLoader and the loop.

    `on_batch(count, keys, repeats)` is called for each training batch.
    """

    def __init__(self, plan: Plan, record: RankRecord) -> None:
        self.plan, self.record = plan, record
        self.passes: dict[str, NotedPass] = {}
        self.counts: dict[str, int] = {}
        self.ranks: list[dict[str, NotedPass]] = []
        self.cache: dict[Any, Any] | None = None
        self.batches = 0
        self.step = lambda: 0
        self.on_batch: Callable[[int, list | None, int], None] = lambda *_: None
        self.enough: Callable[[], None] = lambda: None

    def put_patches(self, patches: Patches) -> None:
        """Stand in for what a loader's iterator calls."""
        NEXT_INDEX.get()
        patches.put(LOADER_ITERATOR.get(), "_next_index", self._indexing)
        if self.plan.follows:
            patches.put(DataLoader, "__len__", self._length)
            patches.put(DataLoader, "__init__", self._made)

    def load(self) -> None:
        """Read what the ranks have noted; needs the reader's own classes."""
        if not self.ranks:
            files = sorted(Path(self.plan.folder).glob("batches-*.pkl"))
            self.ranks = [pickle.loads(file.read_bytes()) for file in files]

    def save(self) -> None:
        """Leave what this rank has noted."""
        passes = self.passes.values()
        if not any(p.length and len(p.batches) >= p.length for p in passes):
            self.record.last_batch = max((p.length or 0 for p in passes if p.uneven), default=0)
        path = Path(self.plan.folder) / f"batches-{self.record.rank:05}.pkl"
        path.write_bytes(pickle.dumps(self.passes))

    # ---- a loader's length, as a schedule may ask for it

    def _made(self, own: Callable) -> Callable:
        def init(loader: DataLoader, *args: Any, **kwargs: Any) -> None:
            vars(loader)["_verified_made"] = False
            own(loader, *args, **kwargs)
            vars(loader)["_verified_made"] = True

        return init

    def _length(self, own: Callable) -> Callable:
        def length(loader: DataLoader) -> int:
            natural = own(loader)
            if not self.plan.replays or not vars(loader).get("_verified_made"):
                return natural
            self.load()
            kind = type(loader.dataset).__name__
            size = length_of(loader.dataset)
            for site, noted in self.ranks[0].items():
                same = site.startswith(f"{kind}@") and noted.samples == size
                if same and noted.length is not None:
                    return noted.length * (len(self.ranks) if self.plan.in_turn else 1)
            return natural

        return length

    # ---- a pass

    def _indexing(self, own: Callable) -> Callable:
        def next_index(iterator: Any) -> Any:
            state = getattr(iterator, MARK, None)
            if state is None:
                state = FeedPass(self, iterator, self._name(iterator._dataset))
                setattr(iterator, MARK, state)
            if state.replays():
                return state.next_replayed()
            try:
                return own(iterator)
            except StopIteration:
                state.complete()
                raise

        return next_index

    def _name(self, dataset: object) -> str:
        """The same for the same loop on any rank and any number of them."""
        lines, frame = [], _caller()
        while frame is not None:
            if is_user_file(frame.f_code.co_filename):
                lines.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
            frame = frame.f_back
        name = f"{type(dataset).__name__}@{';'.join(lines)}"
        self.counts[name] = self.counts.get(name, 0) + 1
        return f"{name}#{self.counts[name]}"

    def begin_batch(self, count: int, keys: list | None, repeats: int) -> None:
        """A training batch is about to be given: from here all ranks draw alike."""
        self.batches += 1
        seed_all(FIRST_SEED + self.batches)
        self.on_batch(count, keys, repeats)

    def look_up(self, key: object) -> Any:
        """A sample as a rank had it, or None."""
        if self.cache is None:
            self.cache = {}
            for passes in self.ranks:
                for noted in (b for p in passes.values() for b in p.batches):
                    if noted.keys is not None and noted.listed:
                        samples = pickle.loads(noted.samples)
                        self.cache |= dict(zip(map(hashable, noted.keys), samples, strict=True))
        return self.cache.get(hashable(key))


def _caller() -> FrameType | None:
    return sys._getframe(2)
