"""Each pass over a DataLoader, seen from outside: its indices, its batches, what was done then."""

from __future__ import annotations

import itertools
import operator
import weakref
from array import array
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, BinaryIO, SupportsIndex, cast

import torch
from torch.optim.optimizer import Optimizer
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    Subset,
    WeightedRandomSampler,
)

from ddp_helpers.sanitizer.compare.callsite import Place, innermost, places, user_frames
from ddp_helpers.sanitizer.compare.samples import SampledContents
from ddp_helpers.sanitizer.talk.session import Session
from ddp_helpers.torch_private import LOADER_ITERATOR, NEXT_INDEX, RESET

MARK = "_sanitizer_pass"  # the name under which an iterator keeps its pass


@dataclass
class Pass:
    """One pass over one DataLoader in this process."""

    loader: weakref.ref[DataLoader]
    dataset: object
    sampler: object
    key: str
    """The same on all ranks that came to this pass on the same way."""
    stack: tuple[Place, ...]
    iterator: weakref.ref[Any]
    workers: int
    worker_file: BinaryIO | None = None
    """Where the workers write what they draw."""
    epoch: int | None = None
    """The sampler's epoch, where it has one."""
    drop_last: bool = False
    """The loader leaves an uneven last batch out. Noted here: at the end the loader may be gone."""
    indices: array | None = field(default_factory=lambda: array("q"))
    """All indices asked for, in order; None where they are not plain numbers."""
    sizes: list[int] = field(default_factory=list)
    """Indices of each batch; a loader with workers asks for more than it delivers."""
    batches: int = 0
    delivered: int = 0
    complete: bool = False
    closed: bool = False
    steps: int = 0
    optimizers: weakref.WeakSet = field(default_factory=weakref.WeakSet)
    """Those that stepped."""
    backwards: int = 0
    joined: bool = False
    rows: int = 0
    """The most samples that one of the first forwards got."""
    inputs: list[str] = field(default_factory=list)
    """Hashes of what the first forwards got."""
    contents: SampledContents = field(default_factory=SampledContents)

    @property
    def consumed(self) -> array | None:
        """The indices of the batches that were delivered, in order."""
        return None if self.indices is None else self.indices[: self.delivered]

    def got(self, rows: int, contents: str | None) -> None:
        """A model is about to get something of this pass."""
        self.rows = max(self.rows, rows)
        self.inputs.append(contents or "?")

    @property
    def loop(self) -> str:
        """The same for all passes of one loop over one kind of dataset."""
        return self.key.rpartition("#")[0]

    @property
    def place(self) -> Place | None:
        """The reader's line that began it."""
        return innermost(self.stack)


