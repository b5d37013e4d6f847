"""One pass over a DataLoader: noted on n ranks, its batches united and given again on one."""

from __future__ import annotations

import pickle
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import BatchSampler, DistributedSampler

from ddp_helpers.ranks.travel import dump_value
from ddp_helpers.verifier.neutral import as_float64
from ddp_helpers.verifier.noted import Noted, NotedPass, length_of
from ddp_helpers.verifier.records import CannotCompare
from ddp_helpers.verifier.samples import different_part, hashable, join, rows_of

if TYPE_CHECKING:
    from ddp_helpers.verifier.feed import Feed

_MOST_TOLD = 3


class FeedPass:
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
        self.noted = NotedPass(samples=length_of(iterator._dataset))
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
        self.noted.length = length_of(sampler)
        if isinstance(sampler, BatchSampler) and not sampler.drop_last:
            rest = (length_of(inner) or 0) % sampler.batch_size
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
