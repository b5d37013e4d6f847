"""`plan --memory`: what a rank holds, whether that fits, and the command that starts it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ddp_helpers.scaling.memory import (
    AVERAGES,
    CONTEXT,
    FRAGMENTED,
    STRATEGIES,
    Holding,
    ModelMemory,
    memory_per_rank,
    transformer,
)
from ddp_helpers.scaling.memory_ways import FITS, MAY_FIT, Found, Way, find_way
from ddp_helpers.scaling.records import Numbers
from ddp_helpers.words import shown

SHORT = {
    "ddp": "DDP",
    "zero1": "ZeRO-1",
    "zero2": "ZeRO-2",
    "fsdp_kept": "FSDP, not resharded",
    "fsdp": "FSDP",
}
COLUMNS = {
    "parameters": "param.",
    "gradients": "grad.",
    "optimizer": "optim.",
    "buckets": "buckets",
    "gathered": "gathered",
    "activations": "acts.",
    "recomputed": "anew",
    "working": "working",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that only `--memory` has."""
    add = parser.add_argument_group("with --memory").add_argument
    add("--memory", action="store_true", help="what a rank holds, and which way of holding it fits")
    add(
        "--trace",
        metavar="TARGET",
        help="your model: starter.py or starter_fsdp.py as you have "
        "it, or path/script.py:factory as for bench --model",
    )
    add("--transformer", metavar="24x2048x16", type=_sizes, help="layers x width x heads, instead")
    add("--tokens", type=int, default=1024, help="of a sample of --transformer")
    add("--vocabulary", type=int, default=50257, help="of --transformer")
    add("--capacity", type=float, default=24.0, help="GB of one device")
    add("--bf16", action="store_true", help="compute in bfloat16, parameters in float32")
    add("--optimizer", choices=[*AVERAGES], default="adam")
    add("--tensor-parallel", type=int, default=1, help="ranks that share each layer")
    add("--stages", type=int, default=1, help="of a pipeline")
    add("--micro-batches", type=int, default=1, help="of a step, with --stages")


def run(options: argparse.Namespace) -> int:
    """Print what was found for each number of ranks; 1 if no way fits on any of them."""
    models = _models(options)
    if options.tensor_parallel > 1 or options.stages > 1:
        return _cut_up(models, options)
    found = [
        find_way(
            models,
            ranks=ranks,
            batch_size=options.batch_size,
            capacity=options.capacity * 1e9,
            optimizer=options.optimizer,
        )
        for ranks in options.ranks
    ]
    print(shown(_describe(models["ddp"], options)))
    print(_table(found))
    for each in found:
        many = each.ways[0].how.ranks
        print(f"\n{shown(f'{many} rank' + 's' * (many > 1))}: {shown(each.verdict)}")
    good = next((each.way for each in found if each.way), None)
    if good is None:
        return 1
    start = shown("to start it:")
    print(f"\n{start}", *good.commands(options.ranks_per_node), sep="\n  ")
    return 0


def _cut_up(models: Mapping[str, ModelMemory], options: argparse.Namespace) -> int:
    """The same where layers or their row are cut, too, which no template of ours does."""
    ways = [
        Way(how, model.precision, memory_per_rank(model, how), options.capacity * 1e9)
        for ranks in options.ranks
        for how in _all_holdings(options, ranks)
        for model in [models["fsdp" if how.strategy.startswith("fsdp") else "ddp"]]
    ]
    print(shown(_describe(models["ddp"], options)))
    print(_heads(), *map(_row, ways), sep="\n")
    good = next((way for fits in (FITS, MAY_FIT) for way in ways if way.fits == fits), None)
    cut = f"tensor parallel over {options.tensor_parallel}, {options.stages} pipeline stages"
    if good is None:
        told = f"none of it fits into {options.capacity:g} GB with {cut}"
        print(f"\n{shown(told)}")
        return 1
    told = (
        f"{good.fits} into {options.capacity:g} GB with tensor parallel over "
        f"{options.tensor_parallel} and {good.how.in_words}\n"
        "no template of ours does that: torch's parallelize_module cuts layers, "
        "torch.distributed.pipelining makes stages"
    )
    print(f"\n{shown(told)}")
    return 0


def _all_holdings(options: argparse.Namespace, ranks: int) -> Iterator[Holding]:
    for strategy in STRATEGIES if ranks > 1 else ("ddp",):
        for checkpointing in (False, True):
            yield Holding(
                strategy,
                ranks,
                options.batch_size,
                optimizer=options.optimizer,
                checkpointing=checkpointing,
                stages=options.stages,
                micro_batches=options.micro_batches,
            )


def _describe(model: ModelMemory, options: argparse.Namespace) -> str:
    low, high = (size / 1e9 for size in CONTEXT)
    lines = [
        f"model: {model.name}, {model.parameters:,} parameters, {options.optimizer}, "
        f"{'computing in bfloat16' if options.bf16 else 'float32'}; GB of a rank at a step's peak",
        "assumed:",
        *(f"  {note}" for note in model.notes),
        f"  {low:g} to {high:g} GB of a device are no tensors: CUDA, its kernels, NCCL's buffers",
        f"  fragmented memory: up to {FRAGMENTED:.0%} can't be handed out (ZeRO paper, 3.2)",
    ]
    return "\n".join(lines)


