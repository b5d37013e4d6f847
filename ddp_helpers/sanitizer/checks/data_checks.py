"""Training passes compared between ranks: each rank its own share, of equal length."""

from __future__ import annotations

from array import array

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
)
from ddp_helpers.sanitizer.compare.shares import judge
from ddp_helpers.sanitizer.talk.exchange import Exchange
from ddp_helpers.sanitizer.talk.session import SanitizerError, Session
from ddp_helpers.sanitizer.watch.passes import (
    Pass,
    PassRecorder,
    draws_with_replacement,
    root_dataset,
    root_indices,
)
from ddp_helpers.sanitizer.watch.training_events import TrainingEvents


class Peers:
    """The ranks that train one model together, each on data of its own.

    These are the ones of DDP's group. Without DDP they are all ranks, as long as there is no other
    group: tensor or pipeline parallel ranks, for instance, have the same data on purpose.
    """

    def __init__(self, session: Session, events: TrainingEvents) -> None:
        self.session = session
        self._ranks: list[int] | None = None
        events.after_wrap.append(session.guarded("groups", self._wrapped))
        session.on_group.append(self._forget)

    @property
    def ranks(self) -> list[int]:
        """As ranks of the default group; empty where it can't be told."""
        if self._ranks is not None:
            return self._ranks
        groups = len(dist.distributed_c10d._world.pg_map)
        return list(range(self.session.world_size)) if groups == 1 else []

    def _wrapped(self, ddp: DistributedDataParallel) -> None:
        ranks = dist.get_process_group_ranks(ddp.process_group)
        if self._ranks is None or len(ranks) < len(self._ranks):
            self._ranks = ranks

    def _forget(self) -> None:
        self._ranks = None


class ShareChecker:
    """Compares what each rank went through in a training pass."""

    def __init__(self, session: Session, passes: PassRecorder, peers: Peers) -> None:
        self.session = session
        self.peers = peers
        self._over: Pass | None = None
        session.at_end.append(session.guarded("shares", self._leave))
        self.exchange = Exchange(session, "shares")
        self._counts: dict[str, int] = {}  # samples of the latest pass of each loop
        session.on_group.append(self._forget)
        passes.on_end.append(session.guarded("shares", self._ended))
        passes.on_start.append(session.guarded("shares", self._next_begins))

    def _forget(self) -> None:
        self._over = None

    def _ended(self, ended: Pass) -> None:
        """Keep it until the next pass: steps may follow that make up for missing batches."""
        self._leave()
        if ended.steps and ended.batches:
            self._over = ended

    def _next_begins(self, loader: object) -> None:
        self._leave()
        self.exchange.look()

    def _leave(self) -> None:
        ended, self._over = self._over, None
        ranks = self.peers.ranks
        if ended is None or not ranks:
            return
        record = share_record(ended)
        if "count" in record:
            record["again"] = self._counts.get(ended.loop) == record["count"]
            self._counts[ended.loop] = record["count"]
        self.exchange.leave(
            digest(ended.key.encode(), str(ranks).encode()), record, ranks, self._compare
        )

    def _compare(self, records: dict[int, dict]) -> None:
        """Tell all that is wrong; the first of it stops the run."""
        raised = None
        for verdict in judge(records):
            place = next(iter(records.values()))["place"]
            finding = Finding(
                verdict.kind,
                verdict.cause,
                verdict.advice,
                verdict.ranks,
                self.session.step,
                self.session.frame(tuple(place)) if place else None,
            )
            try:
                self.session.found(finding)
            except SanitizerError as error:
                raised = raised or error
        if raised:
            raise raised


def share_record(ended: Pass) -> dict:
    """What the other ranks need to know of a pass; plain values."""
    consumed = ended.consumed
    record = {
        "batches": ended.batches,
        "steps": ended.steps,
        "complete": ended.complete,
        "joined": ended.joined,
        "place": ended.place,
        "inner": None,
        "again": False,
    }
    if consumed is None or not len(consumed):
        return record
    inner = root_indices(ended.dataset, consumed)
    contents = {
        str(there): ended.contents.hashes[here]
        for here, there in zip(
            ended.contents.hashes,
            root_indices(ended.dataset, array("q", ended.contents.hashes)),
            strict=True,
        )
    }
    root = root_dataset(ended.dataset)
    return record | {
        "count": len(consumed),
        "twice": count_repeated(consumed),
        "order": digest(inner.tobytes()),
        "outer": encode_indices(consumed, _length(ended.dataset, consumed)),
        "inner": encode_indices(inner, _length(root, inner)),
        "length": _length(ended.dataset, consumed),
        "dataset": fingerprint(ended.dataset),
        "root": fingerprint(root),
        "bag": bag_and_order(root) if ended.key.endswith("#0") else None,
        "contents": contents,
        "batch": max(ended.sizes),
        **about_sampler(ended),
    }


def about_sampler(ended: Pass) -> dict:
    """What is to be expected of the sampler of a pass."""
    sampler = ended.sampler
    distributed = isinstance(sampler, DistributedSampler)
    size = len(sampler.dataset) if distributed else 0
    total = sampler.total_size if distributed else 0
    loader = ended.loader()
    inner = getattr(loader, "batch_sampler", None)
    return {
        "sampler": type(sampler).__name__,
        "kind": kind_of(sampler),
        "padding": max(0, total - size),
        "dropped": max(0, size - total),
        "share": sampler.num_samples if distributed else 0,
        "replicas": [sampler.num_replicas, sampler.rank] if distributed else None,
        "seed": sampler.seed if distributed else None,
        "epoch": ended.epoch if distributed else None,
        "drop_last": bool(getattr(inner, "drop_last", False)),
        "formula": not _holds_indices(sampler),
    }


def kind_of(sampler: object) -> str:
    """What may be expected of a sampler."""
    if draws_with_replacement(sampler):
        return "replacement"
    if isinstance(sampler, DistributedSampler):
        return "distributed"
    if isinstance(sampler, RandomSampler):
        return "random"
    return "plain" if type(sampler) in (SequentialSampler, SubsetRandomSampler) else "own"


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
    try:
        return len(dataset)
    except TypeError:
        return max(indices, default=0) + 1
