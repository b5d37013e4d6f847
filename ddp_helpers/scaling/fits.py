"""Fits of the cost model that outliers of a busy machine do not bend, each with its error."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ddp_helpers.scaling.formulas import ring
from ddp_helpers.scaling.records import Link

RESAMPLES = 200
REWEIGHTINGS = 30  # the weights have settled long before
LEAST_RESIDUAL = 1e-3  # as a share: a point that is met better would get an endless weight
MOST_ERROR = 0.9  # a fit that is off by more says nothing; a Link asks for a share below 1


def fit_link(name: str, points: Sequence[tuple[int, int, float]], source: str = "") -> Link:
    """The latency and bandwidth with which ring all-reduce takes the measured times.

    Least sum of absolute relative residuals, so that small messages count as much as big ones and
    one slow call counts little. The errors are the larger of two: half of the 90 % interval of
    200 fits to resampled points (B. Efron, "Bootstrap methods", Ann. Statist. 7, 1979), and the
    median residual, as a straight line is not the whole truth.

    Args:
        points: (ranks, bytes, seconds) of single calls or their medians; ranks of at least 2.

    Raises:
        ValueError: fewer than two sizes, a time that is not above 0, or times that shrink as
            messages grow.
    """
    if len({size for _, size, _ in points}) < 2:
        raise ValueError(f"{len(points)} points: expected times of two message sizes or more")
    table = np.array(points, dtype=float)
    if table[:, 0].min() < 2 or table[:, 2].min() <= 0:
        raise ValueError("expected ranks of at least 2 and times above 0 s in every point")
    cost = ring(table[:, 0], 1.0, 1.0)
    columns = np.stack([cost.fixed, cost.per_byte * table[:, 1]], axis=1)
    latency, per_byte = robust_fit(columns, table[:, 2])
    if not latency + per_byte > 0 or per_byte <= 0:
        raise ValueError("times do not grow with the message: measure bigger messages, or again")
    left = np.abs(columns @ (latency, per_byte) / table[:, 2] - 1)
    spread = bootstrap(lambda rows: robust_fit(columns[rows], table[rows, 2]), len(table))
    values = np.array([latency, per_byte])
    off = np.maximum(spread / np.maximum(values, 1e-12), np.median(left))  # a latency may be 0
    off = np.clip(off, 0.0, MOST_ERROR)
    return Link(name, float(latency), float(1 / per_byte), float(off[0]), float(off[1]), source)


def robust_fit(
    columns: np.ndarray, times: np.ndarray, scale: np.ndarray | None = None
) -> np.ndarray:
    """Weights of the columns, none below 0, with the least sum of |fit - time| / scale.

    Least squares over and over, each row weighted by 1/|its residual| (E. Schlossmacher, "An
    iterative technique for absolute deviations curve fitting", J. Am. Stat. Assoc. 68, 1973).

    Args:
        scale: what an error is measured against; by default the time itself.
    """
    scale = times if scale is None else scale
    scaled, right = columns / scale[:, None], times / scale
    weights = np.ones(len(times))
    for _ in range(REWEIGHTINGS):
        root = np.sqrt(weights)
        found = _not_negative(scaled * root[:, None], right * root)
        weights = 1 / np.maximum(np.abs(scaled @ found - right), LEAST_RESIDUAL)
    return found


def bootstrap(fit: Callable[[np.ndarray], np.ndarray], rows: int, seed: int = 0) -> np.ndarray:
    """Half the width of the 90 % interval of each fitted value."""
    random = np.random.default_rng(seed)
    found = [fit(random.integers(0, rows, rows)) for _ in range(RESAMPLES)]
    low, high = np.quantile(np.array(found), (0.05, 0.95), axis=0)
    return (high - low) / 2


def fit_batches(times: dict[int, Sequence[float]]) -> tuple[float, float, float]:
    """(seconds a batch, seconds a sample, error as a share) from times of several batch sizes.

    Raises:
        ValueError: no times.
    """
    if not times:
        raise ValueError("no times of batches: expected those of one batch size or more")
    sizes = np.array([size for size, each in times.items() for _ in each], dtype=float)
    seconds = np.concatenate([np.asarray(each, dtype=float) for each in times.values()])
    both = len(times) > 1
    columns = np.stack([np.ones_like(sizes), sizes], axis=1)[:, 0 if both else 1 :]
    found = robust_fit(columns, seconds)
    per_batch, per_sample = found if both else (0.0, found[0])
    left = np.abs(columns @ found / seconds - 1)
    return float(per_batch), float(per_sample), float(min(np.median(left) * 2, MOST_ERROR))


def spread(times: Sequence[float]) -> float:
    """Standard deviation of an undisturbed rank's times, as a share of them.

    From the lower end alone, as other programs stretch the upper one: a normal distribution's
    quantiles at 10 % and 40 % are 1.028 standard deviations apart.
    """
    low, middle = np.quantile(np.asarray(times, dtype=float), (0.1, 0.4))
    return float((middle - low) / 1.028 / middle)


def _not_negative(columns: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Least squares with no weight below 0; there are two columns at most."""
    found, *_ = np.linalg.lstsq(columns, right, rcond=None)
    if found.min() >= 0:
        return found
    alone = []
    for at in range(columns.shape[1]):
        weight = max(columns[:, at] @ right / (columns[:, at] @ columns[:, at]), 0.0)
        one = np.zeros(columns.shape[1])
        one[at] = weight
        alone.append((float(np.sum((columns @ one - right) ** 2)), at, one))
    return min(alone)[2]
