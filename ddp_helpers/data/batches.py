"""Batches of any form: what holds the tensors stays, and what is done is done to each tensor."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor


def map_parts(function: Callable[[Any], Any], batch: Any, is_part: Callable[[Any], bool]) -> Any:
    """The same batch with `function` of each part in it; the batch given is left as it is.

    Tuples, named tuples, lists, dicts and dataclasses keep their type, at any depth. Numbers, texts
    and what else is no part stay as they are.
    """
    if is_part(batch):
        return function(batch)
    if isinstance(batch, Mapping):
        values = {name: map_parts(function, value, is_part) for name, value in batch.items()}
        if not isinstance(batch, MutableMapping):
            return values
        same = copy.copy(batch)  # a defaultdict, a UserDict: made anew they would need arguments
        for name, value in values.items():
            same[name] = value
        return same
    if isinstance(batch, tuple | list):
        parts = [map_parts(function, value, is_part) for value in batch]
        make = getattr(batch, "_make", type(batch))  # a named tuple wants its fields one by one
        return make(parts)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        twin = copy.copy(batch)
        for field in dataclasses.fields(batch):
            # past a frozen class's guard, and past __post_init__, which ran when it was made
            value = map_parts(function, getattr(batch, field.name), is_part)
            object.__setattr__(twin, field.name, value)
        return twin
    return batch


def to_device(batch: Any, device: torch.device | str) -> Any:
    """The batch with all its tensors on `device`, as tuples, dicts, dataclasses, at any depth.

    What has a `.to(device)` of its own (a PackedSequence, a batch of graphs) is moved by that.

    Raises:
        ValueError: there is nothing in it to move.
    """
    found: list[Any] = []

    def moved(part: Any) -> Any:
        found.append(part)
        if isinstance(part, Tensor):
            return part.to(device, non_blocking=True)
        return part.to(device)

    same = map_parts(moved, batch, _is_movable)
    if not found:
        raise ValueError(
            f"a batch of the loader is {form_of(batch)}, with no tensor in it: expected tensors in "
            "tuples, lists, dicts or dataclasses; make them in the Dataset or in collate_fn, or "
            "give the batch's class a method .to(device)"
        )
    return same


def empty_like(batch: Any) -> Any:
    """The same tensors with no sample in them; tuples, lists and dicts keep their form."""
    return map_parts(lambda tensor: tensor[:0] if tensor.ndim else tensor, batch, _is_tensor)


def tensors_of(batch: Any) -> list[Tensor]:
    """All tensors of a batch, in their order."""
    found: list[Tensor] = []
    map_parts(found.append, batch, _is_tensor)
    return found


def samples_in(batch: Any) -> int:
    """The length of the first tensor in it.

    Raises:
        ValueError: there is none, or it has no length.
    """
    first = next(iter(tensors_of(batch)), None)
    if first is None or first.ndim == 0:
        raise ValueError(
            f"{form_of(batch)} where a batch of targets was expected: with a tensor whose first "
            "dimension counts the samples"
        )
    return len(first)


def _is_tensor(part: object) -> bool:
    return isinstance(part, Tensor)


def _is_movable(part: object) -> bool:
    return callable(getattr(part, "to", None)) and not isinstance(part, type)


def form_of(thing: object) -> str:
    """What a batch, or what a function returned, is made of: words for an error."""
    if isinstance(thing, Tensor):
        return f"a tensor of shape {tuple(thing.shape)}"
    if isinstance(thing, Mapping):
        return f"a {type(thing).__name__} of {', '.join(map(repr, thing)) or 'nothing'}"
    if isinstance(thing, tuple | list):
        return f"a {type(thing).__name__} of {len(thing)}"
    name = type(thing).__name__
    if isinstance(thing, int | float):
        return f"the {name} {thing}"
    return "None" if thing is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
