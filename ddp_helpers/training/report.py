"""What a training run prints: on rank 0 only, however many ranks there are."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ddp_helpers.arguments import check_whole
from ddp_helpers.group.lifetime import get_rank
from ddp_helpers.training.records import EpochRecord


def print_epoch(record: EpochRecord, epochs: int) -> None:
    """One line an epoch."""
    if get_rank() != 0:
        return
    ranks = f"{record.world_size} rank{'s' if record.world_size > 1 else ''}"
    told = [f"train loss {record.train_loss:.3f}", f"test loss {record.test_loss:.3f}"]
    if record.test_accuracy is not None:
        told.append(f"test accuracy {record.test_accuracy:.1%}")
    told += [f"{name} {value:.3f}" for name, value in record.metrics.items()]
    print(
        f"epoch {record.epoch + 1}/{epochs}  {'  '.join(told)}  "
        f"{record.seconds:.1f} s  {record.samples_per_second:,.0f} samples/s  ({ranks})",
        flush=True,
    )


def print_progress(every: int = 50) -> Callable[[int, int, Tensor], None]:
    """A `progress` for `fit`: a line each `every` steps and at the end of each epoch.

    The loss is rank 0's own. Reading it waits for the GPU, so don't print each step.

    Raises:
        ValueError: every below 1.
    """
    check_whole("every", every, least=1)

    def progress(step: int, steps: int, loss: Tensor) -> None:
        if get_rank() == 0 and (step % every == 0 or step == steps):
            print(f"step {step}/{steps}  loss of rank 0 {loss.item():.3f}", flush=True)

    return progress
