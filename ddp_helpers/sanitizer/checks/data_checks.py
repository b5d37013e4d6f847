"""Training passes compared between ranks: each rank its own share, of equal length."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import (
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
)

from ddp_helpers.evidence.records import Finding
from ddp_helpers.sanitizer.compare.samples import (
    bag_and_order,
    count_repeated,
    digest,
    encode_indices,
    fingerprint,
    size_of,
)
from ddp_helpers.sanitizer.compare.shares import SamplerRecord, Samples, ShareRecord, judge
from ddp_helpers.sanitizer.talk.exchange import Exchange
from ddp_helpers.sanitizer.talk.session import SanitizerError, Session
from ddp_helpers.sanitizer.watch.passes import (
    Pass,
    draws_with_replacement,
    length_of,
    root_dataset,
    root_indices,
)
from ddp_helpers.torch_private import GROUPS


class Peers:
    """The ranks that train one model together, each on data of its own.

    These are the ones of DDP's group. Without DDP they are all ranks, as long as there is no other
    group: tensor or pipeline parallel ranks, for instance, have the same data on purpose.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self._ranks: list[int] | None = None

    @property
    def ranks(self) -> list[int]:
        """As ranks of the default group; empty where it can't be told."""
        if self._ranks is not None:
            return self._ranks
        groups = len(GROUPS.get())
        return list(range(self.session.world_size)) if groups == 1 else []

    def wrapped(self, ddp: DistributedDataParallel) -> None:
        """The smallest group counts: a larger one may replicate it."""
        ranks = dist.get_process_group_ranks(ddp.process_group)
        if self._ranks is None or len(ranks) < len(self._ranks):
            self._ranks = ranks

    def forget(self) -> None:
        """A new process group starts."""
        self._ranks = None


class ShareChecker:
    """Compares what each rank went through in a training pass."""

    def __init__(self, session: Session, peers: Peers) -> None:
        self.session = session
        self.peers = peers
        self._over: Pass | None = None
        self.exchange = Exchange(session, "shares", ShareRecord)
        self.are_together: Callable[[], bool] = lambda: True
        """Whether something was seen that keeps the ranks' models alike."""

    def forget(self) -> None:
        """A new process group starts."""
        self._over = None

    def ended(self, ended: Pass) -> None:
        """Keep it until the next pass: steps may follow that make up for missing batches."""
        self.leave()
        if ended.steps and ended.batches:
            self._over = ended

    def next_begins(self, loader: object) -> None:
        """A loader is about to begin a pass."""
        self.leave()
        self.exchange.look()

    def leave(self) -> None:
        """Leave the record of the pass that is over, if there is one."""
        ended, self._over = self._over, None
        ranks = self.peers.ranks
        if ended is None or not ranks:
            return
        record = replace(share_record(ended), together=self.are_together())
        self.exchange.leave(
            digest(ended.key.encode(), str(ranks).encode()), record, ranks, self._compare
        )

    def _compare(self, records: Mapping[int, ShareRecord]) -> None:
        """Tell all that is wrong; the first of it stops the run."""
        raised = None
        for verdict in judge(records):
            place = next(iter(records.values())).place
            finding = Finding(
                verdict.kind,
                verdict.cause,
                verdict.advice,
                verdict.ranks,
                self.session.step,
                self.session.frame_of(place),
                serious=verdict.serious,
            )
            try:
                self.session.found(finding)
            except SanitizerError as error:
                raised = raised or error
        if raised:
            raise raised


def share_record(ended: Pass) -> ShareRecord:
    """What the other ranks need to know of a pass."""
    return ShareRecord(
        ended.batches,
        ended.steps,
        ended.complete,
        ended.joined,
        ended.place,
        _samples(ended),
        ended.rows,
        tuple(ended.inputs),
    )


def _samples(ended: Pass) -> Samples | None:
    consumed = ended.consumed
    if consumed is None or not len(consumed):
        return None
    inner = root_indices(ended.dataset, consumed)
    hashes = ended.contents.hashes
    there = root_indices(ended.dataset, array("q", hashes))
    root = root_dataset(ended.dataset)
    return Samples(
        count=len(consumed),
        twice=count_repeated(consumed),
        order=digest(inner.tobytes()),
        outer=encode_indices(consumed, _length(ended.dataset, consumed)),
        inner=encode_indices(inner, _length(root, inner)),
        length=_length(ended.dataset, consumed),
        root_length=_length(root, inner),
        dataset=fingerprint(ended.dataset),
        root=fingerprint(root),
        bag=bag_and_order(root) if ended.key.endswith("#0") else None,
        contents={i: tuple(each) for i, each in zip(there, hashes.values(), strict=True)},
        batch=max(ended.sizes),
        sampler=about_sampler(ended),
    )


def about_sampler(ended: Pass) -> SamplerRecord:
    """What is to be expected of the sampler of a pass."""
    sampler, kind = ended.sampler, kind_of(ended.sampler, ended.dataset)
    formula = not _holds_indices(sampler)
    if not isinstance(sampler, DistributedSampler):
        return SamplerRecord(kind, drop_last=ended.drop_last, formula=formula)
    size, total = length_of(sampler), sampler.total_size
    return SamplerRecord(
        kind,
        padding=max(0, total - size),
        dropped=max(0, size - total),
        share=sampler.num_samples,
        replicas=(sampler.num_replicas, sampler.rank),
        seed=sampler.seed,
        epoch=ended.epoch,
        drop_last=ended.drop_last,
        formula=formula,
    )


def kind_of(sampler: object, dataset: object) -> str:
    """What may be expected of a sampler of a loader's dataset."""
    if draws_with_replacement(sampler):
        return "replacement"
    if isinstance(sampler, DistributedSampler):
        return "distributed" if _deals(sampler, dataset) else "own"
    if isinstance(sampler, RandomSampler):
        return "random"
    return "plain" if type(sampler) in (SequentialSampler, SubsetRandomSampler) else "own"


def _deals(sampler: DistributedSampler, dataset: object) -> bool:
    """True if it is torch's own, and deals the loader's samples, not what another sampler gives."""
    is_torchs = type(sampler).__iter__ is DistributedSampler.__iter__
    return is_torchs and (
        sampler.dataset is dataset or size_of(sampler.dataset) == size_of(dataset)
    )


def _holds_indices(sampler: object) -> bool:
    """True if a sampler of the reader's own was given indices to choose from."""
    if not isinstance(sampler, Sampler):  # a plain list of indices
        return True
    for value in vars(sampler).values():
        items = value if isinstance(value, list | tuple | array | range) else []
        if (len(items) > 1 and isinstance(items[0], int)) or hasattr(value, "dtype"):
            return True
    return False


def _length(dataset: object, indices: array) -> int:
    size = size_of(dataset)
    return max(indices, default=0) + 1 if size is None else size
