"""The first steps of each training pass: equal inputs, equal random numbers on all ranks?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch.nn.parallel import DistributedDataParallel

from ddp_helpers.evidence.records import Finding
from ddp_helpers.sanitizer.checks.data_checks import Peers, about_sampler
from ddp_helpers.sanitizer.compare.callsite import Place, innermost, places, user_frames
from ddp_helpers.sanitizer.compare.randomness import (
    Draws,
    States,
    device_states,
    draws_between,
    random_states,
    same_draws,
)
from ddp_helpers.sanitizer.compare.samples import contents_hash, digest
from ddp_helpers.sanitizer.compare.shares import SPLIT, SamplerRecord, split_advice, who
from ddp_helpers.sanitizer.talk.exchange import Exchange
from ddp_helpers.sanitizer.talk.session import Session
from ddp_helpers.sanitizer.watch.passes import Pass, PassRecorder
from ddp_helpers.sanitizer.watch.worker_watch import WorkerBatch, WorkerWatcher, batch_size_of

NEVER = 1 << 30  # draws that no step has: not all ranks have come to this one
STEPS = 4  # looked at, at the beginning of each pass
ENOUGH = 3  # of them
MANY = 8  # draws in a forward for each sample; NEVER stays beyond all
SEVERAL = 2  # draws after a batch was loaded; a single one may choose for all ranks, on purpose
AUGMENT = (
    "seed each rank differently once the model is made: torch.manual_seed(seed + rank), and the "
    "same for `random` and numpy"
)
APART = (
    "the ranks learn a little less from one step; seed each rank differently once the model is "
    "made: torch.manual_seed(seed + rank)"
)
WORKERS = (
    "give the loader generator=torch.Generator().manual_seed(seed + rank): its workers' seeds come "
    "from it"
)


@dataclass(frozen=True)
class StepInputs:
    """What went into one step."""

    inputs: str | None
    """A hash of the model's inputs; None where they can't be told."""
    size: int = 1
    """Of the batch."""
    drawn: dict[str, Draws] = field(default_factory=dict)
    """What was drawn while the batch was loaded (`load`) and after that (`between`)."""


@dataclass(frozen=True)
class FirstStepsRecord:
    """The first steps of one pass."""

    steps: tuple[StepInputs, ...]
    workers: tuple[tuple[WorkerBatch, ...], ...]
    """What each of the loader's workers drew."""
    place: Place | None
    sampler: SamplerRecord | None


Records = Mapping[int, FirstStepsRecord]


class FirstStepsChecker:
    """Notes for each of the first steps what went into the model and which numbers were drawn."""

    def __init__(self, session: Session, passes: PassRecorder, peers: Peers) -> None:
        self.session = session
        self.passes, self.peers = passes, peers
        self.workers = WorkerWatcher(session)
        self.exchange = Exchange(session, "first-steps", FirstStepsRecord)
        self.restart()

    def restart(self) -> None:
        """Begin anew with the next step."""
        self.armed, self.began_at = True, 0
        self.entries: list[StepInputs] = []
        self.place: Place | None = None
        self._clear()

    def _clear(self) -> None:
        """Begin the notes of one step."""
        self.inputs: list[str | None] = []
        self.loading: States | None = None  # the states before a batch is loaded
        self.waiting: States | None = None  # the states after it was
        self.computing: States | None = None  # the states before a forward
        self.size = 1
        self.drawn: dict[str, Draws] = {}

    def arm(self, begun: Pass) -> None:
        """A pass begins: look at its first steps."""
        self.armed = True
        begun.worker_file = self.workers.file_of(begun.iterator())

    def index_drawn(self, current: Pass) -> None:
        """A batch is about to be loaded."""
        if self.armed and current.workers == 0:
            self.loading = random_states()

    def delivered(self, current: Pass, batch: object) -> None:
        """A batch was loaded."""
        if not self.armed:
            return
        self.size, states = batch_size_of(batch), random_states()
        if self.loading is not None:
            self.drawn["load"] = draws_between(self.loading, states)
        self.loading, self.waiting = None, states

    def forward(self, ddp: DistributedDataParallel, args: tuple, kwargs: dict) -> None:
        """A model is about to get its inputs."""
        if not self.armed or not ddp.training or not torch.is_grad_enabled():
            return
        if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
            return  # to read a tensor now would break the capture
        if self.waiting is not None:
            self.drawn["between"] = draws_between(self.waiting, random_states())
            self.waiting = None
        self.inputs.append(contents_hash([args, kwargs]))
        if (current := self.passes.current) is not None:
            current.got(batch_size_of(args or kwargs), self.inputs[-1])
        self.place = self.place or innermost(places(user_frames(2)[0]))
        if "forward" not in self.drawn:
            self.computing = device_states()

    def forward_ended(self, ddp: DistributedDataParallel, output: object) -> None:
        """A model has computed: did it draw, as dropout does?"""
        if self.computing is not None:
            self.drawn["forward"] = draws_between(self.computing, device_states())
        self.computing = None

    def stepped(self, optimizer: object) -> None:
        """A step is done: keep its notes."""
        self.exchange.look()
        if not self.armed or not (self.inputs or self.drawn):
            return
        if not self.entries:
            self.began_at = self.session.step
        known = [text.encode() for text in self.inputs if text is not None]
        whole = known and len(known) == len(self.inputs)
        self.entries.append(StepInputs(digest(*known) if whole else None, self.size, self.drawn))
        self._clear()
        if len(self.entries) == STEPS:
            self._leave()

    def at_end(self) -> None:
        """A run of few steps: compare what there is."""
        if len(self.entries) >= ENOUGH:
            self._leave()

    def _leave(self) -> None:
        current = self.passes.current
        workers = self.workers.read(current.worker_file if current else None)
        sampler = about_sampler(current) if current else None
        record = FirstStepsRecord(tuple(self.entries), workers, self.place, sampler)
        name, ranks = f"{self.began_at}/{self.peers.ranks}", self.peers.ranks
        self.restart()
        self.armed = False
        self.exchange.leave(name, record, ranks, self._compare)

    def _compare(self, records: Records) -> None:
        frame = self.session.frame_of(records[min(records)].place)
        for kind, cause, advice in judge_first_steps(records):
            ranks = tuple(sorted(records))
            self.session.found(Finding(kind, cause, advice, ranks, self.session.step, frame))
        if names := _alike(records, "forward"):
            kind, cause = "identical-dropout", _drawn_alike(names, "in the model's forward")[1]
            cause += ": the masks of dropout, for instance, are alike on all ranks"
            ranks, step = tuple(sorted(records)), self.session.step
            self.session.found(Finding(kind, cause, APART, ranks, step, frame, serious=False))


