"""What a rank holds in memory: parameters, gradients, optimizer, activations. Needs no torch.

    model = transformer(layers=24, width=2048, heads=16, tokens=2048, vocabulary=50257)
    memory_per_rank(model, Holding("fsdp", ranks=8, batch_size=4)).total       # bytes, a Range

`memory_trace.py` makes the same record of a model of your own, exactly. Formulas, by place:

- Adam keeps two averages of each value: S. Rajbhandari et al., "ZeRO: memory optimizations toward
  training trillion parameter models", SC 2020, section 3.1; stages 1 to 3: section 5.
- DDP's buckets are a second copy of the gradients unless gradient_as_bucket_view=True: torch's
  documentation of DistributedDataParallel.
- FSDP cuts each parameter along its first dimension, into equal parts with padding: torch's
  documentation of fully_shard. Between its forward and its backward a block is given back, or kept.
- Activations of a transformer and what checkpointing leaves of them: V. Korthikanti et al.,
  "Reducing activation recomputation in large transformer models", MLSys 2023, equations 1 and 2.
- Micro-batches in flight: all of them in GPipe (Y. Huang et al., NeurIPS 2019); in 1F1B as many as
  there are stages from here to the end (D. Narayanan et al., SC 2021, section 2.2).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ddp_helpers.arguments import check_least
from ddp_helpers.scaling.records import Range

STRATEGIES = {
    "ddp": "DistributedDataParallel",
    "zero1": "DDP with ZeroRedundancyOptimizer",
    "zero2": "ZeRO stage 2: gradients dealt out, too",
    "fsdp_kept": "fully_shard(..., reshard_after_forward=False)",
    "fsdp": "fully_shard",
}
"""From what holds the most to what holds the least."""
AVERAGES = {"sgd": 0, "momentum": 1, "adam": 2}
"""Values that an optimizer keeps for each value of a parameter."""
PRECISIONS = ("float32", "autocast", "mixed", "bfloat16")
SCHEDULES = ("gpipe", "1f1b")
STEP_BYTES = 4  # Adam's count of steps, a float32 for each parameter
FRAGMENTED = 0.3
"""Share that the allocator may fail to hand out: "over 30 % of memory still available" where it
ran out, in extreme cases; Rajbhandari et al. 2020, section 3.2."""
CONTEXT = (0.5e9, 1.5e9)
"""Bytes of a GPU that are no tensors: the CUDA context and its kernels (1,343 MB on a V100 in
Hugging Face's "Model training anatomy"), and NCCL's buffers."""


@dataclass(frozen=True)
class Bytes:
    """A size that grows with the batch: fixed + batch * each."""

    fixed: float = 0.0
    each: float = 0.0

    def __call__(self, batch: int) -> float:
        return self.fixed + self.each * batch

    def __add__(self, other: Bytes) -> Bytes:
        return Bytes(self.fixed + other.fixed, self.each + other.each)


@dataclass(frozen=True)
class Part:
    """A piece of a model, in the order of use: a block, or what lies before, between or after."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    """Of its trained parameters, on this rank where tensor parallel has cut them."""
    frozen: float = 0.0
    """Bytes of what is not trained: buffers, frozen parameters."""
    kept: Bytes = Bytes()
    """Saved by its forward for its backward."""
    inputs: Bytes = Bytes()
    """What a block is given, unless another part keeps it anyway: all that checkpointing keeps."""
    inside: Bytes = Bytes()
    """`kept` without the inputs: what checkpointing computes anew in the backward."""
    output: Bytes = Bytes()
    """What a stage of a pipeline that ends here holds until its backward, beside `kept`."""
    block: bool = False
    """One of the repeated blocks: FSDP gathers it by itself, checkpointing wraps it."""

    @property
    def values(self) -> int:
        return sum(map(math.prod, self.shapes))


@dataclass(frozen=True)
class ModelMemory:
    """What is known of a model before it is trained; `transformer` and `trace_model` make it."""

    name: str
    parts: tuple[Part, ...]
    value_bytes: int = 4
    """Of a parameter as the optimizer sees it."""
    gathered_bytes: int = 4
    """Of a parameter while FSDP has it gathered: its MixedPrecisionPolicy(param_dtype=...)."""
    working: Bytes = Bytes()
    """Most that the backward needs at once beside what was kept and the gradients."""
    precision: str = "float32"
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not any(part.shapes for part in self.parts):
            raise ValueError(f"{self.name}: no trained parameters: there is nothing to plan for")

    @property
    def parameters(self) -> int:
        """Values that training changes."""
        return sum(part.values for part in self.parts)


@dataclass(frozen=True)
class Holding:
    """How a model is held: who keeps which share of it, and how much of a batch at a time."""

    strategy: str = "ddp"
    """One of STRATEGIES."""
    ranks: int = 1
    """Data-parallel ranks: those over which optimizer, gradients and parameters are dealt out."""
    batch_size: int = 32
    """Of one forward on one rank: the micro-batch."""
    optimizer: str = "adam"
    checkpointing: bool = False
    stages: int = 1
    """Of a pipeline."""
    micro_batches: int = 1
    """Of one optimizer step: in a pipeline several are in flight, else gradients accumulate."""
    schedule: str = "1f1b"
    bucket_view: bool = False
    """DDP's gradient_as_bucket_view."""
    foreach: bool = True
    """The optimizer works on all parameters at once, as torch's do on a GPU: about the size of
    the parameters more at its peak (torch.optim, `foreach`). On a CPU, or fused, it does not."""

    def __post_init__(self) -> None:
        for name, known in (
            ("strategy", STRATEGIES),
            ("optimizer", AVERAGES),
            ("schedule", SCHEDULES),
        ):
            if getattr(self, name) not in known:
                given, names = getattr(self, name), ", ".join(known)
                raise ValueError(f"{name}={given!r}: expected one of {names}")
        for name in ("ranks", "batch_size", "stages", "micro_batches"):
            check_least(name, getattr(self, name), 1)

    @property
    def in_words(self) -> str:
        """For a verdict: "FSDP over 8, activations computed anew"."""
        words = {"ddp": "DDP", "zero1": "ZeRO-1", "zero2": "ZeRO-2", "fsdp": "FSDP"}
        words["fsdp_kept"] = "FSDP without resharding"
        text = words[self.strategy] + (f" over {self.ranks}" if self.ranks > 1 else "")
        text += f", {self.stages} pipeline stages" if self.stages > 1 else ""
        text += ", activation checkpointing" if self.checkpointing else ""
        batch = f"{self.micro_batches} x " if self.micro_batches > 1 else ""
        return f"{text}, {batch}{self.batch_size} sample{'s' * (self.batch_size > 1)} a rank"


@dataclass(frozen=True)
class RankMemory:
    """Bytes that one rank holds, part by part; of the rank that holds the most."""

    parameters: int
    gradients: int
    optimizer: int
    frozen: float = 0.0
    buckets: float = 0.0
    """DDP's copy of the gradients."""
    activations: float = 0.0
    """Kept at the end of the forward, or when the first backward starts."""
    gathered: float = 0.0
    """FSDP's whole parameters and gradients of the blocks that are in use."""
    recomputed: float = 0.0
    """Activations of the one block that checkpointing computes anew."""
    working: float = 0.0
    """What operations of the backward need beside that."""
    optimizing: float = 0.0
    """What the optimizer's step needs beside its state."""
    early: float = 0.0
    """Gradients that are there when activations are at their most: of an earlier micro-batch, or
    because DDP's buckets hold them all the time."""
    total: Range = field(default=Range(0.0, 0.0, 0.0))
    """At the peak: as tensors (low and value), and with all that fragmentation may take (high)."""

    @property
    def rows(self) -> dict[str, float]:
        """The parts by name, for tables and pictures; what is nothing is left out."""
        names = "parameters gradients optimizer frozen buckets gathered activations recomputed"
        found = {name: float(getattr(self, name)) for name in f"{names} working".split()}
        return {name: value for name, value in found.items() if value}


def memory_per_rank(model: ModelMemory, how: Holding, stage: int | None = None) -> RankMemory:
    """Bytes that a rank holds at the peak of a step; of the pipeline's stage that holds the most.

    Parameters, gradients and optimizer are those of the rank with the largest share.

    Args:
        stage: of the pipeline, from 0; None: the one that holds the most.

    Raises:
        ValueError: more stages than parts, or no such stage.
    """
    cut = split(model.parts, how.stages)
    if stage is not None and not 0 <= stage < how.stages:
        raise ValueError(f"stage={stage}: expected 0 to {how.stages - 1}")
    asked = range(how.stages) if stage is None else [stage]
    found = [_one_stage(model, how, cut[at], at) for at in asked]
    return max(found, key=lambda rank: rank.total.value)


def split(parts: Sequence[Part], stages: int) -> list[tuple[Part, ...]]:
    """The parts of each stage of a pipeline: contiguous, with as many blocks each as can be.

    What lies before the first block goes to the first stage, what lies after the last to the last.

    Raises:
        ValueError: fewer blocks than stages.
    """
    blocks = [at for at, part in enumerate(parts) if part.block]
    if stages > max(1, len(blocks)):
        raise ValueError(
            f"stages={stages}: the model has {len(blocks)} blocks, and a stage needs one or more"
        )
    firsts = [blocks[-(-len(blocks) * at // stages)] for at in range(1, stages)]
    ends = [0, *firsts, len(parts)]
    return [tuple(parts[a:b]) for a, b in itertools.pairwise(ends)]


def greedy_shares(sizes: Iterable[int], ranks: int) -> list[list[int]]:
    """What ZeroRedundancyOptimizer gives each rank: the largest first, to whom has least.

    As torch's `_partition_parameters` does.
    """
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for size in sorted(sizes, reverse=True):
        min(shares, key=sum).append(size)
    return shares


def largest_share(shapes: Iterable[tuple[int, ...]], ranks: int) -> list[int]:
    """Values of each parameter that rank 0 of FSDP holds: it has the first, the longest piece."""
    return [-(-shape[0] // ranks) * math.prod(shape[1:]) for shape in shapes if shape]


def _one_stage(model: ModelMemory, how: Holding, parts: tuple[Part, ...], stage: int) -> RankMemory:
    shapes = [shape for part in parts for shape in part.shapes]
    sizes = [math.prod(shape) for shape in shapes]
    sharded = how.strategy.startswith("fsdp")
    mine = largest_share(shapes, how.ranks) if sharded else sizes
    stepped = mine
    if how.strategy in ("zero1", "zero2"):
        stepped = max(greedy_shares(sizes, how.ranks), key=sum)
    gradients = stepped if how.strategy == "zero2" else mine
    kept, recomputed = _activations(parts, how, stage)
    width = model.value_bytes
    found = RankMemory(
        parameters=sum(mine) * width,
        gradients=sum(gradients) * width,
        optimizer=_state_bytes(stepped, how.optimizer, width),
        frozen=sum(part.frozen for part in parts),
        buckets=0.0 if sharded or how.ranks == 1 or how.bucket_view else sum(sizes) * width,
        activations=kept,
        gathered=_gathered(parts, how, model) if sharded else 0.0,
        recomputed=recomputed,
        working=max(0.0, model.working(how.batch_size)),
        optimizing=_optimizing(stepped, how, width),
    )
    found = dataclasses.replace(found, early=_early(found, how))
    return dataclasses.replace(found, total=_total(found))


def _state_bytes(sizes: Sequence[int], optimizer: str, width: int) -> int:
    steps = STEP_BYTES * len(sizes) if optimizer == "adam" else 0
    return AVERAGES[optimizer] * sum(sizes) * width + steps


def _optimizing(sizes: Sequence[int], how: Holding, width: int) -> float:
    """The step's own needs: of all parameters at once, or of the biggest."""
    if how.optimizer == "sgd" or not sizes:
        return 0.0
    return float((sum(sizes) if how.foreach else max(sizes)) * width)


def _activations(parts: Sequence[Part], how: Holding, stage: int) -> tuple[float, float]:
    """(bytes kept for the backward by all micro-batches in flight, bytes computed anew)."""
    size, anew = how.batch_size, 0.0
    kept = Bytes()
    for part in parts:
        again = how.checkpointing and part.block
        kept += part.inputs if again else part.kept
        anew = max(anew, part.inside(size)) if again else anew
    if how.stages == 1:
        return kept(size), anew
    flying = how.micro_batches if how.schedule == "gpipe" else how.stages - stage
    if stage < how.stages - 1:
        kept += parts[-1].output
    return min(flying, how.micro_batches) * kept(size), anew


def _gathered(parts: Sequence[Part], how: Holding, model: ModelMemory) -> float:
    """Whole parameters of FSDP at the peak, and the whole gradients of the block in use.

    What belongs to no block stays gathered until its backward; of the blocks, with resharding, the
    one in use and the next one, which is fetched ahead.
    """
    if how.ranks == 1:
        return 0.0
    blocks = sorted((part.values for part in parts if part.block), reverse=True)
    rest = sum(part.values for part in parts if not part.block)
    held = rest + (sum(blocks) if how.strategy == "fsdp_kept" else sum(blocks[:2]))
    return float((held + max(blocks, default=rest)) * model.gathered_bytes)


def _early(rank: RankMemory, how: Holding) -> float:
    """In GPipe gradients come as the first micro-batch's activations go."""
    if how.bucket_view and how.strategy == "ddp":
        return rank.gradients
    if how.micro_batches == 1:
        return 0.0
    if how.stages > 1 and how.schedule == "gpipe":
        return max(0.0, rank.gradients - rank.activations / how.micro_batches)
    return rank.gradients


def _total(rank: RankMemory) -> Range:
    """Peak of a step: while the backward starts, or while the optimizer works."""
    always = rank.parameters + rank.optimizer + rank.frozen + rank.buckets
    backward = rank.gathered + rank.activations + rank.recomputed + rank.working + rank.early
    value = always + max(backward, rank.gradients + rank.optimizing)
    return Range(value, value, value / (1 - FRAGMENTED))


def transformer(
    layers: int,
    width: int,
    heads: int,
    tokens: int,
    vocabulary: int = 0,
    *,
    precision: str = "autocast",
    tensor_parallel: int = 1,
    flash: bool = True,
    name: str = "transformer",
) -> ModelMemory:
    """A GPT-like model by Korthikanti et al. 2023, equations 1 and 2, per sample of `tokens`.

    A block keeps, in 16 bits, 34 bytes for each of tokens x width, and 5 for each of heads x tokens
    x tokens, if attention is not computed in pieces (`flash`). Of the 34, 10 lie outside the layers
    that tensor parallel cuts. In float32 the sizes double, but for dropout's masks (one byte).

    Raises:
        ValueError: sizes below 1, or heads and width that don't divide.
    """
    sizes = {"layers": layers, "width": width, "heads": heads, "tokens": tokens}
    for what, value in (sizes | {"tensor_parallel": tensor_parallel}).items():
        check_least(what, value, 1)
    if precision not in PRECISIONS:
        raise ValueError(f"precision={precision!r}: expected one of {', '.join(PRECISIONS)}")
    if width % heads or heads % tensor_parallel:
        raise ValueError(
            f"width={width}, heads={heads}, tensor_parallel={tensor_parallel}: expected heads that "
            "divide the width, and are divided by tensor_parallel"
        )
    block = _transformer_block(width, heads, tokens, precision, tensor_parallel, flash)
    words = -(-vocabulary // tensor_parallel)
    before = [Part("embedding", ((words, width), (tokens, width)))] if vocabulary else []
    blocks = [dataclasses.replace(block, name=f"block {at}") for at in range(layers)]
    # the loss keeps its softmax in float32; its gradient, of the same size, is the most that the
    # backward needs beside it, or a block's widest gradients are
    logits = 4.0 * tokens * words
    each = 4 if precision == "float32" else 2
    widest = 2.0 * each * tokens * 4 * width / tensor_parallel
    after = Part("last norm and words", ((width,), (width,)), kept=Bytes(each=logits))
    return ModelMemory(
        name,
        (*before, *blocks, after),
        value_bytes=2 if precision == "bfloat16" else 4,
        gathered_bytes=2 if precision in ("bfloat16", "mixed") else 4,
        working=Bytes(each=max(2 * logits, widest)),
        precision=precision,
        notes=(
            "activations by Korthikanti et al. 2023, with all norms in 16 bits unless in float32",
            "the embedding is used for the output, too, as GPT-2 does",
        ),
    )


def _transformer_block(
    width: int, heads: int, tokens: int, precision: str, parallel: int, flash: bool
) -> Part:
    """Attention (11 bytes of the 34), two norms (4) and the MLP (19), each with its parameters."""
    area, wide = tokens * width, width // parallel
    full = precision == "float32"  # all sizes double, but for the byte of a dropout's mask
    outside, cut, squares = (18, 48, 9) if full else (10, 24, 5)
    scores = 0 if flash else squares * heads * tokens * tokens
    kept = outside * area + (cut * area + scores) / parallel
    given = (4.0 if full else 2.0) * area
    shapes: list[tuple[int, ...]] = [(width,)] * 4  # two norms
    shapes += [(3 * wide, width), (3 * wide,), (width, wide), (width,)]
    shapes += [(4 * wide, width), (4 * wide,), (width, 4 * wide), (width,)]
    if precision == "autocast":  # copies of the matrices in 16 bits live until the backward
        copies = 2.0 * sum(math.prod(shape) for shape in shapes if len(shape) == 2)
    else:
        copies = 0.0
    return Part(
        "block",
        tuple(shapes),
        kept=Bytes(copies, kept),
        inputs=Bytes(each=given),
        inside=Bytes(copies, kept - given),
        output=Bytes(each=given),
        block=True,
    )
