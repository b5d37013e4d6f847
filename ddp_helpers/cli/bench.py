"""`python -m ddp_helpers bench`: how your own training scales here, why, and what helps."""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from ddp_helpers.arguments import fill_in_folder
from ddp_helpers.bench.records import Change, Job, Measured
from ddp_helpers.bench.verdict import beyond_ranks, judge, not_to_judge
from ddp_helpers.environment.check import usable_cpu_count
from ddp_helpers.group.devices import choose_backend
from ddp_helpers.ranks.conclusion import finished
from ddp_helpers.ranks.launcher import launch
from ddp_helpers.timeline.records import (
    COMPUTE,
    DATA,
    EXPOSED,
    OPTIMIZER,
    OTHER,
    RankTimeline,
    mean_shares,
)
from ddp_helpers.words import shown

HELP = """\
TARGET is path/script.py:function. The function trains with DDP, as it would under torchrun, and
needs no change: a step ends with optimizer.step() of a torch.optim optimizer, and its samples are
the first dimension of the first tensor that goes into the model. It is ended after --steps steps
(3 more before to warm up, 6 after for the profiler). It must also run on one rank.

A script that saves and goes on needs a new folder for each run; "{folder}" in its arguments
becomes one:  bench train.py:main -- --run-folder "{folder}"

With --model, TARGET is path/script.py:factory or package.module:factory. The factory takes no
argument and returns (model, dataset) or (model, dataset, loss): the dataset gives (input, target),
the loss is cross-entropy if not given. A plain DDP loop trains it with SGD.

Where rounds scatter too much, or speed-ups are beyond all ranks, there is no verdict. Advice is
measured, not only given: each change is applied from outside, and runs in turn with the function as
it is. Bigger batches and rarer averages change the training: check the learning rate.
"""
_AS_IT_IS = Change()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = HELP
    add = parser.add_argument
    add("target", metavar="TARGET", help="path/script.py:function; with --model a factory")
    add("--model", action="store_true", help="TARGET makes a model; bench trains it")
    add("-n", "--nprocs", type=_ranks, default="1,2", metavar="1,2,4", help="numbers of ranks")
    add("--batch-size", type=int, default=32, help="of each rank, with --model")
    add("--steps", type=int, default=20, help="timed in each run")
    add("--rounds", type=int, default=3, help="of all runs; medians are shown")
    add("--threads-per-rank", type=int, help="the same in all runs; by default cores // most ranks")
    add("--no-advice", action="store_true", help="do not try changes")
    add("--timeout", type=float, default=600.0, help="seconds for each run")
    add("--out", default="runs/bench/scaling.png", help="figure to write, .png or .svg")


def run(options: argparse.Namespace) -> int:
    """Run the command; returns its exit code."""
    _check(options)
    sys.argv = [options.target.rpartition(":")[0], *options.arguments]
    runs = _scaling(options)
    rates = _rates(runs)
    notes = filter(None, (_devices(runs), beyond_ranks(rates)))
    print(_table(runs, _threads(options)), *map(shown, notes), sep="\n", flush=True)
    _save_figure(options, runs)
    if why := not_to_judge(rates):
        print(f"\n{shown(f'no verdict: {why}')}", flush=True)
        return 0
    most = max(runs)
    verdict = judge(_timelines(runs[most][0]), usable_cpu_count())
    ranks = shown(f"{most} rank{'s' * (most > 1)}")
    print(f"\n{ranks}: {verdict.kind}: {shown(verdict.text)}", flush=True)
    if not options.no_advice:
        print(shown(_advice(options, most, verdict.advice)))
    return 0


