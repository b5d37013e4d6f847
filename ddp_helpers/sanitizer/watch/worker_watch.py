"""A look at the random numbers that a DataLoader's workers draw, from within the workers.

The worker's `worker_init_fn` is wrapped by an object that can be pickled, so it comes along with
fork, spawn and forkserver. It writes what it sees into a file in memory that the rank holds.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import torch
from torch.utils.data import DataLoader

from ddp_helpers.sanitizer.compare.randomness import Draws, States, draws_between, random_states
from ddp_helpers.sanitizer.talk.codec import decode, encode
from ddp_helpers.sanitizer.talk.session import Session
from ddp_helpers.torch_private import FETCHERS, WORKER_ITERATOR

ROOM = 4096  # bytes of each worker's part of the file
BATCHES = 3  # that a worker looks at


@dataclass(frozen=True)
class WorkerBatch:
    """What a worker drew while it loaded one batch."""

    size: int
    draws: Draws


@dataclass(frozen=True)
class WorkerRecord:
    """What a worker writes into its part of the file."""

    batches: tuple[WorkerBatch, ...] = ()


class WorkerInit:
    """Stands in for a `worker_init_fn`: calls it, then watches the first few batches.

    Args:
        original: the reader's own, or None.
        path: the file to write to.
    """

    def __init__(self, original: Callable[[int], None] | None, path: str) -> None:
        self.original = original
        self.path = path

    def __call__(self, worker_id: int) -> None:
        if self.original is not None:
            self.original(worker_id)
        with contextlib.suppress(Exception):
            _Watch(self.path, worker_id).begin()


class _Watch:
    def __init__(self, path: str, worker_id: int) -> None:
        self.path, self.place = path, worker_id * ROOM
        self.seen: list[WorkerBatch] = []
        self.originals = [(kind, kind.fetch) for kind in (name.get() for name in FETCHERS)]

    def begin(self) -> None:
        for kind, original in self.originals:
            kind.fetch = self._watched(original)

    def _watched(self, original: Callable) -> Callable:
        def fetch_and_look(fetcher: object, indices: object) -> object:
            before = self._states()
            data = original(fetcher, indices)
            if before is not None:
                self._note(before, len(indices) if isinstance(indices, list) else 1)
            return data

        return fetch_and_look

    def _states(self) -> States | None:
        try:
            return random_states()
        except Exception:
            self._end()
            return None

    def _note(self, before: States, size: int) -> None:
        try:
            self.seen.append(WorkerBatch(size, draws_between(before, random_states())))
            data = encode(WorkerRecord(tuple(self.seen))).encode().ljust(ROOM, b" ")
            with open(self.path, "r+b") as file:
                file.seek(self.place)
                file.write(data[:ROOM])
        except Exception:
            self._end()
        if len(self.seen) >= BATCHES:
            self._end()

    def _end(self) -> None:
        for kind, original in self.originals:
            kind.fetch = original


class WorkerWatcher:
    """Gives each loader's workers a WorkerInit, and reads what they wrote."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._files: weakref.WeakKeyDictionary[object, BinaryIO] = weakref.WeakKeyDictionary()

    def put_patches(self) -> None:
        """Stand in for the start of a loader's workers."""
        for name in FETCHERS:  # here a note can be made of one that is missing, there not
            name.get()
        self.session.patches.put(WORKER_ITERATOR.get(), "__init__", self._starting)

    def _starting(self, original: Callable) -> Callable:
        prepare = self.session.guarded("workers", self._prepare)

        def start(iterator: object, loader: DataLoader) -> None:
            path = prepare(iterator, loader) if self.session.channel is not None else None
            if path is None:
                return original(iterator, loader)
            own = loader.worker_init_fn
            loader.worker_init_fn = WorkerInit(own, path)
            try:
                original(iterator, loader)
            finally:
                loader.worker_init_fn = own

        return start

    def _prepare(self, iterator: object, loader: DataLoader) -> str:
        # in memory, without a name on a disk: nothing can be left behind
        file = os.fdopen(os.memfd_create("sanitizer-workers"), "r+b", buffering=0)
        file.truncate(ROOM * loader.num_workers)
        self._files[iterator] = file
        return f"/proc/{os.getpid()}/fd/{file.fileno()}"

    def file_of(self, iterator: object) -> BinaryIO | None:
        """Where the workers of a loader's iterator write to, if it has any."""
        return self._files.get(iterator)

    def read(self, file: BinaryIO | None) -> tuple[tuple[WorkerBatch, ...], ...]:
        """For each worker: what it drew with its first batches."""
        if file is None:
            return ()
        size = os.fstat(file.fileno()).st_size
        parts = [
            os.pread(file.fileno(), ROOM, place).strip(b" \0") for place in range(0, size, ROOM)
        ]
        found = (decode(part, WorkerRecord) if part else WorkerRecord() for part in parts)
        return tuple(record.batches for record in found)


def batch_size_of(batch: object) -> int:
    """The number of samples in a batch, 1 where it can't be told."""
    if isinstance(batch, torch.Tensor):
        return batch.shape[0] if batch.ndim else 1
    if isinstance(batch, dict):
        batch = list(batch.values())
    if isinstance(batch, list | tuple) and batch:
        return batch_size_of(batch[0])
    return 1
