"""What a rank got from its loaders, batch by batch, as it travels to the run on one rank."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass, field


@dataclass
class Noted:
    """One batch that a rank got."""

    keys: list | None
    """Indices; None for a stream."""
    samples: bytes
    """As the dataset gave them, packed."""
    listed: bool
    """A list of samples; otherwise the dataset gives whole batches."""


@dataclass
class NotedPass:
    """One pass over a loader."""

    batches: list[Noted] = field(default_factory=list)
    complete: bool = False
    length: int | None = None
    """len() of the loader."""
    samples: int | None = None
    """len() of its dataset."""
    uneven: bool = False
    """The last batch is smaller, or filled up."""
    padded: bool = False
    """By a DistributedSampler: some samples are there twice."""


def length_of(thing: object) -> int | None:
    """Its length, None where it has none or does not tell."""
    try:
        return len(thing) if isinstance(thing, Sized) else None
    except TypeError:  # a stream may have a len() that refuses to answer
        return None
