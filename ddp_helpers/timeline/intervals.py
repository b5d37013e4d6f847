"""Arithmetic on sets of time: which parts are in one, in both, in one but not in the other.

A set is a sequence of (start, stop) pairs in any order, which may overlap; a pair that doesn't
stop after it starts has no length and is left out. Results are sorted, and touch nowhere.
"""

from __future__ import annotations

from collections.abc import Iterable

Interval = tuple[int, int]
"""From start to stop, in nanoseconds: whole numbers, so that lengths add up exactly."""


def union(*sets: Iterable[Interval]) -> list[Interval]:
    """Time that is in at least one of the sets."""
    merged: list[Interval] = []
    for start, stop in sorted(pair for one in sets for pair in one if pair[0] < pair[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
        else:
            merged.append((start, stop))
    return merged


def intersection(one: Iterable[Interval], other: Iterable[Interval]) -> list[Interval]:
    """Time that is in both sets."""
    left, right = union(one), union(other)
    both: list[Interval] = []
    i = j = 0
    while i < len(left) and j < len(right):
        start, stop = max(left[i][0], right[j][0]), min(left[i][1], right[j][1])
        if start < stop:
            both.append((start, stop))
        if left[i][1] < right[j][1]:
            i += 1
        else:
            j += 1
    return both


def difference(one: Iterable[Interval], other: Iterable[Interval]) -> list[Interval]:
    """Time that is in the first set and not in the second."""
    left = union(one)
    if not left:
        return []
    first, last = left[0][0], left[-1][1]
    gaps, at = [], first
    for start, stop in union(other):
        gaps.append((at, start))
        at = max(at, stop)
    return intersection(left, [*gaps, (at, last)])


def length(intervals: Iterable[Interval]) -> int:
    """How long the set is; time that is in it twice counts once."""
    return sum(stop - start for start, stop in union(intervals))
