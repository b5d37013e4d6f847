"""Questions to the autograd graph under a loss; nothing here computes, keeps or frees any of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any  # of a node whose `_saved_...` only C++ knows

import torch
from torch.autograd.graph import Node

from ddp_helpers.torch_private import SAVED_DATA

LARGEST = 1 << 62  # a parameter's node has no number of its own but the largest one
MOST_NODES, MOST_TERMS = 200, 16
_SCALES = ("MulBackward0", "MulBackward1", "DivBackward0", "DivBackward1")
_SUMS = ("AddBackward0", "AddBackward1", "SubBackward0", "SubBackward1")
_PASSED = (
    "ToCopyBackward0",
    "ViewBackward0",
    "UnsafeViewBackward0",
    "SqueezeBackward0",
    "SqueezeBackward1",
    "UnsqueezeBackward0",
    "CloneBackward0",
    "AliasBackward0",
    "_DDPSinkBackward",
)
_LOSSES = (
    "MseLossBackward0",
    "BinaryCrossEntropyBackward0",
    "BinaryCrossEntropyWithLogitsBackward0",
    "SmoothL1LossBackward0",
    "HuberLossBackward0",
)
MEAN = 1  # torch's number for reduction="mean"


@dataclass(frozen=True)
class Term:
    """One part of a loss: over how many elements it goes, and what each of them weighs."""

    count: int
    weight: float


def number_of(tensor: torch.Tensor) -> int | None:
    """The number of the operation that made a tensor; it grows with each one."""
    return None if tensor.grad_fn is None else tensor.grad_fn._sequence_nr()


def reached(roots: Sequence[torch.Tensor], wanted: set[int]) -> set[int]:
    """Which of the operations with these numbers the roots depend on.

    An operation has a larger number than those it builds on, so the search stays above the
    lowest one wanted: under a loss it is short, whatever the size of the model.
    """
    if not wanted:
        return set()
    lowest = min(wanted)
    found: set[int] = set()
    seen: set[int] = set()
    ahead = [root.grad_fn for root in roots]
    while ahead and len(found) < len(wanted):
        node = ahead.pop()
        if node is None:
            continue
        number = node._sequence_nr()
        if number < lowest or number >= LARGEST or number in seen:
            continue
        seen.add(number)
        if number in wanted:
            found.add(number)
        ahead += [child for child, _ in node.next_functions]
    return found


def leaves(roots: Sequence[torch.Tensor]) -> set[int]:
    """The ids of all parameters under these roots; walks the whole graph."""
    found: set[int] = set()
    seen: set[int] = set()
    ahead = [root.grad_fn for root in roots]
    while ahead:
        node = ahead.pop()
        if node is None:
            continue
        if (variable := getattr(node, "variable", None)) is not None:
            found.add(id(variable))
            continue
        number = node._sequence_nr()
        if number not in seen:
            seen.add(number)
            ahead += [child for child, _ in node.next_functions]
    return found


def loss_terms(root: torch.Tensor, scale: float = 1.0) -> list[Term]:
    """The means and sums that a loss is built of, each with the weight of one of its elements.

    `mean over 8 elements, times 0.5` is Term(8, 0.0625). Where an operation is not understood,
    the search ends there, and nothing is said of what lies below.
    """
    found: list[Term] = []
    ahead: list[_Below] = []
    if root.numel() == 1:
        ahead.append((root.grad_fn, root.output_nr, scale))
    for _ in range(MOST_NODES):
        if not ahead or len(found) == MOST_TERMS:
            break
        node, output, weight = ahead.pop(0)
        if node is None:
            continue
        if (term := _term(node, weight)) is not None:
            found.append(term)
        else:
            ahead += _below(node, output, weight)
    return found


_Below = tuple[Node | None, int, float]


def _below(node: Node, output: int, weight: float) -> list[_Below]:
    """What a node hands the gradient on to, with the weight that it has there."""
    name, children = node.name().rpartition("::")[2], node.next_functions
    if name in _SUMS:
        sign = -1 if name.startswith("Sub") else 1
        factors = (1.0, sign * float(getattr(node, "_saved_alpha", 1)))
        return [(*child, weight * f) for child, f in zip(children, factors, strict=False)]
    if name == "NegBackward0":
        return [(*children[0], -weight)]
    if name in _SCALES:
        return _scaled(node, name, weight)
    if name in _PASSED and len(children) > output:
        return [(*children[output], weight)]
    return []


def _scaled(node: Node, name: str, weight: float) -> list[_Below]:
    children = node.next_functions
    with_gradient = [i for i, (child, _) in enumerate(children) if child is not None]
    if len(with_gradient) != 1:
        return []
    which = with_gradient[0]
    factor = _number(saved(node, "self" if which else "other"))
    if factor is None or (name.startswith("Div") and (which or not factor)):
        return []
    return [(*children[which], weight / factor if name.startswith("Div") else weight * factor)]


def _term(node: Any, weight: float) -> Term | None:
    name = node.name()
    if name in ("NllLossBackward0", "NllLoss2DBackward0"):
        target, ignored = saved(node, "target"), _signed(node._saved_ignore_index)
        if not isinstance(target, torch.Tensor):
            return None
        return _reduced(node, int((target != ignored).sum()), weight)
    if name in _LOSSES:
        return _reduced(node, _input_size(node), weight)
    if name == "MeanBackward0":
        count = int(node._saved_self_sym_numel)
        return Term(count, weight / count) if count else None
    if name == "SumBackward0":
        return Term(math.prod(int(size) for size in node._saved_self_sym_sizes), weight)
    return None


def _reduced(node: Any, count: int, weight: float) -> Term | None:
    if not count:
        return None
    return Term(count, weight / count if node._saved_reduction == MEAN else weight)


def _input_size(node: Any) -> int:
    child, output = next(pair for pair in node.next_functions if pair[0] is not None)
    return math.prod(child._input_metadata[output].shape)


def saved(node: object, name: str) -> object:
    """What a node keeps for its backward, as it lies there.

    Asking for `_saved_...` would unpack it, and a checkpointed layer may be unpacked only once.
    """
    raw = getattr(node, f"_raw_saved_{name}", None)
    if raw is None:
        return getattr(node, f"_saved_{name}", None)
    SAVED_DATA.get()
    return raw.data


def _number(value: object) -> float | None:
    if isinstance(value, torch.Tensor):
        return float(value) if value.numel() == 1 else None
    return float(value) if isinstance(value, int | float) else None


def _signed(number: int) -> int:
    return number - (1 << 64) if number >= 1 << 63 else number
