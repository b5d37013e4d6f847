"""From measured shares of a step to what bounds it, in words, and what to try."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ddp_helpers.bench.records import Change
from ddp_helpers.timeline.records import (
    COMPUTE,
    DATA,
    EXPOSED,
    OTHER,
    RankTimeline,
    mean_shares,
    waiting_for_the_last,
)

FROM = {EXPOSED: 0.25, DATA: 0.2, OTHER: 0.35}
"""A share from which on this part of a step is worth the first look. Below, it is the compute."""

MOSTLY_LATE = 0.5
"""From this share of the all-reduce time on, a rank waits for a late one more than for messages."""

SCATTER = 0.3
"""From this share of their median on, the fastest and the slowest round are too far apart."""

TOO_GOOD = 1.25
"""From this many times the ranks on, a speed-up tells of the machine and not of the training."""


@dataclass(frozen=True)
class Verdict:
    """What bounds a training, and the changes that usually help against it."""

    kind: str
    """communication-bound, data-bound, overhead-bound or compute-bound."""
    text: str
    advice: tuple[Change, ...]


def judge(timelines: Sequence[RankTimeline], cores: int) -> Verdict:
    """Name the biggest part of a step that is not compute, if it is big enough.

    Raises:
        ValueError: no timelines.
    """
    shares, ranks = mean_shares(timelines), len(timelines)
    on_cpu = timelines[0].device == "cpu"
    over = {kind: shares[kind] / limit for kind, limit in FROM.items() if shares[kind] >= limit}
    kind = max(over, key=over.__getitem__) if over else ""
    if kind == EXPOSED:
        return Verdict("communication-bound", _waiting(timelines, shares), _AGAINST_MESSAGES)
    if kind == DATA:
        free = cores // ranks >= 2 or not on_cpu
        text = f"{shares[DATA]:.0%} of the step waits for the DataLoader"
        if not free:
            text += "; the ranks use all cores, so workers help only if loading waits for a disk"
        return Verdict("data-bound", text, (Change(num_workers=1), Change(num_workers=2)))
    if kind == OTHER:
        text = f"{shares[OTHER]:.0%} of the step is Python between the operations"
        return Verdict("overhead-bound", text, (Change(batch_factor=4),))
    text = f"{sum(shares[kind] for kind in COMPUTE):.0%} of the step is forward, backward and "
    text += f"optimizer; {shares[EXPOSED]:.0%} is exposed all-reduce"
    if on_cpu and ranks >= cores:
        text += f". {ranks} ranks on {cores} cores: more ranks bring no more cores"
    return Verdict("compute-bound", text, _AGAINST_COMPUTE[: 1 if ranks == 1 else 2])


def beyond_ranks(rates: Mapping[int, Sequence[float]]) -> str:
    """A word on speed-ups above the number of ranks, which no ranks can bring; else nothing."""
    gains = _gains(rates)
    least = min(rates)
    above = [n for n, gain in gains.items() if gain > n / least]
    if not above:
        return ""
    times = ", ".join(f"{gains[n]:.2f} on {n}" for n in above)
    return (
        f"note: faster than the ranks can make it ({times}): the runs on {least} were held up by "
        "something else, or a rank's share fits a cache. Measure again on a quiet machine"
    )


def not_to_judge(rates: Mapping[int, Sequence[float]]) -> str:
    """Why these rounds say nothing about the training; empty if they do.

    Args:
        rates: samples a second of each round, by number of ranks.
    """
    for n, each in rates.items():
        middle = statistics.median(each)
        if (max(each) - min(each)) / middle > SCATTER:
            return (
                f"the rounds on {n} rank{'s' * (n > 1)} scatter too much: {min(each):.1f} to "
                f"{max(each):.1f} samples/s. Something else uses this machine: measure again when "
                "it is quiet, or with more --steps and --rounds"
            )
    least = min(rates)
    for n, gain in _gains(rates).items():
        if gain > TOO_GOOD * n / least:
            return (
                f"{gain:.2f} times as fast on {n} ranks as on {least} is no speed-up of {n} ranks"
            )
    return ""


def _gains(rates: Mapping[int, Sequence[float]]) -> dict[int, float]:
    middles = {n: statistics.median(each) for n, each in rates.items()}
    return {n: middle / middles[min(rates)] for n, middle in middles.items()}


def _waiting(timelines: Sequence[RankTimeline], shares: dict[str, float]) -> str:
    text = f"{shares[EXPOSED]:.0%} of the step is all-reduce that nothing hides"
    late = waiting_for_the_last(timelines)
    if late >= MOSTLY_LATE:
        text += f"; {late:.0%} of the all-reduce time a rank waits for the last one to start"
    return text


_AGAINST_MESSAGES = (
    Change(batch_factor=4),
    Change(accumulate=4),
    Change(compress=True),
    Change(bucket_cap_mb=4),
    Change(gradient_as_bucket_view=True),
)
_AGAINST_COMPUTE = (Change(batch_factor=2), Change(gradient_as_bucket_view=True))
