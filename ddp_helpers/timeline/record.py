"""Where the time of a training step goes, from torch's profiler: `record_timeline`.

    with record_timeline(steps=3) as timeline:
        for images, labels in loader:
            ...                       # forward, backward, optimizer.step()
            timeline.step()
    return timeline.result()          # a small record; launch(...).values has one a rank

Works with gloo on CPU. With nccl it reads the GPU's kernels: tried with one rank on one GPU; what
several ranks leave is tested on written events.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from types import TracebackType

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile, schedule

from ddp_helpers.arguments import check_whole
from ddp_helpers.timeline.profiler_events import read_events, steps_of
from ddp_helpers.timeline.records import (
    RankTimeline,
)


class record_timeline:
    """Record a few steps of this rank's training loop.

    The profiler itself slows a step of many small operations; compare shares, and take times
    from a run without it. On a GPU each recorded step ends with a synchronize. What a communication
    hook sends from a callback, as PowerSGD does, is not seen: it starts on a thread of gloo, and
    torch records only what starts on threads that the profiler knows.

    Args:
        steps: how many to record.
        skip: steps before them, not recorded. DDP makes its buckets anew after the first step,
            and the profiler warms up in the last one.

    Raises:
        ValueError: steps below 1, or skip below 2.
    """

    def __init__(self, steps: int = 3, skip: int = 2) -> None:
        check_whole("steps", steps, least=1)
        check_whole("skip", skip, least=2)
        self.steps, self.skip, self.done = steps, skip, 0
        on_gpu = torch.cuda.is_initialized()  # a CPU run must not start CUDA
        self._device = f"cuda:{torch.cuda.current_device()}" if on_gpu else "cpu"
        self._profile = profile(
            activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * on_gpu,
            schedule=schedule(wait=skip - 1, warmup=1, active=steps, repeat=1),
            record_shapes=True,  # they tell the size of a bucket
        )

    def __enter__(self) -> record_timeline:
        with without_notes_of_kineto():
            self._profile.start()
        return self

    def step(self) -> bool:
        """Call it after each step. True while more are needed; later calls do nothing."""
        if not self.finished:
            if self._device != "cpu":
                torch.cuda.synchronize()
            self.done += 1
            with without_notes_of_kineto():
                self._profile.step()
        return not self.finished

    @property
    def finished(self) -> bool:
        """True once all steps are recorded."""
        return self.done >= self.skip + self.steps

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with without_notes_of_kineto():
            self._profile.stop()

    def result(self) -> RankTimeline:
        """What was recorded; after the `with`.

        Raises:
            ValueError: the loop ended before all steps were recorded.
        """
        if not self.finished:
            raise ValueError(
                f"{self.done} steps were done, expected {self.skip + self.steps} (skip + steps): "
                "call timeline.step() after each step, record fewer, or loop longer"
            )
        profiler = self._profile.profiler
        assert profiler is not None  # it was started
        assert profiler.kineto_results is not None  # and stopped
        grouped = dist.is_available() and dist.is_initialized()
        return RankTimeline(
            rank=dist.get_rank() if grouped else int(os.environ.get("RANK", 0)),
            world_size=dist.get_world_size() if grouped else int(os.environ.get("WORLD_SIZE", 1)),
            steps=steps_of(read_events(profiler.kineto_results.events())),
            device=self._device,
        )


@contextlib.contextmanager
def without_notes_of_kineto() -> Iterator[None]:
    """Drop the lines `USDT:...` that the profiler's library writes to stderr, and only those."""
    try:
        before = os.dup(2)
    except OSError:  # there is no stderr
        yield
        return
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(before, 2)
            os.close(before)
            caught.seek(0)
            kept = [line for line in caught if not line.startswith(b"USDT:")]
            if kept:
                os.write(2, b"".join(kept))
