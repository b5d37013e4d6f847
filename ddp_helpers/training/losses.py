"""Losses as a sum and a count, so that a mean can be taken over all ranks and micro-batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

# torch's own default of ignore_index
_TORCH_IGNORES = -100


class Loss(Protocol):
    """What `train_one_epoch` and `evaluate` need to know of a loss."""

    def sum(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The sum over the terms of a batch, a tensor of no dimensions; never their mean."""

    def count(self, labels: Tensor) -> int:
        """The number of terms in that sum."""

    def counts_samples(self, labels: Tensor) -> bool:
        """True if `count` is the number of samples, always and on every rank.

        Then the ranks need not ask one another how many terms they have together.
        """

    def correct(self, outputs: Tensor, labels: Tensor) -> Tensor | None:
        """How many of the terms were predicted right; None where that has no meaning."""


@dataclass(frozen=True)
class CrossEntropy:
    """Cross-entropy over samples, or over the tokens that count.

    Outputs (N, C) with labels (N), or outputs (N, ..., C) with labels (N, ...). For tokens pass
    `ignore_index`: labels of that value have no loss. Then batches of one length differ in what
    they count, and a mean of their means is not the mean over the tokens.
    """

    ignore_index: int | None = None

    def sum(self, outputs: Tensor, labels: Tensor) -> Tensor:
        if labels.is_floating_point():
            raise ValueError(
                f"labels of type {labels.dtype}, but cross-entropy expects the numbers of classes, "
                "int64: give another loss, such as loss=nn.MSELoss(), or labels.long()"
            )
        outputs = outputs.flatten(0, -2)
        if outputs.dtype in (torch.float16, torch.bfloat16):
            outputs = outputs.float()  # a sum of many terms does not fit into half precision
        ignored = _TORCH_IGNORES if self.ignore_index is None else self.ignore_index
        return F.cross_entropy(outputs, labels.flatten(), reduction="sum", ignore_index=ignored)

    def count(self, labels: Tensor) -> int:
        if self.ignore_index is None:
            return labels.numel()
        return int((labels != self.ignore_index).sum())

    def counts_samples(self, labels: Tensor) -> bool:
        return self.ignore_index is None and labels.ndim == 1

    def correct(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return (outputs.argmax(dim=-1) == labels).sum()  # an ignored label is never an argmax
