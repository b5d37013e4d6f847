"""Measure this machine for the cost model, with real ranks on small jobs; seconds, not minutes.

    machine = measure_machine()                        # on 1 and 2 ranks
    work = measure_work(SmallCNN, make_batch)          # on 1 rank
    predict(machine, work, Setup(ranks=4)).step        # scaling.py

Each rank has one thread, as launch() gives it when there are as many ranks as cores. Of repeated
times the lower quartile counts: other programs make a step slower, never faster.
"""

from __future__ import annotations

import dataclasses
import platform
import statistics
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ddp_helpers.cost_fits import fit_batches, fit_link, robust_fit, spread
from ddp_helpers.cost_records import Machine, Setup, Work, plain
from ddp_helpers.environment import usable_cpu_count
from ddp_helpers.launch import launch
from ddp_helpers.rank_probes import (
    LossFunction,
    MakeBatch,
    MakeModel,
    StepTimes,
    time_all_reduce,
    time_loading,
    time_steps,
)
from ddp_helpers.scaling import predict

MESSAGES = (2**12, 2**14, 2**16, 2**18, 2**20, 2**21, 2**22)  # bytes
PROBE_WIDTHS, PROBE_BATCHES = (128, 384), (8, 32)
SECONDS = 60.0  # limit of each launch