def _threads(options: argparse.Namespace) -> int:
    """The same for all numbers of ranks: otherwise threads are compared, not ranks."""
    return options.threads_per_rank or max(1, usable_cpu_count() // max(options.nprocs))


def _backend(options: argparse.Namespace) -> str:
    """The same for all numbers of ranks, too: a GPU's step says nothing of a CPU's."""
    return choose_backend(None, max(options.nprocs))


def _devices(runs: Runs) -> str:
    """A note where the function itself took GPUs for some numbers of ranks only; else nothing."""
    kinds = {n: _timelines(rounds[0])[0].device.partition(":")[0] for n, rounds in runs.items()}
    if len(set(kinds.values())) < 2:
        return ""
    where = ", ".join(f"{n} on {kind}" for n, kind in kinds.items())
    return f"note: the devices differ ({where}), so the speed-up says nothing: choose others by -n"


Runs = dict[int, list[list[Measured]]]
"""For each number of ranks its rounds; each has one record a rank."""


def speed(ranks: Sequence[Measured]) -> float:
    """Samples a second of all ranks together."""
    return sum(one.samples / one.seconds for one in ranks)


def _rates(runs: Runs) -> dict[int, list[float]]:
    """Samples a second of each round, by number of ranks."""
    return {n: [speed(ranks) for ranks in rounds] for n, rounds in runs.items()}


def _timelines(ranks: Sequence[Measured]) -> list[RankTimeline]:
    """Of a first round, in which every rank is profiled."""
    return [one.timeline for one in ranks if one.timeline is not None]


def _scaling(options: argparse.Namespace) -> Runs:
    runs: Runs = {n: [] for n in options.nprocs}
    for number in range(options.rounds):  # in turn: what disturbs one disturbs the others
        for n, rounds in runs.items():
            rounds.append(_measure(options, n, profile=number == 0))
    return runs


def _measure(
    options: argparse.Namespace, ranks: int, change: Change = _AS_IT_IS, profile: bool = False
) -> list[Measured]:
    from ddp_helpers.bench.step_meter import measure_on_this_rank

    job = Job(
        options.target,
        options.model,
        options.batch_size,
        _backend(options),
        options.steps,
        profile,
        change,
    )
    threads = change.threads_per_rank or _threads(options)
    with _own_folder():
        result = launch(
            measure_on_this_rank,
            ranks,
            args=(job,),
            threads_per_rank=threads,
            timeout=options.timeout,
            echo=False,
        )
        return finished(result).values


@contextlib.contextmanager
def _own_folder() -> Iterator[None]:
    """An empty folder for this run in place of "{folder}" in the arguments."""
    given = sys.argv
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        sys.argv = fill_in_folder(given, folder)
        try:
            yield
        finally:
            sys.argv = given


def _table(runs: Runs, threads: int) -> str:
    head = f"{'ranks':>5} {'samples/s':>11} {'speed-up':>9} {'efficiency':>11}"
    head += f" |{'compute':>9}{'all-reduce*':>12}{'data':>7}{'optimizer':>11}{'other':>7}"
    least = min(runs)
    alone = statistics.median(map(speed, runs[least]))
    lines = [head]
    for n, rounds in runs.items():
        rate = statistics.median(map(speed, rounds))
        gain = rate / alone
        shares = mean_shares(_timelines(rounds[0]))
        compute = sum(shares[kind] for kind in COMPUTE if kind != OPTIMIZER)
        lines.append(
            f"{n:>5} {rate:>11.1f} {gain:>9.2f} {gain * least / n:>11.0%} |{compute:>9.0%}"
            f"{shares[EXPOSED]:>12.0%}{shares[DATA]:>7.0%}{shares[OPTIMIZER]:>11.0%}"
            f"{shares[OTHER]:>7.0%}"
        )
    note = (
        f"{threads} CPU thread{'s' * (threads > 1)} a rank, {usable_cpu_count()} cores, median of "
    )
    note += f"{len(runs[least])} rounds"
    return "\n".join(
        [*lines, shown(f"* exposed: what no compute hides; shares by torch.profiler. {note}")]
    )


def _advice(options: argparse.Namespace, ranks: int, changes: Sequence[Change]) -> str:
    """Each change against the function as it stands, in turn, for all rounds."""
    before: list[float] = []
    after: dict[Change, list[float]] = {change: [] for change in changes}
    unused: set[Change] = set()
    for _ in range(options.rounds):
        before.append(speed(_measure(options, ranks)))
        for change, rates in after.items():
            if change not in unused:
                measured = _measure(options, ranks, change)
                rates.append(speed(measured))
                unused |= {change} if measured[0].unused else set()
    lines = [f"tried on {ranks} rank{'s' * (ranks > 1)} (samples/s, before and after):"]
    lines += [_line(change, before, rates, change in unused) for change, rates in after.items()]
    return "\n".join(
        [*lines, recommendation(before, {c: r for c, r in after.items() if c not in unused})]
    )


def _line(change: Change, before: list[float], after: list[float], unused: bool) -> str:
    if unused:
        return f"  not tried: {change}: the function gives no occasion"
    old, new = statistics.median(before), statistics.median(after)
    wins = sum(b > a for a, b in zip(before, after, strict=True))
    return (
        f"  {old:9.1f} -> {new:9.1f}  {new / old:5.2f} times  {change}"
        f"  (faster in {wins} of {len(after)} rounds)"
    )


def recommendation(before: list[float], after: dict[Change, list[float]]) -> str:
    """Only a change that won in every round is recommended; others may be luck."""
    sure = {
        change: statistics.median(rates) / statistics.median(before)
        for change, rates in after.items()
        if all(new > old for old, new in zip(before, rates, strict=True))
    }
    if not sure:
        return "none of it was faster in every round: leave the function as it is"
    best = max(sure, key=sure.__getitem__)
    return f"try: {best}: {sure[best]:.2f} times as fast here"


def _save_figure(options: argparse.Namespace, runs: Runs) -> None:
    from ddp_helpers.bench.plots import describe_bench, plot_bench
    from ddp_helpers.plots.style import save

    rates = _rates(runs)
    shares = {n: mean_shares(_timelines(rounds[0])) for n, rounds in runs.items()}
    title = options.target.rpartition("/")[2]
    note = f"{usable_cpu_count()} CPU cores, {options.steps} steps a run"
    figure = plot_bench(rates, shares, title=title, note=note)
    print(f"figure: {save(figure, options.out, alt=describe_bench(rates, shares))}", flush=True)


def _check(options: argparse.Namespace) -> None:
    place, colon, name = options.target.rpartition(":")
    if not colon or not name.isidentifier():
        raise ValueError(f'"{options.target}": expected path/script.py:function')
    is_file = place.endswith(".py") or not options.model
    if is_file and not Path(place).is_file():
        raise ValueError(f'"{options.target}": there is no file {place}')
    for field in ("steps", "rounds", "batch_size"):
        if getattr(options, field) < 1:
            raise ValueError(f"--{field.replace('_', '-')} {getattr(options, field)}: at least 1")
    if Path(options.out).suffix not in (".png", ".svg"):  # before minutes of measuring
        raise ValueError(f"--out {options.out}: expected a name that ends in .png or .svg")


def _ranks(text: str) -> list[int]:
    numbers = sorted({int(part) for part in text.split(",") if part.strip().isdigit()})
    if not numbers or numbers[0] < 1 or len(numbers) != len(text.split(",")):
        raise argparse.ArgumentTypeError(f'"{text}": expected numbers of ranks, such as 1,2,4')
    return numbers
