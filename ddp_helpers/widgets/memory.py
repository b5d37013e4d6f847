"""What a rank holds, part by part; which GPU that fits on; and the time that holding less costs.

A GPT-like model by the formulas of `scaling/memory.py`. The time is that of `scaling/step_time.py`
on servers of 8 GPUs with NVLink 4 and an InfiniBand card each; a sample computes 6 operations for
each parameter and token (J. Kaplan et al., "Scaling laws for neural language models", 2020), at
40 % of what an A100 is rated at: 312 Tflop/s in 16 bits, 156 in TF32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddp_helpers.plots.colors import BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILLION
from ddp_helpers.plots.scene import PAGE, Scene, ticks
from ddp_helpers.scaling.memory import (
    AVERAGES,
    PRECISIONS,
    Holding,
    ModelMemory,
    RankMemory,
    memory_per_rank,
    transformer,
)
from ddp_helpers.scaling.memory_ways import FITS, MAY_FIT, judge, step_cost
from ddp_helpers.scaling.rated import LINKS, described, with_cards
from ddp_helpers.scaling.records import Numbers, Work
from ddp_helpers.widgets.controls import Choice, Steps, Tick

if TYPE_CHECKING:
    from ddp_helpers.widgets.base import Explorable, Picture

MODELS = {  # layers, width, heads, tokens of a sample, vocabulary
    "0.12 billion": (12, 768, 12, 1024, 50257),
    "1.3 billion": (24, 2048, 16, 2048, 50257),
    "6.7 billion": (32, 4096, 32, 2048, 50257),
    "65 billion": (80, 8192, 64, 2048, 32000),
}
WAYS = {
    "DDP": "ddp",
    "ZeRO-1": "zero1",
    "ZeRO-2": "zero2",
    "FSDP, not resharded": "fsdp_kept",
    "FSDP": "fsdp",
}
CAPACITIES = {"RTX 4090": 24, "A100 40 GB": 40, "H100": 80, "H200": 141}
GPUS_OF_A_SERVER = 8
OPERATIONS, REACHED = {"float32": 156e12}, 0.4
SHORT_OPERATIONS = 312e12
COLORS = {
    "parameters": BLUE,
    "gradients": ORANGE,
    "optimizer": GREEN,
    "buckets": GREY,
    "gathered": SKY,
    "activations": VERMILLION,
    "recomputed": PURPLE,
    "working": GREY,
}
HATCHED = ("recomputed", "working")
LEFT, TOP, HIGH, COLUMN = 20, 54, 46, 222  # a column of the legends holds one entry
WIDE = PAGE - 2 * LEFT


def hold(
    model: str,
    way: str,
    ranks: int,
    precision: str,
    optimizer: str,
    batch: int,
    micro: int,
    checkpointing: bool,
    tensor: int,
    stages: int,
) -> tuple[ModelMemory, Holding, RankMemory]:
    """The model as a rank of tensor parallel has it, how it is held, and what a rank holds.

    Raises:
        ValueError: mixed precision without FSDP, or what `transformer` and `Holding` refuse.
    """
    strategy = WAYS[way]
    if precision == "mixed" and not strategy.startswith("fsdp"):
        raise ValueError(f"precision mixed with {way}: it is FSDP's; take autocast")
    layers, width, heads, tokens, words = MODELS[model]
    held = transformer(
        layers, width, heads, tokens, words, precision=precision, tensor_parallel=tensor, name=model
    )
    how = Holding(
        strategy,
        ranks,
        batch,
        optimizer=optimizer,
        checkpointing=checkpointing,
        stages=stages,
        micro_batches=micro,
        foreach=strategy.startswith("zero"),
    )
    return held, how, memory_per_rank(held, how)


def cost(model: str, how: Holding, precision: str, tensor: int) -> dict[str, float]:
    """Seconds of a step, by what takes them."""
    layers, width, _, tokens, _ = MODELS[model]
    whole = _whole(model).parameters
    rate = REACHED * OPERATIONS.get(precision, SHORT_OPERATIONS)
    work = Work(model, whole, seconds_per_sample=6.0 * whole * tokens / rate)
    local = max(1, GPUS_OF_A_SERVER // (tensor * how.stages))
    cards = with_cards(LINKS["infiniband"], local)
    machine = described("servers of 8", LINKS["nvlink4"], cards, local)
    each = 4 if precision == "float32" else 2
    exchanged = float(how.batch_size * tokens * width * each)
    return step_cost(
        machine,
        work,
        how,
        tensor_parallel=tensor,
        blocks=layers,
        exchanged_bytes=exchanged if tensor > 1 else 0.0,
    )


def fitting(memory: RankMemory) -> dict[str, str]:
    """For each GPU whether it fits."""
    return {name: judge(memory, giga * 1e9) for name, giga in CAPACITIES.items()}


def draw(
    model: str,
    way: str,
    ranks: int,
    precision: str,
    optimizer: str,
    batch: int,
    micro: int,
    checkpointing: bool,
    tensor: int,
    stages: int,
) -> Picture:
    """A bar of what a rank holds, with a mark for each GPU; below, a bar of a step's time."""
    from ddp_helpers.widgets.base import Picture

    given = (model, way, ranks, precision, optimizer, batch, micro, checkpointing, tensor, stages)
    _, how, memory = hold(*given)
    seconds = cost(model, how, precision, tensor)
    scene = Scene(PAGE, TOP + HIGH + 250)
    _bytes(scene, memory)
    _time(scene, seconds, TOP + HIGH + 150)
    return Picture(scene, _in_words(model, how, tensor, memory, seconds))


