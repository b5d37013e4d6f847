"""Times the steps of a training function that knows nothing of it, on one rank.

A step ends with `optimizer.step()`; its samples are the first dimension of the first tensor that
goes into the trained module. After enough steps the function is ended where its next step begins.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
import time
from collections.abc import Callable, Iterator, Sized

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from ddp_helpers.bench.records import Job, Measured
from ddp_helpers.bench.trial_changes import applied
from ddp_helpers.group.lifetime import process_group
from ddp_helpers.ranks.travel import load_function
from ddp_helpers.timeline.record import record_timeline
from ddp_helpers.timeline.records import RankTimeline

SKIPPED = 3  # of the first steps: torch makes DDP's buckets and its caches in them
PROFILED = 3


class _Enough(BaseException):
    """Ends the function; no Exception, so that `except Exception` in it does not hold it up."""


def measure_on_this_rank(job: Job) -> Measured:
    """Run the function until enough steps are measured.

    Raises:
        ValueError: it ended before, or trained without torch's modules and optimizers.
    """
    meter = _Meter(job)
    with contextlib.ExitStack() as stack:
        occasions = stack.enter_context(applied(job.change))
        stack.enter_context(meter.watching())
        function = _model_loop(job) if job.is_model else load_function(job.target)
        with contextlib.suppress(_Enough):
            function()
    if dist.is_initialized():  # the function was ended before its own clean-up
        dist.destroy_process_group()
    return meter.result(tuple(job.change.parts - occasions))


class _Meter:
    def __init__(self, job: Job) -> None:
        self.job = job
        self.root: nn.Module | None = None
        self.optimizer: int | None = None
        self.steps, self.samples, self.stepped = 0, 0, False
        self.started = self.seconds = 0.0
        self.timed_samples = 0
        self.recorder: record_timeline | None = None
        self.timeline: RankTimeline | None = None

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        hooks = [
            register_module_forward_pre_hook(self._before_forward),
            register_optimizer_step_post_hook(self._after_optimizer),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _after_optimizer(self, optimizer: torch.optim.Optimizer, *_: object) -> None:
        self.optimizer = self.optimizer or id(optimizer)
        self.stepped = self.stepped or id(optimizer) == self.optimizer  # of several, the first

    def _before_forward(self, module: nn.Module, args: tuple) -> None:
        """The first module with weights to train is the outermost one: it is called first."""
        if self.root is None and module.training and any(map(_trained, module.parameters())):
            self.root = module
        if module is not self.root or not module.training:
            return
        if self.stepped:
            self.stepped = False
            self._step_ended()
        self.samples += next((len(a) for a in args if isinstance(a, Tensor) and a.ndim), 0)

    def _step_ended(self) -> None:
        self.steps += 1
        if self.steps == SKIPPED:
            self.started, self.samples = _now(), 0
        if self.steps == SKIPPED + self.job.steps:
            self.seconds, self.timed_samples = _now() - self.started, self.samples
            if not self.job.profile:
                raise _Enough
            self.recorder = record_timeline(steps=PROFILED).__enter__()
        elif self.recorder is not None and not self.recorder.step():
            self.recorder.__exit__(None, None, None)
            self.timeline = self.recorder.result()
            raise _Enough

    def result(self, unused: tuple[str, ...]) -> Measured:
        needed = SKIPPED + self.job.steps + (2 + PROFILED) * self.job.profile + 1
        if not self.seconds or (self.job.profile and self.timeline is None):
            raise ValueError(
                f"the function made {self.steps} training steps, bench needs {needed}: train "
                "longer, or use --steps 5; a checkpoint that it went on from leaves fewer, so take "
                "away those of earlier runs. A step is a forward of an nn.Module in training mode, "
                "then optimizer.step() of a torch.optim optimizer"
            )
        rank = int(os.environ.get("RANK", 0))
        steps = self.job.steps
        return Measured(
            rank,
            self.seconds / steps,
            self.timed_samples / steps,
            self.timeline,
            unused,
        )


def _trained(parameter: nn.Parameter) -> bool:
    return parameter.requires_grad


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def _model_loop(job: Job) -> Callable[[], None]:
    """A plain DDP loop around what the factory returns."""
    return lambda: _train(*model_of(job.target), job.batch_size, job.backend)


def model_of(target: str) -> tuple[nn.Module, Dataset, Callable]:
    """What the factory `path/script.py:factory` or `package.module:factory` makes.

    Raises:
        ValueError: it makes something else.
    """
    place, _, name = target.rpartition(":")
    is_file = place.endswith(".py")
    factory = load_function(target) if is_file else getattr(importlib.import_module(place), name)
    made = factory()
    if not isinstance(made, tuple) or len(made) not in (2, 3) or not isinstance(made[0], nn.Module):
        raise ValueError(
            f"{name}() returned {type(made).__name__}, expected (model, dataset), or (model, "
            "dataset, loss): a torch Module, a dataset of (input, target), and loss(output, target)"
        )
    model, dataset, *given = made
    return model, dataset, given[0] if given else nn.functional.cross_entropy


def _train(
    model: nn.Module, dataset: Dataset, loss: Callable, batch_size: int, backend: str | None
) -> None:
    with process_group(backend) as pg:
        ddp = DistributedDataParallel(model.to(pg.device))
        assert isinstance(dataset, Sized)  # the sampler asks for its length, too
        sampler: DistributedSampler = DistributedSampler(dataset)
        loader: DataLoader = DataLoader(dataset, batch_size, sampler=sampler, drop_last=True)
        if len(loader) == 0:
            raise ValueError(
                f"{len(dataset)} samples on {pg.world_size} ranks make no batch of {batch_size}: "
                "use a smaller --batch-size, or a bigger dataset"
            )
        optimizer = torch.optim.SGD(ddp.parameters(), lr=1e-3)
        for epoch in itertools.count():  # until the meter has enough
            sampler.set_epoch(epoch)
            for inputs, targets in loader:
                optimizer.zero_grad()
                loss(ddp(inputs.to(pg.device)), targets.to(pg.device)).backward()
                optimizer.step()
