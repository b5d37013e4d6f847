"""Measure a model's work and real DDP steps for the cost model, with real ranks.

Each rank has one thread, as launch() gives it when there are as many ranks as cores. Of repeated
times the lower quartile counts: other programs make a step slower, never faster.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ddp_helpers.ranks.conclusion import finished
from ddp_helpers.ranks.launcher import launch
from ddp_helpers.scaling.fits import fit_batches
from ddp_helpers.scaling.rank_probes import (
    LossFunction,
    MakeBatch,
    MakeModel,
    StepTimes,
    time_loading,
    time_steps,
)
from ddp_helpers.scaling.records import Setup, Work

R = TypeVar("R")
SMALL_BATCHES = (8, 32)
SECONDS = 60.0  # limit of each launch
STEPS_OF_A_MEAN = 5  # by then ranks that share a core have had their turns
BACKWARD_SHARES = (0.05, 0.95)  # a busy machine can measure nonsense; Work refuses 0 and 1
LEAST_ERROR = 0.02  # as a share: no measurement is better than that


def measure_work(
    make_model: MakeModel,
    make_batch: MakeBatch,
    *,
    name: str | None = None,
    batch_sizes: Sequence[int] = SMALL_BATCHES,
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
    times = run_on_ranks(time_steps, 1, make_model, make_batch, tuple(batch_sizes), **options)[0]
    note = f"measured on one rank with one thread, batches of {_words(batch_sizes)}"
    return dataclasses.replace(
        work_of(make_model, times, name),
        data_seconds_per_sample=data_seconds_per_sample,
        data_workers=data_workers,
        notes=(note,),
    )


def measure_loading(make_loader: Callable[[], Iterable], *, batches: int = 20) -> float:
    """Seconds that one process needs to load and prepare one sample.

    Args:
        make_loader: makes a DataLoader with num_workers=0 (workers would hide the time).

    Raises:
        ValueError: the loader has workers, or fewer than two batches.
    """
    loader = make_loader()
    if workers := getattr(loader, "num_workers", 0):
        raise ValueError(f"num_workers={workers}: expected 0, as workers hide the time")
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
    return run_on_ranks(time_steps, int(setup.ranks), make_model, make_batch, (size,), **options)[
        0
    ][size]


def undisturbed(times: Sequence[float]) -> float:
    """The lower quartile of repeated times: other programs make a step slower, never faster."""
    return float(np.quantile(np.asarray(times, dtype=float), 0.25))


def undisturbed_step(times: Sequence[float]) -> float:
    """The same for steps of several ranks, from means of five.

    Ranks that share a core take turns, so that a short step of one follows a long one; their
    mean is what training sees.
    """
    whole = len(times) // STEPS_OF_A_MEAN * STEPS_OF_A_MEAN
    if not whole:
        return float(np.mean(times))
    rows = np.asarray(times[:whole], dtype=float).reshape(-1, STEPS_OF_A_MEAN)
    return undisturbed(rows.mean(axis=1))


def make_probe(width: int) -> nn.Module:
    """A small stack of linear layers for measuring the machine; 28 x 28 inputs, 10 classes."""
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(784, width), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def make_probe_batch(size: int) -> tuple[Tensor, Tensor]:
    """Inputs (size, 1, 28, 28) and targets (size,) for `make_probe`."""
    return torch.randn(size, 1, 28, 28), torch.randint(10, (size,))


def work_of(make_model: MakeModel, times: dict[int, StepTimes], name: str | None = None) -> Work:
    """The work of a model whose steps on one rank took these times, by batch size."""
    sizes = [p.numel() for p in make_model().parameters() if p.requires_grad]
    both = {size: forward_backward(each) for size, each in times.items()}
    per_batch, per_sample, error = fit_batches({size: [each] for size, each in both.items()})
    shares = [undisturbed(each.backward) / both[size] for size, each in times.items()]
    return Work(
        name or str(getattr(make_model, "__name__", "model")),
        parameters=sum(sizes),
        seconds_per_sample=per_sample,
        seconds_per_batch=per_batch,
        backward_share=float(np.clip(statistics.median(shares), *BACKWARD_SHARES)),
        optimizer_seconds=statistics.median(undisturbed(t.optimizer) for t in times.values()),
        tensors=len(sizes),
        error=max(error, LEAST_ERROR),
    )


def forward_backward(times: StepTimes) -> float:
    """Seconds of forward and backward together."""
    return undisturbed([a + b for a, b in zip(times.forward, times.backward, strict=True)])


def run_on_ranks(
    function: Callable[..., R], nprocs: int, *args: object, **kwargs: object
) -> list[R]:
    """The values of `launch`, each rank with one thread and without output."""
    result = launch(
        function,
        nprocs,
        args=args,
        kwargs=kwargs,
        threads_per_rank=1,
        echo=False,
        timeout=SECONDS,
    )
    return finished(result).values


def _words(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers))
