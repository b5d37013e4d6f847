"""What `verify` asks of its ranks, what they leave, and what it says in the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

EQUAL, PARTS, NOT_COMPARED = "equal", "parts", "can't be compared"


class CannotCompare(Exception):
    """Says why a run can't be compared with another."""


@dataclass(frozen=True)
class Plan:
    """One run of the training function: which one it is, and what is changed from outside."""

    target: Callable | str
    """A function, `path/script.py:function`, or `path/script.py` to run it as a program."""
    args: tuple
    kwargs: Mapping[str, object]
    alone_kwargs: Mapping[str, object]
    """In place of those on one rank, such as its batch size."""
    alone_arguments: tuple[str, ...]
    """The same for a script: words after its own."""
    steps: int
    folder: str
    """Where the ranks leave what they saw, and a run on one rank finds what it shall repeat."""
    name: str
    replays: bool = False
    """Feed the batches of the n ranks, united."""
    door: bool = False
    """Put in the models what went in on the n ranks, united."""
    in_turn: bool = False
    """Not united: one rank's batch after the other's, where one process accumulates them."""
    follows: bool = False
    """Begin with the first weights of the n ranks."""
    perturbed: bool = False
    """Move weights by a rounding, and turn the order of each batch round."""
    in_order: bool = False
    """Leave each batch in its order, when perturbed."""
    keep_repeats: bool = False
    """Keep what a DistributedSampler has filled up with."""
    freeze_batchnorm: bool = False
    float64: bool = False


@dataclass
class Sampled:
    """Some elements of a tensor, always the same ones, and the length of the whole."""

    values: Tensor
    norm: float
    numel: int


@dataclass
class LossCall:
    """A call of one of torch's loss functions."""

    reduction: str
    count: float
    """What its mean divides by: targets that are not ignored, or a sum of class weights."""
    value: float | None


@dataclass
class Backward:
    """One `backward()`."""

    loss: float | None
    """What was given to it, where that is one number."""
    rows: int
    """That went into the models since the backward before it."""
    losses: list[LossCall]
    batch: int = 0
    """How many batches the DataLoaders had given."""


@dataclass
class Step:
    """What was seen up to, and in, one `optimizer.step()`."""

    optimizer: int
    backwards: list[Backward]
    weights: dict[str, Sampled]
    """Before it."""
    after_backward: dict[str, Sampled]
    gradients: dict[str, Sampled]
    """As the optimizer sees them."""
    options: list[dict[str, float]]
    """lr, weight_decay and so on, for each group of parameters."""
    clipped: list[float]
    """Lengths of the gradients when they were clipped."""
    updated: dict[str, Sampled] = field(default_factory=dict)
    """The weights after it."""
    repeats: int = 0
    """Samples left out because a DistributedSampler had filled up with them."""
    rows: int = 0
    inputs: float = 0.0
    """A sum over all inputs of the models."""
    input_size: float = 0.0
    """The same of their absolute values."""
    fed: int = 0
    """Samples that DataLoaders gave."""
    keys: list | None = None
    """Indices of its samples, where a DataLoader gave them."""


@dataclass
class RankRecord:
    """What one rank of one run saw."""

    rank: int
    steps: list[Step] = field(default_factory=list)
    modules: dict[str, str] = field(default_factory=dict)
    """For each parameter the kind of its module."""
    outside: set[str] = field(default_factory=set)
    """Parameters of models that are not inside DistributedDataParallel."""
    wrapped: bool = False
    world: int = 0
    """Of its process group when it stepped; 0 without one."""
    eps: float = 0.0
    """A rounding in the coarsest arithmetic that was used."""
    coarse: str = ""
    """What that is."""
    batchnorm: list[str] = field(default_factory=list)
    dropout: set[str] = field(default_factory=set)
    frozen: dict[str, float] = field(default_factory=dict)
    """Lengths of weights that are used and not trained."""
    cut: list[str] = field(default_factory=list)
    """Collectives that got a tensor with a gradient to carry, and carry none."""
    hooks: list[str] = field(default_factory=list)
    """Comm hooks of DDP models."""
    draws: list[str] = field(default_factory=list)
    """Where random numbers were drawn between a batch and optimizer.step()."""
    trouble: str = ""
    """Why this run can't be compared."""
    own_batches: bool = False
    """A batch sampler of the reader's own deals the batches."""
    loaders: bool = False
    other_samples: list[str] = field(default_factory=list)
    """Samples that are others on another rank, in words; the first step that had one, first."""
    other_samples_at: int = 0
    last_batch: int = 0
    """Number of the epoch's last batch, if that is another one than the others and was not seen."""
    seconds: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """What `verify` found. `print(verdict)` tells it in words."""

    outcome: str
    """"equal", "parts" or "can't be compared"."""
    ranks: int
    steps: int
    """That were compared."""
    step: int | None = None
    """The first one that parts, from 1."""
    stage: str = ""
    """What parts there: samples, weights before the step, gradients, or updates."""
    parameter: str | None = None
    module: str = ""
    """The kind of the module that has the parameter."""
    factor: float | None = None
    """How many times one process's value the ranks' value is, where that is the same all over."""
    cause: str = ""
    """A short name of the cause, or an empty text."""
    why: str = ""
    way_out: str = ""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    text: str = ""

    @property
    def equal(self) -> bool:
        """True if the ranks did what one process does."""
        return self.outcome == EQUAL

    @property
    def exit_code(self) -> int:
        """Of the command: 0 equal, 1 parts, 2 can't be compared."""
        return {EQUAL: 0, PARTS: 1}.get(self.outcome, 2)

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__
