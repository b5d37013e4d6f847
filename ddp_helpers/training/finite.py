"""Stop all ranks at a loss or a gradient that is not finite, before anything of it is saved."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from ddp_helpers.group.lifetime import get_rank, get_world_size
from ddp_helpers.training.objective import Count
from ddp_helpers.training.precision import norm
from ddp_helpers.training.steps import any_rank

# looking makes the CPU wait for the GPU, and all ranks for the slowest
_LOOK_EVERY = 100

_WAY_OUT = {
    "count": "let f(model, batch) of fit's loss count what its sum is divided by",
    "loss": "look at this batch, lower the learning rate, or clip with max_grad_norm=1.0",
    "norm of the gradient": "lower the learning rate, clip with max_grad_norm=1.0, or look for a "
    "sqrt, log or division at 0, whose gradient has no value",
    "norm of the weights": "lower the learning rate",
}


class FiniteWatch:
    """Notes each step's numbers where they are, and looks at them now and then.

    All ranks look at the same steps, and stop at the first one at which any of them has found
    something. A nan stays in the weights, so what is seen late is seen all the same.
    """

    def __init__(self, epoch: int, device: torch.device | str) -> None:
        self.epoch, self.device = epoch, device
        self._step = 0
        self._place: torch.device | None = None
        self._notes: list[tuple[int, str]] = []
        self._values: list[Tensor] = []

    def note(self, step: int, loss: Tensor, size: Tensor | None, count: Count | None) -> None:
        """A step, counted from 1.

        Args:
            loss: of this rank.
            size: of the gradient; None if the step was left out.
            count: of all ranks, which must not be 0; None where that is no mistake.
        """
        self._note(step, "loss", loss.detach())
        if count is not None:
            self._note(step, "count", count)
        if size is not None:
            self._note(step, "norm of the gradient", size)
        if step % _LOOK_EVERY == 0:
            self.look()

    def look(self, weights: Iterable[Tensor] | None = None) -> None:
        """At all steps since the last time; all ranks must look.

        Args:
            weights: what is about to be saved.

        Raises:
            FloatingPointError: some rank's loss, the gradient or a weight was not finite, or
                nothing was counted. It is raised on every rank, with the same text.
        """
        if weights is not None:
            self._note(self._step, "norm of the weights", norm(weights))
        found = self._first()
        if any_rank(found is not None, self.device):
            told = [found]
            if get_world_size() > 1:
                told = [None] * get_world_size()
                dist.all_gather_object(told, found)
            step, _, rank, text = min(each for each in told if each is not None)
            raise FloatingPointError(
                f"rank {rank}, epoch {self.epoch + 1}, step {step}: {text}; all ranks stop here, "
                "and no checkpoint holds this step"
            )

    def _note(self, step: int, name: str, value: Tensor | float) -> None:
        self._step = step
        self._notes.append((step, name))
        if isinstance(value, Tensor) and self._place is None:
            self._place = value.device  # they stay there: .item() would wait for the GPU
        self._values.append(torch.as_tensor(value, dtype=torch.float64, device=self._place))

    def _first(self) -> tuple[int, int, int, str] | None:
        """The first step of this rank with such a number, which of them, and what to say."""
        notes, self._notes, values, self._values = self._notes, [], self._values, []
        found = []
        for (step, name), value in zip(
            notes, torch.stack(values).tolist() if values else [], strict=True
        ):
            is_count = name == "count"
            if math.isfinite(value) and not (is_count and value <= 0):
                continue
            expected = "more than 0" if is_count else "a finite number"
            where = " on all ranks together" if is_count else ""
            text = f"the {name} is {value:g}{where}: expected {expected}; {_WAY_OUT[name]}"
            # a count of 0 makes a nan of all that follows, a nan of one rank all ranks' gradient
            found.append((step, [*_WAY_OUT].index(name), get_rank(), text))
        return min(found, default=None)
