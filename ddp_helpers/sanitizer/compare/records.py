"""What ranks tell one another of their calls and weights; each record is left for all to read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from ddp_helpers.sanitizer.compare.callsite import Place
from ddp_helpers.sanitizer.compare.graph import Term


class Stamped(Protocol):
    """A record that says where in the code, and after how many steps, it was made."""

    @property
    def stack(self) -> tuple[Place, ...]:
        """The reader's own lines, outermost first."""

    @property
    def step(self) -> int:
        """Optimizer steps that the process had done."""


# ---- changes of weights


@dataclass(frozen=True)
class Edit:
    """A change of weights that the program made by name: what it called, and where."""

    what: str
    place: Place


@dataclass(frozen=True)
class Edits:
    """Changes of one model's weights since the last step, by something that is no optimizer."""

    edited: tuple[int, ...] = ()
    """Places of the parameters that changed, not of all where they are many."""
    edit: Edit | None = None


# ---- calls


@dataclass(frozen=True)
class TensorKind:
    """What ranks must agree on of a tensor that they bring to a collective."""

    dtype: str
    """Such as float32."""
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> TensorKind:
        """Of one tensor."""
        return cls(dtype_name(tensor), tuple(tensor.shape))


@dataclass(frozen=True)
class ParameterKind:
    """One parameter of a model that is wrapped."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    trainable: bool


@dataclass(frozen=True)
class ModelState:
    """What must be alike on all ranks before a backward of one model."""

    steps: int
    last: int
    """The brief of the last step's record, 0 if that was not looked at."""
    weights: str
    """Their fingerprint, empty where ranks drift apart on purpose."""
    edits: Edits = Edits()
    stepping: str = ""
    """The optimizer within whose step this is: it calls a closure."""
    training: bool = True
    """The module is in training mode."""
    norms: tuple[float, ...] = ()
    """Of some of this rank's own gradients in the backward before, as they were before DDP averaged
    them."""


@dataclass(frozen=True)
class BackwardRecord:
    """A backward in which DDP averages gradients."""

    group: str
    models: dict[int, ModelState]
    """By their number in the group."""
    terms: tuple[Term, ...] | None
    """What the loss is built of; None where a hook of the program's own does the averaging."""
    finite: bool = True
    """The loss is."""


@dataclass(frozen=True)
class Doing:
    """How far a rank's training is, as far as that was seen."""

    passes: int = 0
    """Passes over a loader in which it went back; 0 where there is no loader."""
    batches: int = 0
    """Of the latest of them."""
    complete: bool = False
    """That one was gone through to its end."""
    idle: int = 0
    """Forwards of wrapped models, for training, that no backward followed."""
    evaluates: bool = False
    """Each wrapped model is in evaluation mode."""


@dataclass(frozen=True)
class CallBefore:
    """The call that a rank made before, in the same group."""

    op: str
    stack: tuple[Place, ...]


@dataclass(frozen=True)
class CallRecord:
    """One call of a group."""

    op: str
    """A method of ProcessGroup, or a name of ours for what DDP does."""
    called: str
    """The function as the reader knows it."""
    stack: tuple[Place, ...]
    step: int
    reduce: str | None = None
    root: int | None = None
    tensors: tuple[TensorKind, ...] = ()
    ranks: tuple[int, ...] | None = None
    """That new_group asks for."""
    model: int | None = None
    """Its number, for what DDP does outside a backward."""
    mode: str | None = None
    """`training` or `evaluation`."""
    signature: tuple[ParameterKind, ...] = ()
    """Of the model that is wrapped."""
    backward: BackwardRecord | None = None
    before: CallBefore | None = None
    doing: Doing = Doing()


@dataclass(frozen=True)
class WaitRecord:
    """What a rank has been waiting for, for a while."""

    ranks: tuple[int, ...]
    """For these."""
    group: str
    number: int
    call: CallRecord


# ---- weights


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step of one wrapped model."""

    optimizer: str
    which: tuple[int, ...]
    """Places of the parameters that it steps and that DDP averages."""
    grads: str
    """The fingerprint of their gradients, as the optimizer found them."""
    settings: tuple[dict[str, object], ...]
    """The optimizer's numbers, for each parameter group."""
    synced: int
    """Backward passes so far that averaged."""
    since: int
    """Those since the step before."""
    elsewhere: int
    """Backward passes since then that went past the wrapper."""
    in_no_sync: bool
    edits: Edits
    stack: tuple[Place, ...]
    step: int
    after: str = ""
    """The fingerprint of the weights that the step made."""

    @property
    def alike(self) -> object:
        """What must be the same on all ranks."""
        return self.grads, self.after, self.settings, self.synced


@dataclass(frozen=True)
class PassEnd:
    """The weights at the end of a pass over the data."""

    weights: str
    steps: int
    edits: Edits
    stack: tuple[Place, ...]
    step: int

    @property
    def alike(self) -> object:
        """What must be the same on all ranks."""
        return self.weights


@dataclass(frozen=True)
class StepCount:
    """How often one model was stepped in the whole run."""

    steps: int
    synced: int
    step: int
    stack: tuple[Place, ...] = ()

    @property
    def alike(self) -> object:
        """What must be the same on all ranks."""
        return self.steps, self.synced


def dtype_name(tensor: torch.Tensor) -> str:
    """`float32`."""
    return str(tensor.dtype).removeprefix("torch.")
