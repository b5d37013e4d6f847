"""What `fit` can be given as a loss or as metrics, brought to one form: sums and counts of a batch.

A mean over ranks and micro-batches can be taken from sums and counts only: a mean of their means
is another number wherever their shares differ.
"""

from __future__ import annotations

import copy
import functools
import inspect
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddp_helpers.data.batches import form_of, samples_in, tensors_of
from ddp_helpers.training.losses import Loss

Count = float | Tensor
AnyLoss = Loss | Callable[..., Any]
"""CrossEntropy(), nn.MSELoss(), f(outputs, targets), or f(model, batch) -> (sum, count)."""
Metrics = Callable[[nn.Module, Any], Mapping[str, tuple[Count, Count]]]

_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss)


@dataclass(frozen=True)
class Terms:
    """What a loss found in one batch of this rank."""

    sum: Tensor
    count: Count
    """What the sum of all ranks is divided by: samples, tokens, weights."""
    right: Tensor | None = None
    """Of a classification: how many labels were predicted right, ..."""
    judged: Count = 0
    """... out of how many."""


class Objective(Protocol):
    """A loss as the loop sees it."""

    def __call__(self, model: nn.Module, batch: Any, *, judge: bool = False) -> Terms:
        """The terms of a batch; with `judge` also what was predicted right."""

    def count_ahead(self, window: Sequence[Any]) -> Count | None:
        """The count of some batches without a forward; None if only a forward can tell."""

    def counts_samples(self, batch: Any) -> bool:
        """True if the count is the number of samples, always and on every rank."""

    nothing_is_an_error: bool
    """Whether a step in which no rank counts anything is a mistake."""


def as_objective(loss: AnyLoss | Objective) -> Objective:
    """The one form of a loss.

    Raises:
        ValueError: it is none of the forms, or one that can't be exact over several ranks.
    """
    if isinstance(loss, _Labelled | _Criterion | _OfBatch):
        return loss
    if callable(getattr(loss, "sum", None)) and callable(getattr(loss, "count", None)):
        return _Labelled(loss)  # type: ignore[arg-type]  # it has what the protocol asks for
    if not callable(loss):
        raise ValueError(
            f"loss={loss!r}: expected CrossEntropy(), a loss of torch.nn such as nn.MSELoss(), a "
            "function of (outputs, targets), or a function of (model, batch) that returns "
            "(sum, count)"
        )
    if isinstance(loss, type):
        raise ValueError(f"loss={loss.__name__}: it is the class; give one: {loss.__name__}()")
    if _takes_model_and_batch(loss):
        return _OfBatch(loss)
    return _Criterion(_exact(loss))


@dataclass(frozen=True)
class _Labelled:
    """A `Loss`: it counts from the labels alone, before any forward."""

    loss: Loss
    nothing_is_an_error = False

    def __call__(self, model: nn.Module, batch: Any, *, judge: bool = False) -> Terms:
        inputs, labels = pair_of(batch)
        outputs = model(inputs)
        count = self.loss.count(labels)
        right = self.loss.correct(outputs, labels) if judge else None
        return Terms(self.loss.sum(outputs, labels), count, right, count)

    def count_ahead(self, window: Sequence[Any]) -> Count | None:
        return sum(self.loss.count(pair_of(batch)[1]) for batch in window)

    def counts_samples(self, batch: Any) -> bool:
        return self.loss.counts_samples(pair_of(batch)[1])


@dataclass(frozen=True)
class _OfBatch:
    """f(model, batch) -> (sum, count): any batch, any model."""

    function: Callable[[nn.Module, Any], Any]
    nothing_is_an_error = True

    def __call__(self, model: nn.Module, batch: Any, *, judge: bool = False) -> Terms:
        value, count = _sum_and_count("loss", self.function(model, batch))
        if not isinstance(value, Tensor):
            raise ValueError(
                f"loss returned {form_of(value)} as its sum: expected a tensor, which has a "
                "gradient; sum with .sum(), not with .item() or NumPy"
            )
        return Terms(value, count)

    def count_ahead(self, window: Sequence[Any]) -> Count | None:
        return None

    def counts_samples(self, batch: Any) -> bool:
        return False


@dataclass(frozen=True)
class _Criterion:
    """f(outputs, targets): a loss of torch.nn, or a function of one's own."""

    function: Callable[[Any, Any], Any]
    nothing_is_an_error = False

    def __call__(self, model: nn.Module, batch: Any, *, judge: bool = False) -> Terms:
        inputs, targets = pair_of(batch)
        outputs = model(inputs)
        if isinstance(self.function, _CLASSES):
            return _of_classes(self.function, outputs, targets)
        try:
            value = self.function(outputs, targets)
        except Exception as error:
            error.add_note(
                f"loss={_name_of(self.function)} was called as f(outputs, targets); one that does "
                "the forward itself is told by the names of its parameters, (model, batch)"
            )
            raise
        if not isinstance(value, Tensor):
            raise ValueError(
                f"loss={_name_of(self.function)} of (outputs, targets) returned {form_of(value)}: "
                "expected a tensor, the loss of each sample or their mean; one that returns "
                "(sum, count) takes (model, batch), by these names"
            )
        if value.ndim:
            return Terms(_wide(value).sum(), value.numel())
        samples = samples_in(targets)
        if samples == 0:  # a mean of nothing is a nan; a sum of nothing is 0, and has a gradient
            value = sum(part.sum() for part in tensors_of(outputs)) * 0.0
        return Terms(_wide(value) * samples, samples)

    def count_ahead(self, window: Sequence[Any]) -> Count | None:
        return None

    def counts_samples(self, batch: Any) -> bool:
        return False