def _whole(model: str) -> ModelMemory:
    return transformer(*MODELS[model])


def _bytes(scene: Scene, memory: RankMemory) -> None:
    most = max(float(memory.total.high), 1.05e9 * max(CAPACITIES.values()))
    place = lambda size: LEFT + WIDE * size / most
    scene.text(LEFT, 14, "GB of a rank at the peak of a step", anchor="start", bold=True, size=13)
    gpus = f"dashed: what {', '.join(CAPACITIES)} have"
    scene.text(LEFT + WIDE, 14, gpus, anchor="end")
    at = 0.0
    for name, size in _stack(memory).items():
        hatch = name in ("recomputed", "working")
        scene.box(
            place(at), TOP, WIDE * size / most, HIGH, fill=COLORS[name], hatch=hatch, line=0.5
        )
        at += size
    scene.box(place(at), TOP, place(memory.total.high) - place(at), HIGH, line=1.0)
    for tick in ticks(most / 1e9):
        scene.text(place(1e9 * tick), TOP + HIGH + 12, f"{tick:,.10g}")
    for giga in CAPACITIES.values():
        x = place(1e9 * giga)
        scene.line(x, TOP - 8, x, TOP + HIGH + 4, width=2.0, dashed=True)
        scene.text(x, TOP - 16, f"{giga}", bold=True)
    _legend(scene, memory, TOP + HIGH + 40)


def _stack(memory: RankMemory) -> dict[str, float]:
    """The parts that are there at the peak; of backward and optimizer the larger counts."""
    rows = {name: size for name, size in memory.rows.items() if name != "frozen"}
    always = sum(rows.get(name, 0.0) for name in ("parameters", "optimizer", "buckets"))
    left = float(memory.total.value) - always
    if left <= memory.gradients + memory.optimizing:  # the optimizer's step is the peak
        rows = {name: rows.get(name, 0.0) for name in ("parameters", "gradients", "optimizer")}
        rows |= {"buckets": memory.buckets, "working": memory.optimizing}
        return rows
    return rows | {"gradients": memory.early}