def _table(found: list[Found]) -> str:
    lines = [_heads()]
    for each in found:
        shown = [way for way in each.ways if way.how.micro_batches == 1]
        if each.way is not None and each.way not in shown:
            shown.append(each.way)
        lines += [_row(way) for way in shown]
    return "\n".join(lines)


def _heads() -> str:
    heads = "".join(f"{text:>10}" for text in COLUMNS.values())
    return f"{'ranks':>6}  {'way':<33}{'samples':>10}{heads}{'total':>9}{'at most':>9}"


def _row(way: Way) -> str:
    how, held = way.how, way.memory
    name = SHORT[how.strategy] + (", recompute" if how.checkpointing else "")
    cells = "".join(f"{_giga(getattr(held, part)):>10}" for part in COLUMNS)
    batch = f"{how.micro_batches} x {how.batch_size}"
    ends = f"{_giga(held.total.value):>9}{_giga(held.total.high):>9}"
    return f"{how.ranks:>6}  {name:<33}{batch:>10}{cells}{ends}  {way.fits}"


def _giga(size: Numbers) -> str:
    return f"{size / 1e9:.3g}" if size else "-"


def _models(options: argparse.Namespace) -> Mapping[str, ModelMemory]:
    """As DDP and as FSDP compute on it; in float32 that is the same."""
    ways = {"ddp": "autocast", "fsdp": "mixed"} if options.bf16 else {"ddp": "float32"}
    if (options.trace is None) == (options.transformer is None):
        raise ValueError(
            "which model? --trace train.py reads your own, --transformer 24x2048x16 describes "
            "one by its layers, width and heads; one of the two"
        )
    if options.transformer:
        layers, width, heads = options.transformer
        name = f"transformer {layers} x {width}, {heads} heads, {options.tokens} tokens"
        name += f", a share of {options.tensor_parallel}" * (options.tensor_parallel > 1)
        made = {
            key: transformer(
                *(layers, width, heads, options.tokens, options.vocabulary),
                precision=precision,
                tensor_parallel=options.tensor_parallel,
                name=name,
            )
            for key, precision in ways.items()
        }
    elif options.tensor_parallel > 1:
        raise ValueError(
            "--tensor-parallel with --trace: which layers are cut is the model's affair; call "
            "trace_model(..., tensor_parallel=2, plan={...}) of ddp_helpers.scaling"
        )
    else:
        made = {key: _traced(options.trace, precision) for key, precision in ways.items()}
    return {"fsdp": made["ddp"]} | made


def _traced(target: str, precision: str) -> ModelMemory:
    from ddp_helpers.scaling.memory_trace import trace_model

    parts = _of_template(target) if target.endswith(".py") else _of_factory(target)
    return trace_model(name=target, precision=precision, **parts)


def _of_factory(target: str) -> dict[str, Any]:
    """What bench --model takes, too: (model, dataset) or (model, dataset, loss)."""
    from torch.utils.data import default_collate

    from ddp_helpers.bench.step_meter import model_of

    if not target.rpartition(":")[0]:
        raise ValueError(f"--trace {target}: expected train.py, or path/script.py:factory")
    _, dataset, loss = model_of(target)
    return {
        "make_model": lambda: model_of(target)[0],
        "make_batch": lambda size: default_collate([dataset[at] for at in range(size)]),
        "loss_function": loss,
    }


def _of_template(path: str) -> dict[str, Any]:
    """The owner's part of starter.py or starter_fsdp.py: make_model, make_datasets, loss."""
    import torch

    from ddp_helpers.ranks.travel import load_function

    if not Path(path).is_file():
        raise ValueError(f"--trace {path}: there is no such file")
    try:
        script = sys.modules[load_function(f"{path}:make_model").__module__]
        loss, train_set = script.loss, script.make_datasets()[0]
    except (AttributeError, TypeError) as error:
        raise ValueError(
            f"--trace {path}: {error}: expected a copy of starter.py or starter_fsdp.py, or "
            "path/script.py:factory with a factory that returns (model, dataset)"
        ) from None

    class Whole(torch.nn.Module):
        """The model with its loss, as the template calls both."""

        def __init__(self) -> None:
            super().__init__()
            self.model = script.make_model()

        def forward(self, batch: object) -> torch.Tensor:
            total, count = loss(self.model, batch)
            return total / count

    def make_batch(size: int) -> tuple[object, tuple]:
        return script.collate([train_set[at] for at in range(size)]), ()

    blocks = getattr(script, "blocks", None)
    return {
        "make_model": Whole,
        "make_batch": make_batch,
        "loss_function": lambda output, _: output,
        "blocks": blocks and (lambda whole: blocks(whole.model)),
    }


def _sizes(text: str) -> tuple[int, int, int]:
    try:
        layers, width, heads = map(int, text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected layers x width x heads, such as 24x2048x16"
        ) from None
    return layers, width, heads
