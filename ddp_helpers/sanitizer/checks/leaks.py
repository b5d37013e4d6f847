"""Samples that are evaluated though the model has trained on them, followed to the root dataset."""

from __future__ import annotations

import contextlib
import weakref
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch.optim.optimizer import Optimizer

from ddp_helpers.evidence.records import Finding, name_ranks
from ddp_helpers.sanitizer.compare.callsite import Place
from ddp_helpers.sanitizer.compare.samples import (
    IndexSet,
    as_tensor,
    decode_indices,
    encode_indices,
    fingerprint,
    size_of,
)
from ddp_helpers.sanitizer.talk.channel import Gone
from ddp_helpers.sanitizer.talk.session import PATIENCE_AT_END, Session
from ddp_helpers.sanitizer.watch.passes import Pass, root_dataset, root_indices

KIND = "evaluation-leak"
MOST_ROOTS, MOST_PARTS = 4, 8  # datasets, and evaluations or parts of a training of one of them
MOST_SAMPLES = 1 << 20  # of a dataset: to follow more would take seconds


@dataclass(frozen=True)
class Part:
    """Samples that a rank went through, and after how many of its training passes."""

    passes: int
    indices: IndexSet
    place: Place | None = None


@dataclass(frozen=True)
class RootRecord:
    """What one rank did with one dataset."""

    root: str
    """Its hash and length."""
    trained: tuple[Part, ...]
    evaluated: tuple[Part, ...]


@dataclass(frozen=True)
class LeakRecord:
    """What one rank did with all of them."""

    roots: tuple[RootRecord, ...] = ()


@dataclass
class Used:
    """One root dataset in this process."""

    root: weakref.ref
    held: torch.Tensor
    """All samples of what was trained on, gone through or not."""
    seen: torch.Tensor
    """Those that were gone through."""
    datasets: dict[int, weakref.ref] = field(default_factory=dict)
    """What is in `held`, by id."""
    trained: list[Part] = field(default_factory=list)
    evaluated: dict[int, Part] = field(default_factory=dict)
    """The latest evaluation of each dataset that shares no sample with the training here."""
    told: bool = False


