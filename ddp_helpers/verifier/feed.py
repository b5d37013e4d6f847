"""The batches of a training: noted on n ranks, united and given again on one.

On n ranks every sample is noted as its dataset gave it, before it becomes part of a batch. On one
rank the same DataLoader gives, for each batch, the samples of all ranks, through its own
`collate_fn`. So streams and random augmentations can be compared, too.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Sized
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from ddp_helpers.evidence.frames import is_user_file
from ddp_helpers.evidence.patches import Patches
from ddp_helpers.ranks.travel import dump_value
from ddp_helpers.torch_private import LOADER_ITERATOR, NEXT_INDEX
from ddp_helpers.verifier.neutral import as_float64, seed_all
from ddp_helpers.verifier.records import CannotCompare, Plan, RankRecord
from ddp_helpers.verifier.samples import different_part, hashable, join, rows_of

FIRST_SEED = 5_000  # of the draws after a batch: the same on all ranks
MARK = "_verified_pass"
_MOST_TOLD = 3


@dataclass
class Noted:
    """One batch that a rank got."""

    keys: list | None
    """Indices; None for a stream."""
    samples: bytes
    """As the dataset gave them, packed."""
    listed: bool
    """A list of samples; otherwise the dataset gives whole batches."""


@dataclass
class NotedPass:
    """One pass over a loader."""

    batches: list[Noted] = field(default_factory=list)
    complete: bool = False
    length: int | None = None
    """len() of the loader."""
    samples: int | None = None
    """len() of its dataset."""
    uneven: bool = False
    """The last batch is smaller, or filled up."""
    padded: bool = False
    """By a DistributedSampler: some samples are there twice."""


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
            size = _len(loader.dataset)
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
                state = _Pass(self, iterator, self._name(iterator._dataset))
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


class _Pass:
    """What an iterator of a DataLoader carries."""

    def __init__(self, feed: Feed, iterator: Any, name: str) -> None:
        self.feed, self.name = feed, name
        self.fetcher = iterator._dataset_fetcher
        self.fetch, self.collate = self.fetcher.fetch, self.fetcher.collate_fn
        self.given = 0
        self.seen: set = set()
        self.theirs: list[NotedPass] = []
        self.fetcher.collate_fn = lambda data: data  # first the samples, then their batch
        self.fetcher.fetch = self._fetch
        self.noted = NotedPass(samples=_len(iterator._dataset))
        self._look_at(iterator)
        if feed.plan.follows:
            feed.load()
            self.theirs = [p[name] for p in feed.ranks if name in p]

    def _look_at(self, iterator: Any) -> None:
        sampler = iterator._index_sampler
        kind = type(sampler)
        inner = getattr(sampler, "sampler", sampler)
        size = self.noted.samples
        if isinstance(inner, DistributedSampler) and size:
            self.noted.padded = not inner.drop_last and size % inner.num_replicas != 0
        self.noted.length = _len(sampler)
        if isinstance(sampler, BatchSampler) and not sampler.drop_last:
            rest = (_len(inner) or 0) % sampler.batch_size
            self.noted.uneven = bool(rest) or self.noted.padded
        plain = kind is BatchSampler or kind.__module__.startswith("torch.")
        if torch.is_grad_enabled():
            self.feed.record.loaders = True
            self.feed.record.own_batches |= not plain

    def replays(self) -> bool:
        return self.feed.plan.replays and bool(self.theirs)

    def complete(self) -> None:
        self.noted.complete = True

    def next_replayed(self) -> int:
        """The number of the batch to come."""
        turns = len(self.theirs) if self.feed.plan.in_turn else 1
        if self.given >= turns * max(len(p.batches) for p in self.theirs):
            if all(p.complete for p in self.theirs):
                raise StopIteration
            self.feed.enough()
            raise CannotCompare(
                "on one rank the function trains on other samples: it takes "
                f"{self.given + 1} batches of {self.name.partition('@')[0]} where the ranks took "
                f"{self.given}"
            )
        return self.given

    def _fetch(self, index: Any) -> Any:
        if self.replays():
            return self._replay(index)
        self.feed.enough()
        try:
            data = self.fetch(index)
        except StopIteration:
            self.complete()
            raise
        if not torch.is_grad_enabled():
            return self._batch(data)
        listed = isinstance(data, list) and self.fetcher.auto_collation
        keys = None
        if listed and index is not None and type(self.fetcher).__name__.startswith("_Map"):
            keys = list(index)
        if self.feed.plan.follows and keys is not None:
            found = [self.feed.look_up(key) for key in keys]
            data = [own if had is None else had for own, had in zip(data, found, strict=True)]
        if not self.feed.plan.follows:
            self.feed.passes[self.name] = self.noted
            self.noted.batches.append(Noted(keys, dump_value(data), listed))
        batch = self._batch(data)
        self.feed.begin_batch(len(data) if listed else rows_of(batch), keys, 0)
        return batch

    def _batch(self, data: Any) -> Any:
        batch = self.collate(data)
        return as_float64(batch) if self.feed.plan.float64 else batch

    # ---- the union

    def _replay(self, number: int) -> Any:
        self.given += 1
        theirs = self.theirs
        if self.feed.plan.in_turn:
            theirs, number = [theirs[number % len(theirs)]], number // len(theirs)
        batches = [p.batches[number] for p in theirs if number < len(p.batches)]
        if not all(b.listed for b in batches):
            parts = [self._batch(pickle.loads(b.samples)) for b in batches]
            if self.feed.plan.perturbed and not self.feed.plan.in_order:
                parts.reverse()
            batch = join(parts)
            self.feed.begin_batch(rows_of(batch), None, 0)
            return batch
        samples, keys, repeats = self._united(batches)
        if self.feed.plan.perturbed and not self.feed.plan.in_order:
            samples.reverse()
        batch = self._batch(samples)
        self.feed.begin_batch(len(samples), keys, repeats)
        return batch

    def _united(self, batches: list[Noted]) -> tuple[list, list | None, int]:
        samples: list = []
        keys: list | None = []
        repeats = 0
        fill = any(p.padded for p in self.theirs) and not self.feed.plan.keep_repeats
        for rank, noted in enumerate(batches):
            found = pickle.loads(noted.samples)
            if noted.keys is None:
                keys = None
                samples += found
                continue
            for key, sample in zip(noted.keys, found, strict=True):
                if fill and hashable(key) in self.seen:
                    repeats += 1
                    continue
                self.seen.add(hashable(key))
                samples.append(self._own(rank, key, sample))
                if keys is not None:
                    keys.append(key)
        return samples, keys, repeats

    def _own(self, rank: int, key: Any, theirs: Any) -> Any:
        """The sample as a rank had it; as it is here where only a part of it is another one.

        A whole other sample may be right: a shard of this rank's own, a random crop.
        """
        if rank == 0 or self.noted.samples != self.theirs[0].samples:
            return theirs
        state = torch.get_rng_state()
        try:
            first, again = (self._one(key) for _ in range(2))
        except Exception:  # an index that only that rank's dataset has
            return theirs
        finally:
            torch.set_rng_state(state)
        told = different_part(theirs, first, again)
        if told:
            record = self.feed.record
            record.other_samples_at = record.other_samples_at or self.feed.step() + 1
            if len(record.other_samples) < _MOST_TOLD:
                record.other_samples.append(f"sample {key!r} has {told} on rank {rank}")
            return first
        return theirs

    def _one(self, key: Any) -> Any:
        many = getattr(self.fetcher.dataset, "__getitems__", None)
        return many([key])[0] if many else self.fetcher.dataset[key]


def _len(thing: object) -> int | None:
    try:
        return len(thing) if isinstance(thing, Sized) else None
    except TypeError:  # a stream may have a len() that refuses to answer
        return None


def _caller() -> FrameType | None:
    return sys._getframe(2)
