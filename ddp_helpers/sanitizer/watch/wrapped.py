"""The models that DistributedDataParallel wraps in this process, and what became of each so far."""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import Optimizer

from ddp_helpers.sanitizer.compare.callsite import Place
from ddp_helpers.sanitizer.compare.fingerprint import fingerprint
from ddp_helpers.sanitizer.compare.records import Edit, Edits

MOST_EDITED = 20  # places of changed parameters that travel; the finding names one


@dataclass
class SinceStep:
    """What happened to one model since an optimizer last stepped it."""

    synced: list[tuple[Place, ...] | int] = field(default_factory=list)
    """Where the backward passes were that averaged gradients; a number of its own for one that was
    not looked at."""
    local: int = 0
    """Backward passes of the wrapper's forward that averaged none."""
    elsewhere: int = 0
    """Backward passes that went past the wrapper."""
    ended_in_no_sync: bool = False
    """The last forward for training was inside no_sync()."""


@dataclass(eq=False)
class Wrapped:
    """One wrapped model."""

    number: int
    """Counted from 0 in the order of the wraps of its process group."""
    group: str
    ranks: list[int]
    names: list[str]
    parameters: list[weakref.ref[torch.nn.Parameter]]
    reduced: set[int]
    """The ids of those that DDP averages: they were trainable at the wrap."""
    ddp: weakref.ref[DistributedDataParallel]
    placed: list[object] = field(default_factory=list)
    """Each parameter's dtype and device at the wrap; None for one that DDP does not average."""
    suspect: str = ""
    """What was done to the module since, that may have left DDP with the wrong parameters."""
    weights: str = ""
    """Their fingerprint after the wrap, or after the last step looked at."""
    weights_at: int | None = 0
    """The number of steps after which `weights` was taken."""
    before: str = ""
    """Their fingerprint before the last step that was looked at."""
    before_at: int | None = None
    """The number of steps after which `before` was taken."""
    last_step: int = 0
    """The brief of the record of the last step, if that was looked at."""
    era: int = 0
    """Blocks of `with Join(...)` that are over; steps count from 0 after each."""
    steps: int = 0
    synced: int = 0
    buffer_syncs: int = 0
    ended_pass: int = 0
    """The number of steps at the end of the last pass over its data."""
    look_closely: bool = False
    expects: bool = False
    """A forward has prepared DDP for a backward that averages."""
    outputs: set[int] = field(default_factory=set)
    idle: int = 0
    """Steps that left a forward without a backward."""
    trains: bool = False
    """The last forward that a backward can follow was in training mode."""
    opaque: bool = False
    """The output holds no tensor that we can find."""
    since: SinceStep = field(default_factory=SinceStep)
    edit: Edit | None = None
    averaged_by_hand: bool = False
    """The program averages the weights itself, now and then."""
    edited: list[int] = field(default_factory=list)
    """Parameters changed since the last step, by something that is no optimizer."""

    @property
    def key(self) -> str:
        """A name that is the same on all its ranks, until its counts begin anew."""
        return f"{self.group}/{self.number}/{self.era}"

    def alive(self) -> list[torch.nn.Parameter | None]:
        """Its parameters, None for one that is gone."""
        return [reference() for reference in self.parameters]

    def fingerprint(self) -> str:
        """Of its weights as they are now."""
        return fingerprint(self.alive())

    def lost(self) -> list[str]:
        """Names of the parameters that DDP would average, if its hooks still were at them.

        A parameter may have been replaced by another tensor, or have got data of another dtype or
        on another device: then torch adds up its gradient at a new place, without DDP's hooks.
        """
        ddp = self.ddp()
        now = dict(ddp.module.named_parameters()) if ddp is not None else {}
        kept = zip(self.names, self.alive(), self.placed, strict=True)
        return [
            name
            for name, parameter, placed in kept
            if placed is not None and name in now
            if now[name] is not parameter or _place(now[name]) != placed
        ]

    def note_edits(self) -> str:
        """Find out which weights changed since the last step; returns their fingerprint."""
        now = self.before = self.fingerprint()
        self.before_at = self.steps
        if self.weights_at == self.steps:
            pairs = zip(self.weights.split(","), now.split(","), strict=True)
            self.edited = [place for place, (then, now_) in enumerate(pairs) if then != now_]
        return now

    def edits(self) -> Edits:
        """What the other ranks need to know of changes since the last step."""
        return Edits(tuple(self.edited[:MOST_EDITED]), self.edit)

    def is_local_sgd(self) -> bool:
        """True if the ranks drift apart on purpose, and are averaged now and then."""
        if self.averaged_by_hand:
            return True
        hooks = getattr(self.ddp(), "_comm_hooks", None) or ()
        return any("localsgd" in _name(hook).lower().replace("_", "") for hook, _ in hooks)

    @property
    def size(self) -> int:
        """How many numbers DDP would average."""
        there = (p for p in self.alive() if p is not None)
        return sum(p.numel() for p in there if id(p) in self.reduced)

    def has_hook(self) -> bool:
        """True if the program took DDP's communication into its own hands."""
        return bool(getattr(self.ddp(), "_comm_hooks", None))

    def idle_forwards(self) -> int:
        """Forwards for training that no backward followed; several before one step count once."""
        return self.idle + bool(self.outputs and self.trains)

    def start_anew(self) -> None:
        """A Join block is over: the ranks may have counted differently."""
        self.era += 1
        self.steps = self.synced = self.buffer_syncs = 0
        self.weights_at = self.before_at = None
        self.since = SinceStep()


