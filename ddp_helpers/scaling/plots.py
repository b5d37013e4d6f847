"""Figures of predictions, with their ranges; `plots/style.py` has their look."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ddp_helpers.plots.colors import GREY, LINES, MARKERS
from ddp_helpers.plots.style import STYLE, new_pair, settle
from ddp_helpers.scaling.records import Prediction, Range

LOG_FROM = 16  # times as many ranks: a linear axis would show the small numbers as one
MOST_MARKERS = 30  # with more on one line they touch


@matplotlib.rc_context(STYLE)
def plot_prediction(
    predictions: Prediction | Mapping[str, Prediction],
    *,
    measured: Mapping[int, float] | None = None,
    measured_label: str = "measured",
    title: str = "Predicted scaling",
    note: str | None = None,
) -> Figure:
    """Samples a second and efficiency against the number of ranks; bands are the ranges.

    Args:
        predictions: of setups whose ranks are an array of one dimension, or {label: prediction}.
        measured: seconds of a real step by number of ranks, drawn as crosses, for the first.
        note: a line under the figure, for instance the machine.

    Raises:
        ValueError: no prediction, or one whose ranks are not a row of at least two numbers.
    """
    named = predictions if isinstance(predictions, Mapping) else {"": predictions}
    if not named:
        raise ValueError("no predictions to plot: expected at least one")
    for label, each in named.items():
        if np.ndim(each.setup.ranks) != 1 or np.shape(each.step.value) != np.shape(
            each.setup.ranks
        ):
            raise ValueError(
                f"prediction {label!r} has {np.shape(each.step.value)} numbers: expected one for "
                "each of several ranks, Setup(ranks=np.array([1, 2, 4]))"
            )
    fig, left, right = new_pair(8.2, 3.6, title, note)
    for at, (label, each) in enumerate(named.items()):
        row = np.asarray(each.setup.ranks)
        _draw(left, row, each.samples_per_second, at, label)
        percent = Range(*(100 * part for part in vars(each.efficiency).values()))
        _draw(right, row, percent, at, label)
    first = next(iter(named.values()))
    ranks = np.asarray(first.setup.ranks)
    one = first.samples_per_second.value / ranks / (first.efficiency.value)
    left.plot(ranks, one * ranks, ":", color=GREY, label="no time lost")
    if measured:
        _draw_measured(left, right, first, measured, measured_label)
    for ax in (left, right):
        ax.set_xscale("log", base=2)
        ax.set_xticks(_some_powers_of_two(ranks))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        ax.set_xlabel("ranks")
    if ranks.max() > LOG_FROM * ranks.min():
        left.set_yscale("log")
        left.yaxis.set_minor_formatter("")
    else:
        left.set_ylim(bottom=0)
    left.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    left.set_ylabel("samples a second")
    right.set(ylabel="efficiency (%)", ylim=(0, 105))
    left.legend(loc="upper left")
    return settle(fig)


def _some_powers_of_two(ranks: np.ndarray) -> list[int]:
    """Six at most: more do not fit under an axis of this size."""
    first, last = np.floor(np.log2(ranks.min())), np.ceil(np.log2(ranks.max()))
    apart = max(1, int(np.ceil((last - first) / 5)))
    return [2**power for power in range(int(first), int(last) + 1, apart)]


def _draw(ax: Axes, ranks: np.ndarray, band: Range, at: int, label: str) -> None:
    marker, size = MARKERS[at % len(MARKERS)], 4 if len(ranks) <= MOST_MARKERS else 0
    color, name = LINES[at % len(LINES)], label or "predicted, with its range"
    ax.fill_between(ranks, band.low, band.high, color=color, alpha=0.25, linewidth=0)
    ax.plot(ranks, band.value, color=color, label=name, marker=marker, markersize=size)


def _draw_measured(
    left: Axes, right: Axes, prediction: Prediction, measured: Mapping[int, float], label: str
) -> None:
    """Crosses in both: their speed, and their efficiency if one rank was measured."""
    setup = prediction.setup
    each = np.broadcast_to(setup.batch_size_per_rank * setup.accumulation_steps, ())
    ranks = np.array(sorted(measured))
    speed = np.array([n * float(each) / measured[n] for n in ranks])
    drawn = [(left, speed)]
    if 1 in measured:
        drawn.append((right, 100 * speed / ranks / speed[0]))
    for ax, values in drawn:
        ax.plot(ranks, values, "x", color=GREY, markersize=8, markeredgewidth=2, label=label)