def _legend(scene: Scene, memory: RankMemory, top: float) -> None:
    drawn = _stack(memory)
    sizes = memory.rows | {"working": drawn.get("working", 0.0)}
    rows = {name: size for name, size in sizes.items() if name in COLORS and size}
    for at, (name, size) in enumerate(rows.items()):
        x, y = LEFT + COLUMN * (at % 3), top + 24 * (at // 3)
        scene.box(x, y - 7, 14, 14, fill=COLORS[name], hatch=name in HATCHED)
        if (part := drawn.get(name, 0.0)) < size:
            scene.text(x + 20, y, f"{name}: {_giga(part)} of {_giga(size)} GB", anchor="start")
        else:
            scene.text(x + 20, y, f"{name}: {_giga(size)} GB", anchor="start")
    x, y = LEFT, top + 24 * (-(-len(rows) // 3))
    scene.box(x, y - 7, 14, 14)
    words = 'what gaps between tensors may waste ("0 of": it is there before or after the peak)'
    scene.text(x + 20, y, words, anchor="start")


def _time(scene: Scene, seconds: dict[str, float], top: float) -> None:
    whole = sum(seconds.values())
    scene.text(LEFT, top, f"a step: {_seconds(whole)}", anchor="start", bold=True, size=13)
    at = float(LEFT)
    colors = dict(zip(seconds, (BLUE, PURPLE, VERMILLION, ORANGE, GREY, SKY), strict=True))
    for name, each in seconds.items():
        wide = WIDE * each / whole
        hatch = name not in ("compute", "recompute")
        scene.box(at, top + 14, wide, 22, fill=colors[name], hatch=hatch, line=0.5)
        at += wide
    shown = [(name, each) for name, each in seconds.items() if each > 0]
    for number, (name, each) in enumerate(shown):
        x, y = LEFT + COLUMN * (number % 3), top + 54 + 24 * (number // 3)
        hatch = name not in ("compute", "recompute")
        scene.box(x, y - 7, 14, 14, fill=colors[name], hatch=hatch)
        scene.text(x + 20, y, f"{name}: {each / whole:.0%}", anchor="start")


def _in_words(
    model: str, how: Holding, tensor: int, memory: RankMemory, seconds: dict[str, float]
) -> str:
    gpus = how.ranks * how.stages * tensor
    total = memory.total
    fits = fitting(memory)
    sure = [name for name, found in fits.items() if found == FITS]
    perhaps = [name for name, found in fits.items() if found == MAY_FIT]
    cut = f", tensor parallel over {tensor}" if tensor > 1 else ""
    text = (
        f"{model} parameters under {how.in_words}{cut}: a rank holds {_giga(total.value)} GB, up "
        f"to {_giga(total.high)} GB if memory is fragmented. "
    )
    text += f"It fits on: {', '.join(sure)}. " if sure else "It surely fits on none of the four. "
    text += f"It may fit on: {', '.join(perhaps)}. " if perhaps else ""
    whole = sum(seconds.values())
    samples = how.ranks * how.batch_size * how.micro_batches
    return text + (
        f"A step of {samples:,} samples on {gpus:,} GPU{'s' * (gpus > 1)} takes "
        f"{_seconds(whole)}, {1 - seconds['compute'] / whole:.0%} of it not computing."
    )


def _giga(size: Numbers) -> str:
    return f"{float(size) / 1e9:,.3g}" if size < 1e12 else f"{float(size) / 1e9:,.0f}"


def _seconds(seconds: float) -> str:
    return f"{seconds:.3g} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def explorable(
    model: str = "1.3 billion",
    way: str = "DDP",
    ranks: int = 8,
    precision: str = "autocast",
    optimizer: str = "adam",
    batch: int = 4,
    micro: int = 1,
    checkpointing: bool = False,
    tensor: int = 1,
    stages: int = 1,
) -> Explorable:
    """Choose how a model is held, and see what each rank holds, and what that costs."""
    from ddp_helpers.widgets.base import Explorable

    few, many = [1, 2, 4, 8], [1, 2, 4, 8, 16, 32]
    controls = {
        "model": Choice("parameters", model, list(MODELS)),
        "way": Choice("held by", way, list(WAYS)),
        "ranks": Steps("data-parallel ranks", ranks, [*many, 64, 128, 256, 512]),
        "precision": Choice("precision", precision, PRECISIONS),
        "optimizer": Choice("optimizer", optimizer, list(AVERAGES)),
        "batch": Steps("samples at once", batch, many),
        "micro": Steps("micro-batches", micro, many),
        "checkpointing": Tick("activation checkpointing", checkpointing),
        "tensor": Choice("tensor parallel", tensor, few),
        "stages": Choice("pipeline stages", stages, few),
    }
    return Explorable("Memory: what does a rank hold, and does it fit?", controls, draw)
