"""Which way to hold a model fits, and what it costs: the ways of our templates, fastest first.

    find_way(models, ranks=8, batch_size=16, capacity=24e9).verdict

What a way costs in time is told beside DDP on a device that is large enough:
- FSDP sends 1.5 times as much: parameters once for the forward and once for the backward, and
  gradients once, where an all-reduce is two of these. Kept between forward and backward: as much
  as DDP. Rajbhandari et al. 2020, section 7.
- Checkpointing computes each block's forward twice: a third more, as a forward is a third of a step
  (T. Chen et al., "Training deep nets with sublinear memory cost", 2016).
- A pipeline idles for (stages - 1) micro-batches beside those that it works on (Huang et al. 2019).
- Tensor parallel adds four all-reduces a block, two forward and two backward, which nothing hides
  (M. Shoeybi et al., "Megatron-LM", 2019, section 3).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from ddp_helpers.arguments import check_positive
from ddp_helpers.scaling.memory import (
    CONTEXT,
    Holding,
    ModelMemory,
    RankMemory,
    memory_per_rank,
)
from ddp_helpers.scaling.records import Machine, Setup, Work
from ddp_helpers.scaling.step_time import predict

FITS, MAY_FIT, TOO_BIG = "fits", "may fit", "does not fit"
TEMPLATES = {  # which of our templates holds a model so: the words after `new train.py`
    ("ddp", False): "",
    ("zero1", False): " --recipe zero",
    ("fsdp", False): " --template starter_fsdp",
    ("fsdp", True): " --template starter_fsdp",
}
FORWARD_SHARE = 1 / 3  # of a step's computing
MOST_RANKS = 4096


@dataclass(frozen=True)
class Way:
    """One way to hold a model, and what a rank then holds."""

    how: Holding
    precision: str
    memory: RankMemory
    capacity: float

    @property
    def fits(self) -> str:
        return judge(self.memory, self.capacity)

    def commands(self, ranks_per_node: int | None = None) -> list[str]:
        """How to get the template and start it."""
        how = self.how
        words = f"--batch-size-per-rank {how.batch_size}"
        if how.micro_batches > 1:
            words += f" --global-batch-size {how.batch_size * how.micro_batches * how.ranks}"
        words += " --bf16" if self.precision != "float32" else ""
        words += " --recompute" if how.checkpointing else ""
        new = f"python -m ddp_helpers new train.py{TEMPLATES[how.strategy, how.checkpointing]}"
        nodes = -(-how.ranks // (ranks_per_node or how.ranks))
        if nodes == 1:
            return [new, f"torchrun --standalone --nproc_per_node={how.ranks} train.py {words}"]
        each = f"--nnodes {nodes} --nproc-per-node {ranks_per_node}"
        start = f"python -m ddp_helpers torchrun {each} --master-addr HOST"
        return [new, f"{start} train.py -- {words}"]


@dataclass(frozen=True)
class Found:
    """All ways that were looked at, in their order, and the first that fits."""

    ways: tuple[Way, ...]
    way: Way | None
    enough_ranks: int | None
    """If none fits: with so many ranks FSDP with checkpointing would, one sample at a time."""

    @property
    def verdict(self) -> str:
        """In a sentence."""
        first = self.ways[0]
        giga = first.capacity / 1e9
        needs = f"{first.memory.total.value / 1e9:.3g} GB"
        if self.way is first:
            return f"{first.fits} into {giga:g} GB under {first.how.in_words}: {needs} a rank"
        text = f"does not fit into {giga:g} GB under {first.how.in_words}: {needs} a rank"
        if self.way is not None:
            held = self.way.memory.total
            text += f"; {self.way.fits} with {self.way.how.in_words}: {held.value / 1e9:.3g} GB"
            text += f", up to {held.high / 1e9:.3g} GB if memory is fragmented"
        elif self.enough_ranks:
            text += f"; no way fits on {first.how.ranks}: FSDP over {self.enough_ranks} would"
        else:
            text += (
                "; no number of ranks helps, as one sample's activations or one block are too "
                "much: cut the layers themselves (tensor parallel), or take shorter samples"
            )
        return text


def judge(memory: RankMemory, capacity: float) -> str:
    """Whether it fits even if memory is fragmented, only if it is not, or not at all."""
    if memory.total.high + CONTEXT[1] <= capacity:
        return FITS
    return MAY_FIT if memory.total.value + CONTEXT[0] <= capacity else TOO_BIG


def find_way(
    models: Mapping[str, ModelMemory],
    *,
    ranks: int,
    batch_size: int,
    capacity: float,
    optimizer: str = "adam",
) -> Found:
    """The first way of our templates that fits; the batch of a step stays what it is.

    Args:
        models: the model as DDP and as FSDP compute on it: {"ddp": ..., "fsdp": ...}; they differ
            where they compute in 16 bits.
        capacity: bytes of a device.

    Raises:
        ValueError: a capacity of 0 or less, ranks or a batch below 1.
    """
    check_positive("capacity", capacity, "bytes")
    ways = []
    for how in _ways(ranks, batch_size, optimizer):
        model = models["fsdp" if how.strategy == "fsdp" else "ddp"]
        ways.append(Way(how, model.precision, memory_per_rank(model, how), capacity))
    good = [way for fits in (FITS, MAY_FIT) for way in ways if way.fits == fits]
    enough = None if good else _enough_ranks(models["fsdp"], ways[-1].how, capacity)
    return Found(tuple(ways), good[0] if good else None, enough)


def _ways(ranks: int, batch_size: int, optimizer: str) -> Iterator[Holding]:
    size, times = batch_size, 1
    while True:
        for strategy, checkpointing in TEMPLATES:
            if strategy == "ddp" or ranks > 1 or checkpointing:
                yield Holding(
                    strategy,
                    ranks,
                    size,
                    optimizer=optimizer,
                    checkpointing=checkpointing,
                    micro_batches=times,
                    foreach=strategy == "zero1",  # starter.py has AdamW(fused=True), not with it
                )
        if size == 1:
            return
        times, size = -(-batch_size // (size // 2)), size // 2


def _enough_ranks(model: ModelMemory, how: Holding, capacity: float) -> int | None:
    ranks = how.ranks
    while (ranks := ranks * 2) <= MOST_RANKS:
        held = memory_per_rank(model, dataclasses.replace(how, ranks=ranks))
        if judge(held, capacity) != TOO_BIG:
            return ranks
    return None


def step_cost(
    machine: Machine,
    work: Work,
    how: Holding,
    *,
    tensor_parallel: int = 1,
    blocks: int = 1,
    exchanged_bytes: float = 0.0,
) -> dict[str, float]:
    """Seconds of a step by what takes them: compute, recompute, waiting, bubble, tensor parallel.

    Args:
        work: of the whole model on one device; stages and tensor parallel divide it.
        blocks: of the whole model, for tensor parallel.
        exchanged_bytes: of one all-reduce of tensor parallel: a block's output for one micro-batch.
    """
    divided = how.stages * tensor_parallel
    mine = dataclasses.replace(
        work,
        parameters=max(1, work.parameters // divided),
        seconds_per_sample=work.seconds_per_sample / divided,
        seconds_per_batch=work.seconds_per_batch / divided,
    )
    times = {"fsdp": 1.5}.get(how.strategy, 1.0)
    sent = dataclasses.replace(mine, parameters=int(mine.parameters * times))
    setup = Setup(how.ranks, how.batch_size, accumulation_steps=how.micro_batches)
    if how.strategy.startswith("fsdp"):  # each micro-batch gathers anew
        setup = dataclasses.replace(setup, accumulation_steps=1)
    told = predict(machine, sent, setup)
    repeats = how.micro_batches if how.strategy.startswith("fsdp") else 1
    compute = float(told.compute) * repeats
    again = compute * FORWARD_SHARE if how.checkpointing else 0.0
    found = {"compute": compute, "recompute": again, "waiting": float(told.exposed) * repeats}
    found["stragglers"] = float(told.straggler) * repeats
    found["bubble"] = (compute + again) * (how.stages - 1) / how.micro_batches
    link = machine.link
    n = tensor_parallel
    once = 2 * (n - 1) * link.latency + 2 * (n - 1) / n * exchanged_bytes / link.bandwidth
    found["tensor parallel"] = 4 * blocks / how.stages * once * how.micro_batches
    return found