def pair_of(batch: Any) -> tuple[Any, Any]:
    """The inputs and the labels of a batch.

    Raises:
        ValueError: it has another form.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(
            f"a batch of the loader is {form_of(batch)}, but this loss expects (inputs, targets): "
            "for any other batch give loss=f with f(model, batch) -> (sum, count)"
        )
    return batch[0], batch[1]


def metric_sums(metrics: Metrics, model: nn.Module, batch: Any) -> dict[str, tuple[Count, Count]]:
    """What `metrics` found in one batch.

    Raises:
        ValueError: it did not return a dict of pairs.
    """
    found = metrics(model, batch)
    if not isinstance(found, Mapping):
        raise ValueError(
            f'metrics returned {form_of(found)}: expected a dict such as {{"error": (sum, count)}}'
        )
    return {str(name): _sum_and_count(f'metrics["{name}"]', pair) for name, pair in found.items()}


def check_gradient(total: Tensor) -> None:
    """Refuse a loss that no weight can learn from.

    Raises:
        ValueError: it has no gradient.
    """
    if not total.requires_grad:
        raise ValueError(
            "the loss has no gradient: expected a tensor that was computed from the model's "
            "weights; leave out .detach(), .item() and no_grad(), and let some weight be trained"
        )


def _takes_model_and_batch(function: Callable[..., Any]) -> bool:
    """Told by the names of its parameters: nothing else tells it from f(outputs, targets)."""
    names = _parameters(function)[:2]
    return not isinstance(function, nn.Module) and ("model" in names[:1] or "batch" in names[1:])


def _reduces(function: Callable[..., Any]) -> bool:
    return "reduction" in _parameters(function)


def _parameters(function: Callable[..., Any]) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # a function in C
        return []


def _exact(criterion: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """The same criterion, giving each term: their mean could not be joined with others'."""
    if criterion is F.cross_entropy or criterion is F.nll_loss:
        criterion = nn.CrossEntropyLoss() if criterion is F.cross_entropy else nn.NLLLoss()
    reduction = getattr(criterion, "reduction", "mean")
    ours = type(criterion).__module__.startswith("torch.nn.")
    if ours and reduction not in ("mean", "none"):
        raise ValueError(
            f'loss={type(criterion).__name__}(reduction="{reduction}"): fit divides by what all '
            'ranks have counted; use reduction="mean", or a function of (model, batch) that '
            "returns (sum, count)"
        )
    if ours and hasattr(criterion, "reduction"):
        criterion = copy.copy(criterion)
        criterion.reduction = "none"
    elif getattr(criterion, "__module__", "") == F.__name__ and _reduces(criterion):
        criterion = functools.partial(criterion, reduction="none")
    return criterion


def _of_classes(criterion: Callable[..., Any], outputs: Tensor, targets: Tensor) -> Terms:
    """Cross-entropy divides by the weights of the labels that count, not by the number of terms."""
    values = _wide(criterion(outputs, targets))
    if targets.is_floating_point():  # probabilities of the classes
        return Terms(values.sum(), values.numel())
    kept = targets != criterion.ignore_index  # type: ignore[attr-defined]
    weight = criterion.weight  # type: ignore[attr-defined]
    count = kept.sum() if weight is None else weight[targets[kept]].double().sum()
    classes = outputs.argmax(1 if targets.ndim else 0)
    return Terms(values.sum(), count, ((classes == targets) & kept).sum(), kept.sum())


def _sum_and_count(what: str, found: Any) -> tuple[Count, Count]:
    if not isinstance(found, tuple | list) or len(found) != 2:
        raise ValueError(
            f"{what} returned {form_of(found)}: expected a pair (sum, count), the sum over this "
            "batch and what the sum over all ranks is to be divided by, such as len(batch)"
        )
    value, count = found
    if not isinstance(count, numbers.Real | Tensor):
        raise ValueError(f"{what} returned {form_of(count)} as its count: expected a number")
    if not isinstance(value, numbers.Real | Tensor):
        raise ValueError(f"{what} returned {form_of(value)} as its sum: expected a number")
    value = _scalar(what, "sum", value) if isinstance(value, Tensor) else float(value)
    if isinstance(count, Tensor):
        return value, _scalar(what, "count", count.detach())
    count = float(count)
    if not 0 <= count < math.inf:
        raise ValueError(f"{what} returned the count {count:g}: expected a number, at least 0")
    return value, count


def _scalar(what: str, part: str, value: Tensor) -> Tensor:
    if value.numel() != 1:
        raise ValueError(
            f"{what} returned {form_of(value)} as its {part}: expected one number; sum with .sum()"
        )
    return _wide(value).reshape(())


def _wide(value: Tensor) -> Tensor:
    """A sum of many terms does not fit into half precision."""
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


def _name_of(function: object) -> str:
    return getattr(function, "__name__", type(function).__name__)