@dataclass
class Held:
    """What an optimizer holds."""

    key: tuple[int, ...]
    """Changes when it holds something else, or a model was wrapped."""
    models: list[Wrapped] = field(default_factory=list)
    averaged: dict[int, list[int]] = field(default_factory=lambda: defaultdict(list))
    """Of each model, by its id, the places of the parameters that DDP averages."""
    others: list[weakref.ref[Tensor]] = field(default_factory=list)
    """The parameters that DDP averages nowhere."""


class Registry:
    """Finds the wrapped model that a module, a wrapper or a parameter belongs to."""

    def __init__(self) -> None:
        self.forget_all()

    def forget_all(self) -> None:
        """A new process group starts: numbers count from 0."""
        self.models: list[Wrapped] = []
        self.in_backward: list[Wrapped] = []
        """Those whose gradients the backward that runs now averages."""
        self._by_ddp: dict[int, Wrapped] = {}
        self._places: dict[int, tuple[Wrapped, int]] = {}
        self._counts: dict[str, int] = defaultdict(int)
        self._wraps = 0
        self._held: weakref.WeakKeyDictionary[Optimizer, Held] = weakref.WeakKeyDictionary()

    def next_number(self, group: str) -> int:
        """The number that the next wrap in this group gets."""
        return self._counts[group]

    def add(self, ddp: DistributedDataParallel) -> Wrapped:
        """Remember a new wrap; parameters that an older one held are the new one's."""
        group = ddp.process_group
        named = [
            (name, p)
            for name, p in ddp.module.named_parameters()
            if name not in ddp.parameters_to_ignore
        ]
        model = Wrapped(
            number=self._counts[group.group_name],
            group=group.group_name,
            ranks=dist.get_process_group_ranks(group),
            names=[name for name, _ in named],
            parameters=[weakref.ref(p) for _, p in named],
            reduced={id(p) for _, p in named if p.requires_grad},
            ddp=weakref.ref(ddp),
            placed=[_place(p) if p.requires_grad else None for _, p in named],
        )
        model.weights = model.fingerprint()
        self._counts[model.group] += 1
        self._wraps += 1
        self._by_ddp[id(ddp)] = model
        self._places |= {id(p): (model, place) for place, (_, p) in enumerate(named)}
        self.models = [m for m in self.models if m.ddp() is not None] + [model]
        return model

    def of(self, ddp: DistributedDataParallel) -> Wrapped | None:
        """The model of a wrapper."""
        model = self._by_ddp.get(id(ddp))
        return model if model is not None and model.ddp() is ddp else None

    def find(self, parameter: torch.Tensor) -> tuple[Wrapped, int] | None:
        """The model that holds a parameter, and the parameter's place in it."""
        found = self._places.get(id(parameter))
        if found is None or found[0].parameters[found[1]]() is not parameter:
            return None
        return found

    def models_of(self, parameters: Iterable[torch.Tensor]) -> list[Wrapped]:
        """The models that hold any of these parameters."""
        found = {id(hit[0]): hit[0] for p in parameters if (hit := self.find(p)) is not None}
        return list(found.values())

    def stepped_by(self, optimizer: Optimizer) -> list[Wrapped]:
        """The models of which an optimizer holds parameters."""
        return self.held_by(optimizer).models

    def held_by(self, optimizer: Optimizer) -> Held:
        """What an optimizer holds; quick, as it is asked several times in each step."""
        groups = [group["params"] for group in optimizer.param_groups]
        key = (self._wraps, *(sum(map(id, group)) for group in groups))
        known = self._held.get(optimizer)
        if known is None or known.key != key:
            known = self._held[optimizer] = self._look_through(key, groups)
        return known

    def _look_through(self, key: tuple[int, ...], groups: Sequence[Sequence[Tensor]]) -> Held:
        held = Held(key)
        for parameter in (p for group in groups for p in group):
            hit = self.find(parameter)
            if hit is not None and hit[0] not in held.models:
                held.models.append(hit[0])
            if hit is not None and id(parameter) in hit[0].reduced:
                held.averaged[id(hit[0])].append(hit[1])
            else:
                held.others.append(weakref.ref(parameter))
        return held


def _place(parameter: torch.Tensor) -> object:
    return parameter.dtype, parameter.device


def _name(hook: object) -> str:
    return getattr(hook, "__qualname__", type(hook).__qualname__)
