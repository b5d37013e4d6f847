"""Stop all ranks at a loss or a gradient that is not finite, before anything of it is saved."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from ddp_helpers.group.lifetime import get_rank, get_world_size
from ddp_helpers.training.objective import Count
from ddp_helpers.training.steps import any_rank

# looking makes the CPU wait for the GPU, and all ranks for the slowest
_LOOK_EVERY = 100

_WAY_OUT = {
    "count": "let f(model, batch) of fit's loss count what its sum is divided by",
    "loss": "look at this batch, lower the learning rate, or clip with max_grad_norm=1.0",
    "gradient": "lower the learning rate, clip with max_grad_norm=1.0, or look for a sqrt, log or "
    "division at 0, whose gradient has no value",
}


class FiniteWatch:
    """Notes each step's numbers where they are, and looks at them now and then.

    All ranks look at the same steps, and stop at the first one at which any of them has found
    something. A nan stays in the weights, so what is seen late is seen all the same.
    """

    def __init__(self, epoch: int, device: torch.device | str) -> None:
        self.epoch, self.device = epoch, device
        self._steps: list[int] = []
        self._values: list[Tensor] = []

    def note(self, step: int, loss: Tensor, size: Tensor | None, count: Count | None) -> None:
        """A step, counted from 1.

        Args:
            loss: of this rank.
            size: of the gradient; None if the step was left out.
            count: of all ranks, which must not be 0; None where that is no mistake.
        """
        numbers = 1 if count is None else count, loss.detach(), 0 if size is None else size
        self._steps.append(step)
        self._values += [
            torch.as_tensor(number, dtype=torch.float64, device=loss.device) for number in numbers
        ]
        if len(self._steps) == _LOOK_EVERY:
            self.look()

    def look(self) -> None:
        """At all steps since the last time; all ranks must look.

        Raises:
            FloatingPointError: some rank's loss, or the gradient, was not finite, or nothing was
                counted. It is raised on every rank, with the same text.
        """
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

    def _first(self) -> tuple[int, int, int, str] | None:
        """The first step of this rank with such a number, which of the three, and what to say."""
        steps, self._steps, values, self._values = self._steps, [], self._values, []
        if not steps:
            return None
        for step, row in zip(steps, torch.stack(values).view(-1, 3).tolist(), strict=True):
            # in this order: a count of 0 makes a nan of all, a rank's nan loss all ranks' gradient
            for order, (name, value) in enumerate(zip(_WAY_OUT, row, strict=True)):
                if math.isfinite(value) and not (name == "count" and value <= 0):
                    continue
                expected = "more than 0" if name == "count" else "a finite number"
                where = " on all ranks together" if name == "count" else ""
                text = f"the {name} is {value:g}{where}: expected {expected}; {_WAY_OUT[name]}"
                return step, order, get_rank(), text
        return None