class PassRecorder:
    """Follows every DataLoader of this process.

    Lists of callbacks, each with the pass as its argument:
        on_start: a loader is about to begin a pass, and is the argument; passes of it are over.
        on_begin: before its first batch is loaded.
        after_index: the indices of a batch are drawn, the batch is not loaded yet.
        on_batch: a batch was delivered; the batch is the second argument.
        on_end: it was gone through, or its loader began another one, or the group ends.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.current: Pass | None = None  # the one that delivered the latest batch
        self.on_start: list[Callable[[DataLoader], None]] = []
        self.on_begin: list[Callable[[Pass], None]] = []
        self.after_index: list[Callable[[Pass], None]] = []
        self.on_batch: list[Callable[[Pass, object], None]] = []
        self.on_end: list[Callable[[Pass], None]] = []
        self.joins = 0  # Join contexts that are open
        self.dealt = False  # a training pass had a sampler of torch's that deals to several ranks
        self.few: tuple[int, ...] = ()
        """The samples of the last whole training pass whose mixed numbers are the lowest."""
        self.trained = 0  # whole training passes
        self.training: Pass | None = None  # the latest pass in which the program went back
        self.trainings = 0  # such passes
        self._open: list[Pass] = []
        self._counts: dict[str, Iterator[int]] = {}

    def put_patches(self) -> None:
        """Stand in for what a loader's iterator calls."""
        put, iterator = self.session.patches.put, LOADER_ITERATOR.get()
        NEXT_INDEX.get(), RESET.get()
        put(DataLoader, "__iter__", self._iterating)
        put(iterator, "__init__", self._starting)
        # persistent workers keep one iterator for all passes
        put(iterator, "_reset", self._starting)
        put(iterator, "_next_index", self._indexing)
        put(iterator, "__next__", self._delivering)
        self._watch_join()

    # ---- what stands in for torch's functions

    def _iterating(self, original: Callable) -> Callable:
        # before the iterator is made: an error between its workers' start and its first batch would
        # leave them behind
        start = self.session.guarded("data", self._start)

        def iterate(loader: DataLoader) -> Iterator:
            if self.session.channel is not None:
                start(loader)
            return original(loader)

        return iterate

    def _starting(self, original: Callable) -> Callable:
        begin = self.session.guarded("data", self._begin)

        def start(iterator: Any, loader: DataLoader, *args: object, **kwargs: object) -> None:
            original(iterator, loader, *args, **kwargs)
            if self.session.channel is not None:
                begin(iterator, loader)

        return start

    def _indexing(self, original: Callable) -> Callable:
        note = self.session.guarded("data", self._note_index)

        def next_index(iterator: object) -> object:
            index = original(iterator)
            if self.session.channel is not None:
                note(iterator, index)
            return index

        return next_index

    def _delivering(self, original: Callable) -> Callable:
        note = self.session.guarded("data", self._note_batch)
        end = self.session.guarded("data", self._note_end)

        def deliver(iterator: object) -> object:
            try:
                batch = original(iterator)
            except StopIteration:
                if self.session.channel is not None:
                    end(iterator)
                raise
            if self.session.channel is not None:
                note(iterator, batch)
            return batch

        return deliver

    def _watch_join(self) -> None:
        from torch.distributed.algorithms.join import Join

        def entering(original: Callable) -> Callable:
            def enter(join: Join) -> object:
                self.joins += 1
                return original(join)

            return enter

        def leaving(original: Callable) -> Callable:
            def leave(join: Join, *args: object) -> object:
                self.joins -= 1
                return original(join, *args)

            return leave

        self.session.patches.put(Join, "__enter__", entering)
        self.session.patches.put(Join, "__exit__", leaving)

    # ---- the life of a pass

    def _start(self, loader: DataLoader) -> None:
        """What was left in the middle is over. To raise here is safe: no worker runs yet."""
        for other in [p for p in self._open if p.loader() is loader or p.iterator() is None]:
            self._close(other)
        for call in self.on_start:
            call(loader)

    def _begin(self, iterator: Any, loader: DataLoader) -> None:
        before = getattr(iterator, MARK, None)
        if before is not None and not before.sizes and not before.batches:
            return  # with workers, torch starts the first pass twice
        frames, _ = user_frames(3)
        stack = places(frames)
        begun = Pass(
            loader=weakref.ref(loader),
            dataset=loader.dataset,
            sampler=_sampler(loader),
            key=self._number(stack, loader),
            stack=stack,
            iterator=weakref.ref(iterator),
            workers=loader.num_workers,
            drop_last=bool(getattr(loader.batch_sampler, "drop_last", False)),
        )
        begun.epoch = getattr(begun.sampler, "epoch", None)
        setattr(iterator, MARK, begun)
        self._open.append(begun)
        for call in self.on_begin:
            call(begun)

    def _number(self, stack: tuple[Place, ...], loader: DataLoader) -> str:
        # ranks find each other's passes by the way that led here, not by a count of all passes:
        # one rank may evaluate in between
        kind = type(loader.dataset).__name__
        name = f"{kind}@" + ";".join(f"{file}:{line}" for file, line, _ in stack)
        count = self._counts.setdefault(name, itertools.count())
        return f"{name}#{next(count)}"

    def _note_index(self, iterator: object, index: SupportsIndex | Sequence[SupportsIndex]) -> None:
        found = getattr(iterator, MARK, None)
        if found is None or found.closed:
            return
        add_indices(found, index)
        for call in self.after_index:
            call(found)

    def _note_batch(self, iterator: object, batch: object) -> None:
        found = getattr(iterator, MARK, None)
        if found is None or found.closed:
            return
        self.current = found
        found.joined = found.joined or self.joins > 0
        if found.indices is not None and found.batches < len(found.sizes):
            # workers load ahead, so what was asked for is not what the program has got
            start, found.delivered = (
                found.delivered,
                found.delivered + found.sizes[found.batches],
            )
            found.contents.add(found.indices[start : found.delivered], batch)
        found.batches += 1
        for call in self.on_batch:
            call(found, batch)

    def _note_end(self, iterator: object) -> None:
        found = getattr(iterator, MARK, None)
        if found is not None and not found.closed:
            found.complete = True
            if found.steps:
                self.trained += 1
                chosen = array("q", found.contents.hashes)
                self.few = tuple(sorted(root_indices(found.dataset, chosen)))
            self._close(found)

    def close_all(self) -> None:
        """End every pass that is still open."""
        for found in list(self._open):
            self._close(found)

    def _close(self, found: Pass) -> None:
        # first: a callback may raise, and the pass must not be told of twice
        self._open.remove(found)
        found.closed = True
        for call in self.on_end:
            call(found)

    def stepped(self, optimizer: Optimizer) -> None:
        """An optimizer has stepped."""
        if self.current is not None:
            self.current.steps += 1
            self.dealt |= getattr(self.current.sampler, "num_replicas", 1) > 1
            self.current.optimizers.add(optimizer)

    def went_back(self, roots: object) -> None:
        """A backward begins."""
        if self.current is not None:
            self.current.backwards += 1
            if self.training is not self.current:
                self.training = self.current
                self.trainings += 1

    def forget_all(self) -> None:
        """A new process group starts."""
        self.current = self.training = None
        self.dealt, self.few, self.trainings = False, (), 0
        self._open.clear()
        self._counts.clear()


