"""Samples and batches of any nesting: united, counted, and told apart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from ddp_helpers.sanitizer.compare.samples import RICH, leaves


def different_part(theirs: Any, first: Any, again: Any) -> str:
    """In words, a part of a sample that is another one there, while its data are the same.

    Args:
        theirs: the sample of another rank.
        first, again: the same sample here, fetched twice: what differs between them is drawn.
    """
    parts = [_parts(tree) for tree in (theirs, first, again)]
    if len({len(part) for part in parts}) != 1:
        return ""
    rich_alike, told = False, ""
    for number, (there, here, second) in enumerate(zip(*parts, strict=True)):
        if not _same(here, second):
            return ""  # somebody draws
        if _same(there, here):
            rich_alike = rich_alike or there.numel() >= RICH or there.is_floating_point()
        elif not told:
            values = [_short(value) for value in (there, here)]
            told = f"{values[0]} in place of {values[1]} as its part {number + 1}"
    return told if rich_alike else ""


def _parts(tree: Any) -> list[torch.Tensor]:
    if isinstance(tree, bool | int | float):
        return [torch.tensor(tree)]
    if isinstance(tree, dict):
        return [leaf for value in tree.values() for leaf in _parts(value)]
    if isinstance(tree, list | tuple):
        return [leaf for value in tree for leaf in _parts(value)]
    return list(leaves(tree))


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and bool(torch.equal(one, other))


def _short(value: torch.Tensor) -> str:
    return f"{value.item():g}" if value.numel() == 1 else f"other values {tuple(value.shape)}"


def join(parts: list) -> Any:
    """Batches of one form as one batch: tensors one below the other."""
    first = parts[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(parts) if first.ndim else torch.stack(parts).sum()
    if isinstance(first, dict):
        return {key: join([part[key] for part in parts]) for key in first}
    if isinstance(first, list | tuple):
        columns = [join(list(column)) for column in zip(*parts, strict=True)]
        return type(first)(*columns) if hasattr(first, "_fields") else type(first)(columns)
    return first


def rows_of(batch: Any) -> int:
    found = next(iter(leaves(batch)), None)
    return len(found) if found is not None and found.ndim else 1


def hashable(key: Any) -> Any:
    if isinstance(key, torch.Tensor):
        return key.item() if key.numel() == 1 else tuple(key.flatten().tolist())
    return tuple(map(hashable, key)) if isinstance(key, list | tuple) else key


def in_order(keys: Iterable) -> list[str]:
    """Indices that two runs can be compared by, whatever they are."""
    return sorted(repr(hashable(key)) for key in keys)
