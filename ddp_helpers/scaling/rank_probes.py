"""What runs inside a rank to measure it: all-reduce, computing, loading, whole DDP steps.

Each function returns raw times in seconds; `machine_costs.py` and `work_costs.py` start them and
make sense of them.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddp_helpers.group.devices import choose_backend
from ddp_helpers.group.lifetime import process_group

WARM_UP_STEPS = 3  # DDP makes its buckets anew after the first
CALLS = 3  # of all-reduce between two looks at the clock, which takes time of its own
MOST_RANKS = 4  # that the course compares; with fewer GPUs all of them use the CPU

MakeModel = Callable[[], nn.Module]
MakeBatch = Callable[[int], tuple[Tensor, Tensor]]
LossFunction = Callable[[Tensor, Tensor], Tensor]


class DdpOptions(TypedDict, total=False):
    """Arguments of DistributedDataParallel that the cost model knows."""

    bucket_cap_mb: float
    gradient_as_bucket_view: bool


@dataclass(frozen=True)
class StepTimes:
    """Seconds of each step of one rank, by its parts."""

    forward: tuple[float, ...]
    backward: tuple[float, ...]
    """With DDP, all-reduce that it waits for included."""
    optimizer: tuple[float, ...]
    cpu: tuple[float, ...]
    """Seconds that this process had a core in a step, its helper threads included."""

    @property
    def step(self) -> list[float]:
        """Of all parts together."""
        parts = (self.forward, self.backward, self.optimizer)
        return [sum(each) for each in zip(*parts, strict=True)]


def time_all_reduce(
    sizes: Sequence[int], rounds: int, *, one_core: bool = False
) -> tuple[dict[int, list[float]], float]:
    """Seconds of all-reduces by message size in bytes, and seconds of CPU for each second.

    The CPU time is that of all threads of this process: gloo's own copy, add and wait.

    Args:
        one_core: all ranks share one core, as many ranks on few cores do.
    """
    import torch.distributed as dist

    if one_core:
        # before the group starts: gloo's threads inherit it
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    found: dict[int, list[float]] = {size: [] for size in sizes}
    with process_group(backend()) as pg:
        tensors = {size: torch.ones(max(size // 4, 1), device=pg.device) for size in sizes}
        for tensor in tensors.values():
            dist.all_reduce(tensor)
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(rounds):
            for size, tensor in tensors.items():
                _wait_for(pg.device)
                dist.barrier()
                started = time.perf_counter()
                for _ in range(CALLS):
                    dist.all_reduce(tensor)
                _wait_for(pg.device)
                found[size].append((time.perf_counter() - started) / CALLS)
                tensor.fill_(1.0)  # sums of sums would overflow
        busy = (time.process_time() - cpu) / (time.perf_counter() - wall)
    return found, busy


def time_steps(
    make_model: MakeModel,
    make_batch: MakeBatch,
    batch_sizes: Sequence[int],
    *,
    steps: int,
    rounds: int = 1,
    loss_function: LossFunction | None = None,
    ddp: DdpOptions | None = None,
    accumulation_steps: int = 1,
    hook: str | None = None,
) -> dict[int, StepTimes]:
    """Times of training steps by batch size; rounds go through all sizes in turn.

    Args:
        make_model, make_batch: make the model, and (inputs, targets) of a batch of that size.
        ddp: arguments of DistributedDataParallel; None trains the bare model.
        hook: "bf16" or "fp16", torch's hooks that send gradients in two bytes.
    """
    with process_group(backend()) as pg:
        torch.manual_seed(0)
        model = make_model().to(pg.device).train()
        if ddp is not None:
            model = DistributedDataParallel(model, **ddp)
            _add_hook(model, hook)
        loss_function = loss_function or nn.functional.cross_entropy
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
        found: dict[int, list[tuple[float, ...]]] = {size: [] for size in batch_sizes}
        for at in range(rounds + 1):  # the first is a warm-up
            for size in batch_sizes:
                inputs, targets = make_batch(size)
                batch = inputs.to(pg.device), targets.to(pg.device)
                for _ in range(steps if at else WARM_UP_STEPS):
                    times = _one_step(model, optimizer, loss_function, batch, accumulation_steps)
                    found[size] += [times] if at else []
    return {size: StepTimes(*zip(*times, strict=True)) for size, times in found.items()}


def time_loading(make_loader: Callable[[], Iterable], batches: int) -> list[float]:
    """Seconds for each of the first batches that a loader gives; its start is not counted."""
    found = []
    loader = iter(make_loader())
    next(loader)
    for _ in range(batches):
        started = time.perf_counter()
        if next(loader, None) is None:
            break
        found.append(time.perf_counter() - started)
    return found


def _one_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_function: LossFunction,
    batch: tuple[Tensor, Tensor],
    accumulation_steps: int,
) -> tuple[float, float, float, float]:
    """Seconds of forward, backward and optimizer, and of a core."""
    inputs, targets = batch
    had = time.process_time()
    forward = backward = 0.0
    for at in range(accumulation_steps):
        messages: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
        if at < accumulation_steps - 1 and isinstance(model, DistributedDataParallel):
            messages = model.no_sync()
        with messages:
            started = _now(inputs.device)
            loss = loss_function(model(inputs), targets) / accumulation_steps
            middle = _now(inputs.device)
            loss.backward()
            forward, backward = forward + middle - started, backward + _now(inputs.device) - middle
    started = _now(inputs.device)
    optimizer.step()
    optimizer.zero_grad()
    optimizing = _now(inputs.device) - started
    return forward, backward, optimizing, time.process_time() - had


def _add_hook(model: DistributedDataParallel, hook: str | None) -> None:
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    hooks = {"bf16": default_hooks.bf16_compress_hook, "fp16": default_hooks.fp16_compress_hook}
    if hook is not None:
        model.register_comm_hook(None, hooks[hook])


def backend() -> str:
    """One for all numbers of ranks: times of GPUs and of CPUs can't be compared."""
    return choose_backend(None, MOST_RANKS)


def _now(device: torch.device) -> float:
    _wait_for(device)
    return time.perf_counter()


def _wait_for(device: torch.device) -> None:
    """A GPU works on after the call has returned; without the wait its time is missed."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