def judge_first_steps(records: Records) -> list[tuple[str, str, str]]:
    """Kind, cause and advice of what is wrong, the cause of the rest first."""
    if have_same_inputs([record.steps for record in records.values()]):
        samplers = {rank: record.sampler for rank, record in records.items()}
        cause = "the model got the same inputs on all ranks, and other ones in each step"
        advice = split_advice(samplers)
        advice += "; or seed + rank where you draw the data" if advice == SPLIT else ""
        return [("same-data-on-every-rank", cause + who(samplers), advice)]
    found = []
    moments = (("load", "while a batch was loaded"), ("between", "between a batch and the forward"))
    for phase, when in moments:
        if names := _alike(records, phase):
            found.append((*_drawn_alike(names, when), AUGMENT))
    if names := _same_in_workers(records):
        found.append((*_drawn_alike(names, "in the loader's workers"), WORKERS))
    return found


def _alike(records: Records, phase: str) -> list[str]:
    """The generators from which all ranks drew the same numbers in this phase of several steps."""
    drawn = {
        rank: [step.drawn.get(phase, {}) for step in record.steps]
        for rank, record in records.items()
    }
    return same_draws(drawn, _least(records, phase))


def have_same_inputs(by_rank: Sequence[Sequence[StepInputs]]) -> bool:
    """True if inputs are equal between ranks in each step, and other ones from step to step."""
    hashes = [[step.inputs for step in steps] for steps in by_rank]
    first = hashes[0]
    known = None not in first and len(set(first)) >= ENOUGH
    return known and all(other == first for other in hashes)


def _least(records: Records, phase: str) -> list[int]:
    """Draws that one step must have had: one a sample, so a choice for a whole batch is none."""
    counts = [[step.size for step in record.steps] for record in records.values()]
    least = [max(sizes) for sizes in zip(*counts, strict=False)]
    least += [NEVER] * (max(map(len, counts)) - len(least))
    if phase == "forward":  # fewer may choose layers, which all ranks must do alike
        return [MANY * size for size in least]
    return [max(SEVERAL, size) if phase == "between" else size for size in least]


def _drawn_alike(names: list[str], when: str) -> tuple[str, str]:
    known = {"torch": "torch's default generator", "cuda": "the device's generator"}
    which = " and ".join(known.get(name, f"`{name}`") for name in names)
    cause = f"all ranks drew the same random numbers from {which} {when}"
    return "identical-random-draws", cause


def _same_in_workers(records: Records) -> list[str]:
    names: set[str] = set()
    counts = {len(record.workers) for record in records.values()}
    for worker in range(min(counts)):
        seen = {rank: record.workers[worker] for rank, record in records.items()}
        moments = min(len(batches) for batches in seen.values())
        least = [max(batches[m].size for batches in seen.values()) for m in range(moments)]
        drawn = {r: [batch.draws for batch in b[:moments]] for r, b in seen.items()}
        names |= set(same_draws(drawn, least, enough=1) if moments else [])
    return sorted(names)