def add_indices(found: Pass, index: SupportsIndex | Sequence[SupportsIndex]) -> None:
    """Keep the indices of one batch, or give the indices of this pass up."""
    if found.indices is None:
        found.sizes.append(0)
        return
    values = index if isinstance(index, list | tuple) else [cast(SupportsIndex, index)]
    try:
        found.indices.extend([operator.index(value) for value in values])
        found.sizes.append(len(values))
    except TypeError:  # keys of another kind, or the None of a stream
        found.indices = None


def _sampler(loader: DataLoader) -> object:
    """What decides the order: the sampler inside the batch sampler, as far as it shows."""
    inner = getattr(loader.batch_sampler, "sampler", None)
    if loader.batch_sampler is not None and type(loader.sampler) is SequentialSampler:
        return inner if inner is not None else loader.batch_sampler
    return loader.sampler


def draws_with_replacement(sampler: object) -> bool:
    """True for samplers that are meant to give a sample several times, or only some of them."""
    if isinstance(sampler, RandomSampler):
        return sampler.replacement or sampler._num_samples is not None
    return isinstance(sampler, WeightedRandomSampler)


def length_of(sampler: DistributedSampler) -> int:
    """How many samples the dataset of a sampler has; it asked for that itself."""
    return len(cast(Sized, sampler.dataset))


def shuffles(sampler: object) -> bool:
    """True for samplers whose order should differ from pass to pass."""
    if isinstance(sampler, DistributedSampler):
        return bool(sampler.shuffle)
    if isinstance(sampler, RandomSampler | torch.utils.data.SubsetRandomSampler):
        return True
    return hasattr(sampler, "set_epoch") and bool(getattr(sampler, "shuffle", False))


def root_dataset(dataset: object) -> object:
    """The dataset inside Subset(Subset(...))."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset


def root_indices(dataset: object, indices: array) -> array:
    """Indices of a Subset as indices of the dataset inside."""
    while isinstance(dataset, Subset):
        inner = dataset.indices
        indices = array("q", [int(inner[i]) for i in indices])
        dataset = dataset.dataset
    return indices
