"""`python -m ddp_helpers plan`: what would more ranks, other links or other buckets do?"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np

from ddp_helpers.arguments import check_least
from ddp_helpers.cli import plan_memory
from ddp_helpers.scaling.formulas import MIB
from ddp_helpers.scaling.rated import (
    CARD_EACH,
    LIBRARIES,
    LINKS,
    NOISE,
    NOISE_SOURCE,
    REACHED,
    described,
    with_cards,
)
from ddp_helpers.scaling.records import (
    ALGORITHMS,
    GRADIENT_BYTES,
    Link,
    Machine,
    Prediction,
    Setup,
    Work,
)
from ddp_helpers.scaling.step_time import GRADIENT_SIZE, predict
from ddp_helpers.words import shown

DIGITS = 5000  # images of the course's data
BUSY = 0.5  # other programs: fewer than that round to none
GIVEN_ERROR = 0.1  # share by which times that were not measured here may be off


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    add = parser.add_argument
    add("--published", action="store_true", help="what others measured, beside the model")
    add("--measure", action="store_true", help="measure this machine first (about 20 s)")
    add("--profile", metavar="PATH", help="machine profile to read; with --measure, to write")
    add("--rounds", type=int, default=3, help="of --measure")
    add("--model", choices=("SmallCNN", "MLP"), help="a model of the course, measured here")
    add("--parameters", type=float, help="of your model, such as 25.6e6")
    add("--ms-per-sample", type=float, help="forward and backward on one device")
    add("--ms-per-batch", type=float, default=0.0, help="what a batch costs whatever its size")
    add("--load-ms-per-sample", type=float, default=0.0, help="of loading in one process")
    add("--workers", type=int, default=0, help="loader processes of each rank")
    add("--batch-size", type=int, default=32, help="of each rank")
    add("--ranks", type=whole_numbers, default="1,2,4,8", help="such as 1,2,4 or 1:128")
    add("--ranks-per-node", type=int, help="all in one node, if not given")
    add("--link", type=link_named, help=f"inside a node: {', '.join(LINKS)}, or GB/s:microseconds")
    add("--network", type=link_named, help="of one card between nodes; the same names")
    add("--cards", type=int, help="of a node; one for each rank if InfiniBand, else 1")
    add("--library", choices=[*LIBRARIES], default="ddp", help="whose buckets, if not given")
    add("--bucket-cap-mb", type=float, help="DDP's; torch's default if not given")
    add("--buckets", type=int, help="their number instead; 1: all gradients at once")
    add("--no-overlap", action="store_true", help="nothing is sent before the backward ends")
    add("--late", type=float, default=0, help="of --parameters, in embeddings: ready last")
    add("--accumulate", type=int, default=1, help="batches for each averaging")
    add("--gradients", choices=[*GRADIENT_BYTES], default="float32", help="what travels")
    add("--compression", type=float, default=1.0, help="further factor, such as PowerSGD's")
    add("--algorithm", choices=ALGORITHMS, help="nccl for a --link, ring for a measured machine")
    add("--noise", type=float, help=f"a rank's times scatter so, as a share; {NOISE} for a --link")
    add("--price", type=float, default=0.0, help="of one device for an hour")
    add("--samples", type=int, default=DIGITS, help="of an epoch")
    add("--epochs", type=float, default=1.0)
    add("--figure", metavar="PATH", help="write a figure, .png or .svg")
    plan_memory.add_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    if options.memory:
        return plan_memory.run(options)
    if options.published:
        from ddp_helpers.scaling import others
        from ddp_helpers.scaling.published import PUBLISHED

        told = "\n\n".join([others.table(), *(each.explain() for each in PUBLISHED)])
        print(shown(told))
        return 0
    machine = _machine(options)
    work = _work(options)
    if work is None:
        print(shown(describe(machine)))
        return 0
    prediction = predict(machine, work, _setup(options, work))
    about = [describe(machine), describe_work(work), *_assumed(options)]
    print(shown("\n".join(about)))
    print(table(prediction, options.samples, options.epochs))
    if options.figure:
        _save_figure(prediction, machine, work, options.figure)
    return 0


def table(prediction: Prediction, samples: int, epochs: float) -> str:
    """The prediction as text: a line for each number of ranks."""
    columns = (
        prediction.setup.ranks,
        *vars(prediction.step).values(),
        prediction.samples_per_second.value,
        prediction.efficiency.value,
        prediction.epoch_seconds(samples).value / 3600 * epochs,
        prediction.cost(samples, epochs).value,
        prediction.bound,
    )
    lines = [
        f"{'ranks':>7}{'step (ms)':>12}{'range':>20}{'samples/s':>12}{'efficiency':>12}"
        f"{'hours':>10}{'cost':>11}  bound by"
    ]
    for ranks, step, low, high, rate, efficiency, hours, cost, bound in zip(
        *map(np.atleast_1d, columns), strict=True
    ):
        lines.append(
            f"{ranks:>7,}{_ms(step):>12}{f'{_ms(low)} to {_ms(high)}':>20}{rate:>12,.0f}"
            f"{efficiency:>12.0%}{hours:>10.3g}{cost:>11.4g}  {bound}"
        )
    return "\n".join(lines)


def describe(machine: Machine) -> str:
    """The machine in a few lines."""
    lines = [f"machine: {machine.name}"]
    for link in (machine.link, machine.network):
        if link is not None:
            lines.append(
                f"  {link.name}: {link.bandwidth / 1e9:.3g} GB/s (+-{link.bandwidth_error:.0%}), "
                f"{1e6 * link.latency:.3g} us a message (+-{link.latency_error:.0%})"
            )
    if machine.cores is not None:
        lines.append(
            f"  ranks share {machine.cores} cores: computing takes {machine.contention:.2f} times "
            f"as long when each has a rank; DDP adds {_ms(machine.step_overhead)} ms a step and "
            f"{_ms(machine.byte_overhead * 1e6)} ms a MB"
        )
    if machine.background >= BUSY:
        lines.append(
            f"  the machine was busy: about {machine.background:.0f} other programs wanted a core; "
            "predictions are for a machine as busy as that"
        )
    return "\n".join([*lines, *(f"  {note}" for note in machine.notes)])


def describe_work(work: Work) -> str:
    """The work of a rank in a line."""
    return (
        f"model: {work.name}, {work.parameters:,} parameters, {_ms(work.seconds_per_sample)} ms a "
        f"sample and {_ms(work.seconds_per_batch)} ms a batch (+-{work.error:.0%})"
    )


def _machine(options: argparse.Namespace) -> Machine:
    if options.measure:
        from ddp_helpers.scaling.machine_costs import measure_machine

        machine = measure_machine(rounds=options.rounds)
        if options.profile:
            print(f"profile: {machine.save(options.profile)}")
    elif options.profile:
        machine = Machine.load(options.profile)
    elif options.link:
        machine = described(options.link.name, options.link)
    else:
        raise ValueError(
            "which machine? --measure measures this one, --profile PATH reads a measured one, "
            "--link NAME describes one; --published needs none"
        )
    machine = dataclasses.replace(machine, price_per_hour=options.price)
    if options.link:
        machine = dataclasses.replace(machine, link=options.link)
    if options.noise is not None:
        machine = dataclasses.replace(machine, noise=options.noise)
    if options.network or options.ranks_per_node:
        machine = dataclasses.replace(
            machine, network=_network(options), ranks_per_node=options.ranks_per_node
        )
    cycle = LIBRARIES[options.library].cycle
    return dataclasses.replace(machine, step_overhead=machine.step_overhead + cycle)


def _network(options: argparse.Namespace) -> Link | None:
    """Of a whole node: all its cards together."""
    if options.network is None:
        return None
    if options.cards is not None:
        check_least("--cards", options.cards, 1)
    each = any(options.network == LINKS[name] for name in CARD_EACH)
    cards = options.cards or ((options.ranks_per_node or 1) if each else 1)
    return with_cards(options.network, cards)


def _work(options: argparse.Namespace) -> Work | None:
    loading = {
        "data_seconds_per_sample": options.load_ms_per_sample / 1e3,
        "data_workers": options.workers,
    }
    if options.model:
        from ddp_helpers import model
        from ddp_helpers.scaling import work_costs

        make_model = getattr(model, options.model)
        return work_costs.measure_work(make_model, work_costs.make_probe_batch, **loading)
    if options.parameters is None and options.measure:
        return None
    if options.parameters is None or options.ms_per_sample is None:
        raise ValueError(
            "which model? --parameters 25.6e6 --ms-per-sample 1.6 describes one, "
            "--model SmallCNN measures one of the course"
        )
    return Work(
        "your model",
        int(options.parameters),
        options.ms_per_sample / 1e3,
        options.ms_per_batch / 1e3,
        late_parameters=int(options.late),
        error=GIVEN_ERROR,
        **loading,
    )


def _setup(options: argparse.Namespace, work: Work) -> Setup:
    return Setup(
        ranks=np.array(options.ranks),
        batch_size_per_rank=options.batch_size,
        bucket_cap_mb=_bucket_cap(options, work),
        accumulation_steps=options.accumulate,
        gradient_dtype=options.gradients,
        compression=options.compression,
        algorithm=options.algorithm or ("nccl" if _is_described(options) else "ring"),
        hierarchical=not _is_described(options),
        overlap=not options.no_overlap,
    )


def _bucket_cap(options: argparse.Namespace, work: Work) -> float | None:
    if options.buckets is None:
        return options.bucket_cap_mb or LIBRARIES[options.library].cap_mb
    if options.bucket_cap_mb is not None:
        raise ValueError("--buckets and --bucket-cap-mb say the same: give one of them")
    check_least("--buckets", options.buckets, 1)
    size = (work.parameters - work.late_parameters) * GRADIENT_SIZE / MIB
    return size / options.buckets


def _is_described(options: argparse.Namespace) -> bool:
    """Nobody has measured the machine."""
    return not options.measure and not options.profile


def _assumed(options: argparse.Namespace) -> list[str]:
    """What stands behind the numbers and was not given."""
    sends = LIBRARIES[options.library].words
    if options.bucket_cap_mb or options.buckets or options.gradients != "float32":
        sends = f"buckets and {options.gradients} as given"
    if not _is_described(options):
        return [f"sent: {sends}"]
    lines = [f"sent: {sends}, by NCCL's ring or tree through all ranks", "assumed:"]
    if options.noise is None:
        lines.append(f"  {NOISE_SOURCE}")
    lines.append(f"  an all-reduce reaches {REACHED:.0%} of what a link is rated at")
    if not options.no_overlap:
        lines.append("  the backward hides what it can; at the bad end of the range, nothing")
    return lines


def _save_figure(prediction: Prediction, machine: Machine, work: Work, path: str) -> None:
    from ddp_helpers.plots.style import save
    from ddp_helpers.scaling.plots import plot_prediction

    ranks = np.atleast_1d(prediction.setup.ranks)
    efficiency = np.atleast_1d(prediction.efficiency.value)
    fig = plot_prediction(prediction, title=f"Predicted: {work.name} on {machine.name}")
    alt = (
        f"Predicted samples a second and efficiency for {ranks[0]} to {ranks[-1]} ranks; "
        f"efficiency goes from {efficiency[0]:.0%} to {efficiency[-1]:.0%}"
    )
    print(f"figure: {save(fig, Path(path), alt=alt)}")


def whole_numbers(text: str) -> list[int]:
    """1,2,4 as it stands; 1:128 as powers of two from 1 to 128."""
    try:
        if ":" in text:
            first, last = map(int, text.split(":"))
            found = [first]
            while first > 0 and found[-1] * 2 <= last:
                found.append(found[-1] * 2)
            return found + ([last] if last > found[-1] else [])
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected whole numbers such as 1,2,4, or 1:128 for its powers of two"
        ) from None


def link_named(text: str) -> Link:
    if text in LINKS:
        return LINKS[text]
    bandwidth, _, latency = text.partition(":")
    try:
        return Link(f"{text} us link", float(latency) / 1e6, float(bandwidth) * 1e9)
    except ValueError:
        names = ", ".join(sorted(LINKS))
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected one of {names}, or GB/s:microseconds such as 25:10"
        ) from None


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g}" if seconds < 1 else f"{1e3 * seconds:,.0f}"