def measure_machine(
    name: str | None = None, *, rounds: int = 3, price_per_hour: float = 0.0
) -> Machine:
    """Measure all-reduce, contention, noise and DDP's own time on 1 and 2 ranks of this machine.

    Rounds go through all measurements in turn, so that a busy spell slows all of them alike.

    Raises:
        ValueError: rounds below 1, or a machine too busy to see messages take time.
        LaunchError: a rank failed.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds!r}: expected at least 1")
    found = [measure_round() for _ in range(rounds)]
    return machine_from(found, name, price_per_hour=price_per_hour)


def measure_work(
    make_model: MakeModel,
    make_batch: MakeBatch,
    *,
    name: str | None = None,
    batch_sizes: Sequence[int] = PROBE_BATCHES,
    steps: int = 10,
    rounds: int = 3,
    loss_function: LossFunction | None = None,
    data_seconds_per_sample: float = 0.0,
    data_workers: int = 0,
) -> Work:
    """Measure a model on one rank with one thread, for some small batch sizes.

    Args:
        make_model: makes the model.
        make_batch: makes (inputs, targets) of a batch of the size it is given.
        loss_function: by default torch's cross_entropy.
        data_seconds_per_sample, data_workers: of loading; see measure_loading.

    Raises:
        ValueError: no batch size, or one below 1.
        LaunchError: the rank failed.
    """
    if not batch_sizes or min(batch_sizes) < 1:
        raise ValueError(f"batch_sizes={batch_sizes!r}: expected one or more, each at least 1")
    options = {"steps": steps, "rounds": rounds, "loss_function": loss_function}
    times = _run(time_steps, 1, make_model, make_batch, tuple(batch_sizes), **options)[0]
    sizes = [p.numel() for p in make_model().parameters() if p.requires_grad]
    both = {size: _forward_backward(each) for size, each in times.items()}
    per_batch, per_sample, error = fit_batches({size: [each] for size, each in both.items()})
    shares = [undisturbed(each.backward) / both[size] for size, each in times.items()]
    return Work(
        name or getattr(make_model, "__name__", "model"),
        parameters=sum(sizes),
        seconds_per_sample=per_sample,
        seconds_per_batch=per_batch,
        backward_share=min(max(statistics.median(shares), 0.05), 0.95),
        optimizer_seconds=statistics.median(undisturbed(t.optimizer) for t in times.values()),
        tensors=len(sizes),
        data_seconds_per_sample=data_seconds_per_sample,
        data_workers=data_workers,
        error=max(error, 0.02),
        notes=(f"measured on one rank with one thread, batches of {_words(batch_sizes)}",),
    )


def measure_loading(make_loader: Callable[[], Iterable], *, batches: int = 20) -> float:
    """Seconds that one process needs to load and prepare one sample.

    Args:
        make_loader: makes a DataLoader with num_workers=0 (workers would hide the time).

    Raises:
        ValueError: the loader has workers, or fewer than two batches.
    """
    loader = make_loader()
    if getattr(loader, "num_workers", 0):
        raise ValueError(f"num_workers={loader.num_workers}: expected 0, as workers hide the time")
    times = time_loading(make_loader, batches)
    if not times:
        raise ValueError("the loader gave fewer than two batches: make the dataset bigger")
    return undisturbed(times) / (getattr(loader, "batch_size", None) or 1)


def measure_step(
    make_model: MakeModel,
    make_batch: MakeBatch,
    setup: Setup,
    *,
    steps: int = 10,
    loss_function: LossFunction | None = None,
    gradient_as_bucket_view: bool = False,
) -> StepTimes:
    """Times of real DDP steps on `setup.ranks` ranks of this machine; those of rank 0.

    Raises:
        ValueError: a setup that holds arrays, or asks for what can't be run here.
        LaunchError: a rank failed.
    """
    hooks = {"float32": None, "bfloat16": "bf16", "float16": "fp16"}
    if np.ndim(setup.ranks) or np.ndim(setup.batch_size_per_rank):
        raise ValueError("measure_step runs one setup: give numbers, not arrays")
    if setup.gradient_dtype not in hooks or setup.compression != 1 or not setup.overlap:
        raise ValueError(
            f"{setup}: only float32, bfloat16 and float16 gradients, with overlap and "
            "without further compression, can be run here; predict() knows the others"
        )
    if setup.gradient_dtype == "bfloat16" and not torch.cuda.is_available():
        raise ValueError("gradient_dtype='bfloat16': torch's hook needs NCCL; here use 'float16'")
    cap = {} if setup.bucket_cap_mb is None else {"bucket_cap_mb": setup.bucket_cap_mb}
    size = int(setup.batch_size_per_rank)
    options = {
        "steps": steps,
        "loss_function": loss_function,
        "ddp": cap | {"gradient_as_bucket_view": gradient_as_bucket_view},
        "accumulation_steps": int(setup.accumulation_steps),
        "hook": hooks[setup.gradient_dtype],
    }
    return _run(time_steps, int(setup.ranks), make_model, make_batch, (size,), **options)[0][size]


def undisturbed(times: Sequence[float]) -> float:
    """The lower quartile of repeated times: other programs make a step slower, never faster."""
    return float(np.quantile(np.asarray(times, dtype=float), 0.25))


def undisturbed_step(times: Sequence[float]) -> float:
    """The same for steps of several ranks, from means of five.

    Ranks that share a core take turns, so that a short step of one follows a long one; their
    mean is what training sees.
    """
    whole = len(times) // 5 * 5
    if not whole:
        return float(np.mean(times))
    return undisturbed(np.asarray(times[:whole], dtype=float).reshape(-1, 5).mean(axis=1))


def make_probe(width: int) -> nn.Module:
    """A small stack of linear layers for measuring the machine; 28 x 28 inputs, 10 classes."""
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(784, width), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def make_probe_batch(size: int) -> tuple[Tensor, Tensor]:
    """Inputs (size, 1, 28, 28) and targets (size,) for `make_probe`."""
    return torch.randn(size, 1, 28, 28), torch.randint(10, (size,))


@dataclasses.dataclass(frozen=True)
class Round:
    """What one round of measurements found; `machine_from` puts rounds together."""

    messages: dict[int, float]
    """Seconds of an all-reduce on two ranks, by its bytes."""
    busy: float
    """Seconds of a core for a second of all-reduce."""
    contention: float
    """Computing on two ranks against one, in seconds of a core: sharing memory, not cores."""
    share: float
    """Part of a core that each of two ranks got."""
    noise: float
    works: tuple[Work, ...]
    """The probe models on one rank."""
    steps: tuple[tuple[int, int, float], ...]
    """(number of the work, batch size, seconds) of DDP steps on two ranks."""


def measure_round() -> Round:
    """One round of measurements on one and two ranks; a few seconds."""
    messages, had = _messages(one_core=False)
    crowded, _ = _messages(one_core=True)
    works, steps, ratios, shares, noises = [], [], [], [], []
    for at, width in enumerate(PROBE_WIDTHS):
        probe = _Probe(width)
        one, two, ddp = (
            _run(time_steps, n, probe, make_probe_batch, PROBE_BATCHES, steps=10, rounds=2, ddp=ddp)
            for n, ddp in ((1, None), (2, None), (2, {}))
        )
        for b in PROBE_BATCHES:
            ratios.append(undisturbed(two[0][b].cpu) / undisturbed(one[0][b].cpu))
            # of the whole, as a short step may well fit between two turns of other programs
            shares.append(sum(two[0][b].cpu) / sum(two[0][b].step))
            noises.append(spread(one[0][b].step))
            steps.append((at, b, undisturbed_step(ddp[0][b].step)))
        works.append(_work_of(probe, one[0]))
    middle = statistics.median
    # On half of the cores it takes twice as long, if it is all work and no waiting. That hides
    # part of the work, as data stays in one core's cache; the time that the process had a core
    # counts some waiting as work. The truth is between.
    shared = middle(crowded[size] / messages[size] / 2 for size in MESSAGES)
    busy = (min(shared, 1.0) + min(had, 1.0)) / 2
    return Round(
        *(messages, busy, middle(ratios), middle(shares), middle(noises)),
        *(tuple(works), tuple(steps)),
    )


def _messages(one_core: bool) -> tuple[dict[int, float], float]:
    (times, busy), *_ = _run(time_all_reduce, 2, MESSAGES, 8, one_core=one_core)
    return {size: undisturbed(each) for size, each in times.items()}, busy


def machine_from(
    found: Sequence[Round], name: str | None = None, *, price_per_hour: float = 0.0
) -> Machine:
    """Fit a machine to rounds of measurements.

    Raises:
        ValueError: no rounds, or a machine too busy to see messages take time.
    """
    if not found:
        raise ValueError("no rounds: expected those of measure_round(), at least one")
    on_gpu = torch.cuda.device_count() >= 2
    points = [(2, size, seconds) for each in found for size, seconds in each.messages.items()]
    where = f"measured on 2 ranks of {platform.node()}, {len(found)} rounds"
    machine = Machine(
        name or platform.node(),
        fit_link("this machine", points, source=where),
        cores=None if on_gpu else usable_cpu_count(),
        contention=max(1.0, statistics.median(each.contention for each in found)),
        background=0.0 if on_gpu else _background(found),
        communication_cpu=0.0 if on_gpu else statistics.median(each.busy for each in found),
        noise=statistics.median(each.noise for each in found),
        price_per_hour=price_per_hour,
        notes=(where, "one thread a rank; of repeated times the lower quartile"),
    )
    return _with_overheads(machine, found)


def _background(found: Sequence[Round]) -> float:
    """How many other programs want a core: two ranks get less than a core each if any do."""
    share = statistics.median(each.share for each in found)
    return max(usable_cpu_count() / share - 2, 0.0) if share < 0.95 else 0.0


class _Probe:
    """Makes the probe model of a width; an object, as it must travel to the ranks."""

    def __init__(self, width: int) -> None:
        self.width, self.__name__ = width, f"probe of width {width}"

    def __call__(self) -> nn.Module:
        return make_probe(self.width)


def _work_of(make_model: MakeModel, times: dict[int, StepTimes]) -> Work:
    sizes = [p.numel() for p in make_model().parameters()]
    both = {size: [_forward_backward(each)] for size, each in times.items()}
    per_batch, per_sample, _ = fit_batches(both)
    shares = [undisturbed(t.backward) / both[size][0] for size, t in times.items()]
    return Work(
        getattr(make_model, "__name__", "model"),
        sum(sizes),
        per_sample,
        per_batch,
        backward_share=min(max(statistics.median(shares), 0.05), 0.95),
        optimizer_seconds=statistics.median(undisturbed(t.optimizer) for t in times.values()),
        tensors=len(sizes),
    )


def _with_overheads(machine: Machine, rounds: Sequence[Round]) -> Machine:
    """Fit what DDP adds to each step on two ranks, beyond computing and all-reduce."""
    rows, left, scale = [], [], []
    for each in rounds:
        for at, batch, seconds in each.steps:
            work = each.works[at]
            setup = Setup(ranks=2, batch_size_per_rank=batch)
            left.append(seconds - plain(predict(machine, work, setup).step.value))
            rows.append((1.0, 4.0 * work.parameters))
            scale.append(seconds)
    # an error counts against the whole step: what is left may be close to nothing
    found = robust_fit(np.array(rows), np.array(left), np.array(scale))
    # of a rank alone on its core: predict() stretches it where ranks share cores
    cores, others = machine.cores or np.inf, machine.background
    fixed, per_byte = found / max((2 + others) / cores, 1) * max((1 + others) / cores, 1)
    return dataclasses.replace(machine, step_overhead=float(fixed), byte_overhead=float(per_byte))


def _forward_backward(times: StepTimes) -> float:
    return undisturbed([a + b for a, b in zip(times.forward, times.backward, strict=True)])


def _run(function: Callable, nprocs: int, *args: object, **kwargs: object) -> list:
    result = launch(
        function,
        nprocs,
        args=args,
        kwargs=kwargs,
        threads_per_rank=1,
        echo=False,
        timeout=SECONDS,
    )
    return result.values


def _words(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers))