class LeakChecker:
    """Keeps apart what was trained on and what was evaluated, and compares all ranks at the end.

    To evaluate on the training set is no mistake. It is one where each rank keeps the two apart,
    and one rank evaluates what another one trains on: the ranks have split the data differently.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.are_together: Callable[[], bool] = lambda: True
        """Whether something was seen that keeps the ranks' models alike."""
        self._optimizers: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self.forget()

    def forget(self) -> None:
        """A new process group starts, or a new training."""
        self._optimizers.clear()
        self._used: dict[int, Used] = {}
        self._passes = 0

    def ended(self, ended: Pass) -> None:
        """A pass is over."""
        consumed = ended.consumed
        if consumed is None or not len(consumed):
            return
        if ended.steps:
            if not any(optimizer in self._optimizers for optimizer in ended.optimizers):
                self.forget()  # another training, as of the next fold
            self._optimizers.update(ended.optimizers)
            self._passes += 1
            self._trained(ended, consumed)
        elif not ended.backwards and self._passes:
            self._evaluated(ended, consumed)

    def _trained(self, ended: Pass, consumed: array) -> None:
        root = root_dataset(ended.dataset)
        used = self._used.get(id(root))
        if used is None:
            if len(self._used) == MOST_ROOTS or not 0 < (size_of(root) or 0) <= MOST_SAMPLES:
                return
            with contextlib.suppress(TypeError):  # no weak reference to a plain list
                nothing = as_tensor(array("q"))
                used = self._used[id(root)] = Used(weakref.ref(root), nothing, nothing)
        if used is None or used.root() is not root:
            return
        known = used.datasets.get(id(ended.dataset))
        if known is None or known() is not ended.dataset:
            used.datasets[id(ended.dataset)] = weakref.ref(ended.dataset)
            used.held = torch.cat([used.held, _all_of(ended.dataset)]).unique()
        elif len(used.seen) == len(used.held):
            return  # a later epoch brings nothing new
        indices = _unique(root_indices(ended.dataset, consumed))
        new = indices[~torch.isin(indices, used.seen)]
        if len(new) and len(used.trained) < MOST_PARTS:
            used.trained.append(Part(self._passes, _packed(new, root)))
            used.seen = torch.cat([used.seen, new])

    def _evaluated(self, ended: Pass, consumed: array) -> None:
        root = root_dataset(ended.dataset)
        used = self._used.get(id(root))
        if used is None or used.root() is not root or root is ended.dataset:
            return
        held = _all_of(ended.dataset)
        common = int(torch.isin(held, used.held).sum())
        if not common:
            if id(ended.dataset) in used.evaluated or len(used.evaluated) < MOST_PARTS:
                packed = _packed(_unique(root_indices(ended.dataset, consumed)), root)
                used.evaluated[id(ended.dataset)] = Part(self._passes, packed, ended.place)
        elif common < len(held) and common < len(used.held) and not used.told:
            used.told = True
            self._tell_overlap(ended, common, len(held))

    def _tell_overlap(self, ended: Pass, common: int, size: int) -> None:
        cause = (
            f"{common} of the {size} samples of a dataset that is evaluated are also in the one "
            "that was trained on: the two are different parts of one dataset, and overlap"
        )
        self._found(cause, ended.place, tuple(range(self.session.world_size)), serious=False)

    # ---- the end

    def at_end(self) -> None:
        """Leave what this rank did."""
        self.session.line.publish("leak", self._record())

    def _record(self) -> LeakRecord:
        found = []
        for used in self._used.values():
            root = used.root()
            if root is None or not self.are_together():
                continue
            known = fingerprint(root)
            if known.data:  # else equal indices may mean other samples elsewhere
                name = f"{known.hash}/{size_of(root)}"
                parts = tuple(used.evaluated.values())
                found.append(RootRecord(name, tuple(used.trained), parts))
        return LeakRecord(tuple(found))

    def at_last(self) -> None:
        """Compare all ranks, on the first one."""
        if self.session.rank:
            return
        channel, everyone = self.session.line, range(self.session.world_size)
        with contextlib.suppress(Gone):
            limit = PATIENCE_AT_END
            channel.wait("leak", everyone, LeakRecord, limit, self.session.have_left_all)
        records = channel.read_those_here("leak", everyone, LeakRecord)
        for evaluated, leaked, trainers, place in leaks(records):
            who = name_ranks(trainers)
            cause = (
                f"{leaked} of {evaluated} evaluated samples were trained on by {who}, though each "
                "rank keeps what it trains on and what it evaluates apart: the ranks have split "
                "the data differently"
            )
            self._found(cause, place, tuple(trainers), serious=True)

    def _found(
        self, cause: str, place: Place | None, ranks: tuple[int, ...], *, serious: bool
    ) -> None:
        advice = (
            "split alike on every rank, random_split(..., generator=torch.Generator()"
            ".manual_seed(0)), and only then share the parts out to the ranks"
        )
        frame, step = self.session.frame_of(place), self.session.step
        self.session.found(Finding(KIND, cause, advice, ranks, step, frame, serious=serious))


def leaks(
    records: Mapping[int, LeakRecord],
) -> list[tuple[int, int, list[int], Place | None]]:
    """For each dataset: how many samples were evaluated, how many of them other ranks had trained
    on before, which ranks those are, and where one of them was evaluated."""
    names = {root.root for record in records.values() for root in record.roots}
    return [found for name in sorted(names) if (found := _leak_of(name, records)) is not None]


def _leak_of(
    name: str, records: Mapping[int, LeakRecord]
) -> tuple[int, int, list[int], Place | None] | None:
    of_rank = {
        rank: root for rank, record in records.items() for root in record.roots if root.root == name
    }
    evaluated, leaked = set[int](), set[int]()
    trainers, place = set[int](), None
    for rank, mine in sorted(of_rank.items()):
        for part in mine.evaluated:
            samples = decode_indices(part.indices)
            evaluated |= set(samples.tolist())
            for other, theirs in of_rank.items():
                before = [p for p in theirs.trained if p.passes <= part.passes and other != rank]
                hits = [samples[torch.isin(samples, decode_indices(p.indices))] for p in before]
                common = {index for hit in hits for index in hit.tolist()}
                if common:
                    leaked |= common
                    trainers.add(other)
                    place = place or part.place
    return (len(evaluated), len(leaked), sorted(trainers), place) if leaked else None


def _all_of(dataset: object) -> torch.Tensor:
    """All samples of a dataset, as indices of its root."""
    return _unique(root_indices(dataset, array("q", range(size_of(dataset) or 0))))


def _unique(indices: array) -> torch.Tensor:
    return as_tensor(indices).unique()


def _packed(indices: torch.Tensor, root: object) -> IndexSet:
    return encode_indices(array("q", indices.tolist()), size_of(root) or 1)
