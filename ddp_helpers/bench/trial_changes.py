"""Changes that `bench` tries on a training function without touching its text."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader
from torch.utils.hooks import RemovableHandle

from ddp_helpers.bench.records import Change
from ddp_helpers.evidence.patches import Patches


@contextlib.contextmanager
def applied(change: Change) -> Iterator[set[str]]:
    """Within it DDP and DataLoader are made with the change.

    Yields:
        The parts that had an occasion, filled while the function runs.
    """
    occasions = {"threads_per_rank"} & change.parts  # launch() sets those
    wrapped: list[DistributedDataParallel] = []
    patches = Patches()
    patches.on_undo(_averages_every(change.accumulate, wrapped).remove)
    patches.put(
        DistributedDataParallel, "__init__", lambda own: _ddp_with(own, change, occasions, wrapped)
    )
    patches.put(DataLoader, "__init__", lambda own: _loader_with(own, change, occasions))
    try:
        yield occasions
    finally:
        patches.undo()


def send_bfloat16(_, bucket):  # torch refuses annotations that are text
    """As torch's bf16_compress_hook, which refuses to work without NCCL."""
    small = bucket.buffer().to(torch.bfloat16).div_(dist.get_world_size())
    sent = dist.all_reduce(small, async_op=True).get_future()
    return sent.then(lambda done: bucket.buffer().copy_(done.value()[0]))


def _ddp_with(
    init: Callable, change: Change, occasions: set[str], wrapped: list[DistributedDataParallel]
) -> Callable:
    options = {
        name: getattr(change, name)
        for name in ("bucket_cap_mb", "gradient_as_bucket_view")
        if name in change.parts
    }

    def with_options(self: DistributedDataParallel, *args: object, **kwargs: object) -> None:
        init(self, *args, **kwargs | options)
        wrapped.append(self)
        occasions.update(change.parts & {*options, "accumulate"})
        if change.compress and not any(self._comm_hooks):
            self.register_comm_hook(None, send_bfloat16)
            occasions.add("compress")

    return with_options


def _loader_with(init: Callable, change: Change, occasions: set[str]) -> Callable:
    def with_options(
        self: DataLoader, dataset: object, batch_size: int | None = 1, *args: object, **kwargs
    ) -> None:
        if change.batch_factor > 1 and batch_size and kwargs.get("batch_sampler") is None:
            batch_size *= change.batch_factor
            occasions.add("batch_factor")
        if change.num_workers is not None:
            kwargs["num_workers"] = change.num_workers
            kwargs["persistent_workers"] = change.num_workers > 0
            kwargs["multiprocessing_context"] = "forkserver" if change.num_workers else None
            occasions.add("num_workers")
        init(self, dataset, batch_size, *args, **kwargs)

    return with_options


def _averages_every(steps: int, wrapped: list[DistributedDataParallel]) -> RemovableHandle:
    done = 0

    def after_step(*_: object) -> None:
        nonlocal done
        done += 1
        for ddp in wrapped if steps > 1 else ():
            ddp.require_backward_grad_sync = done % steps == 0

    return register_optimizer_step_post_hook(after_step)
