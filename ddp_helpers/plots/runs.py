"""Figures of measured runs, drawn from records and files only; `style.py` has their look."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from ddp_helpers.plots.colors import BLUE, FILLS, GREY, LINES, MARKERS, SKY, VERMILLION
from ddp_helpers.plots.style import STYLE, Look, look, new_figure, new_pair, rank_rows, settle

MOST_TURNS = 40  # of samples: with more, a square is too narrow for its number
_REPEATED_LINE = 2.5


class Epoch(Protocol):
    """What is read of a record of one epoch; `training.EpochRecord` has it all."""

    @property
    def epoch(self) -> int: ...
    @property
    def train_loss(self) -> float: ...
    @property
    def test_loss(self) -> float: ...
    @property
    def test_accuracy(self) -> float | None: ...
    @property
    def world_size(self) -> int: ...


@dataclass(frozen=True)
class Span:
    """Something that a rank did, from `start` to `stop` in seconds of one clock."""

    rank: int
    name: str
    start: float
    stop: float


@matplotlib.rc_context(STYLE)
def plot_training(
    records: Sequence[Epoch] | Mapping[str, Sequence[Epoch]],
    title: str | None = None,
    *,
    note: str | None = None,
) -> Figure:
    """Loss and accuracy against the epoch, for one run or several.

    The accuracy is left out where nothing is classified.

    Args:
        records: what `fit` returned, or {label: records} to compare runs.
        title: by default it names the number of ranks.
        note: a line under the figure, for instance the machine.

    Raises:
        ValueError: no records.
    """
    runs = dict(records) if isinstance(records, Mapping) else {"": list(records)}
    if not runs or not all(runs.values()):
        raise ValueError("no records to plot: expected at least one EpochRecord for each run")
    ranks = sorted({record.world_size for run in runs.values() for record in run})
    text = f"{title} ({_ranks(ranks)})" if title else f"Training on {_ranks(ranks)}"
    judged = any(r.test_accuracy is not None for run in runs.values() for r in run)
    right: Axes | None = None
    if judged:
        fig, left, right = new_pair(7.6, 3.4, text, note)
        left.set(xlabel="epoch", ylabel="loss (cross-entropy, nats)", ylim=(0, None))
        right.set(xlabel="epoch", ylabel="test accuracy (%)")
    else:
        fig, left = new_figure(5.0, 3.4, text, note)
        left.set(xlabel="epoch", ylabel="loss")
    for at, (label, run) in enumerate(runs.items()):
        _draw_run(left, right, at, f"{label} ({_ranks([run[0].world_size])})" if label else "", run)
    handles = _training_legend(several=len(runs) > 1)
    left.legend(handles=handles + left.get_legend_handles_labels()[0])
    for ax in filter(None, (left, right)):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if right is not None and len(runs) > 1:
        right.legend(loc="lower right")
    return settle(fig)


@matplotlib.rc_context(STYLE)
def plot_bars(
    labels: Sequence[str],
    values: Sequence[float | Sequence[float]],
    *,
    ylabel: str,
    title: str,
    note: str | None = None,
) -> Figure:
    """Measured values as bars: the height is the median, each dot one measurement.

    Args:
        labels: one a bar; name the number of ranks here or in the title.
        values: for each bar a number, or the list of its repeats. The line spans all repeats.
        ylabel: what was measured, with its unit.
        note: a line under the figure, for instance the machine.

    Raises:
        ValueError: nothing to plot, different lengths, or a value that is not finite.
    """
    repeats = [np.ravel(value).tolist() for value in values]  # numbers, lists, arrays, tensors
    _check_bars(labels, repeats)
    dots = "one dot a measurement" if any(len(points) > 1 for points in repeats) else None
    below = "    ".join(text for text in (dots, note) if text)
    fig, ax = new_figure(max(4.6, 1.3 * len(labels) + 1.5), 3.4, title, below)
    medians = [statistics.median(points) for points in repeats]
    ax.bar(range(len(labels)), medians, 0.6, color=SKY, edgecolor=GREY, tick_label=list(labels))
    top = max(map(max, repeats)) or 1.0
    for at, points in enumerate(repeats):
        if len(points) > 1:
            ax.plot([at, at], [min(points), max(points)], color=BLUE, linewidth=2)
            spread = [at + 0.3 * (i / (len(points) - 1) - 0.5) for i in range(len(points))]
            ax.plot(spread, points, "o", color=BLUE, markersize=4)
        text = f"{'median ' if len(points) > 1 else ''}{medians[at]:.3g}"
        ax.text(at, max(points) + 0.03 * top, text, ha="center", va="bottom")
    ax.set(ylabel=ylabel, ylim=(min(0, *map(min, repeats)), 1.15 * top))
    return settle(fig)


@matplotlib.rc_context(STYLE)
def plot_stacks(
    labels: Sequence[str],
    parts: Mapping[str, Sequence[float]],
    *,
    ylabel: str,
    title: str,
    note: str | None = None,
) -> Figure:
    """Bars made of parts on top of one another, with the sum above each.

    Args:
        labels: one a bar.
        parts: for each kind of part its size in each bar; drawn from below in this order.
        ylabel: what was measured, with its unit.
        note: a line under the figure, for instance the machine.

    Raises:
        ValueError: nothing to plot, different lengths, or a size that is negative or not finite.
    """
    _check_stacks(labels, parts)
    fig, ax = new_figure(max(4.6, 1.3 * len(labels) + 1.5), 3.6, title, note)
    heights = [0.0] * len(labels)
    for kind, sizes in enumerate(parts.values()):
        ax.bar(range(len(labels)), sizes, 0.6, bottom=heights, **look(kind))
        heights = [height + size for height, size in zip(heights, sizes, strict=True)]
    top = max(heights) or 1.0
    for at, height in enumerate(heights):
        ax.text(at, height + 0.02 * top, f"{height:.3g}", ha="center", va="bottom")
    ax.set(ylabel=ylabel, ylim=(0, 1.12 * top))
    ax.set_xticks(range(len(labels)), list(labels))
    _legend_above(ax, [Patch(label=name, **look(kind)) for kind, name in enumerate(parts)])
    return settle(fig)


@matplotlib.rc_context(STYLE)
def plot_sample_assignment(
    assignment: Sequence[Sequence[int]], n: int, *, title: str | None = None
) -> Figure:
    """Which of `n` samples goes to which rank, and when.

    The number in a square is the sample's turn on that rank. A sample that is used more than
    once has a red frame, one that no rank uses has a cross.

    Args:
        assignment: for each rank its indices, in the order of use.
        n: the length of the dataset.

    Raises:
        ValueError: no rank, n below 1, or an index outside 0 .. n - 1.
    """
    _check_assignment(assignment, n)
    uses = Counter(index for share in assignment for index in share)
    text = title or "Which rank uses which sample"
    world_size = len(assignment)
    height = 1.5 + 0.42 * world_size
    fig, ax = new_figure(8, height, f"{text} ({_ranks([world_size])}, {n} samples)", None)
    turns = n <= MOST_TURNS
    for rank, share in enumerate(assignment):
        for turn, index in enumerate(share, start=1):
            _draw_sample(ax, rank, index, str(turn) if turns else "", uses[index] > 1)
    unused = [index for index in range(n) if not uses[index]]
    ax.plot(unused, [world_size - 0.45] * len(unused), "x", color=VERMILLION, clip_on=False)
    ax.set(xlim=(-0.6, n - 0.4), ylim=(world_size - 0.4, -0.6), xlabel="index in the dataset")
    rank_rows(ax, range(world_size))
    ax.xaxis.set_major_locator(MaxNLocator(nbins=20, integer=True))
    repeated = max(uses.values(), default=0) > 1
    _assignment_legend(ax, turns=turns, repeated=repeated, unused=bool(unused))
    return settle(fig)


@matplotlib.rc_context(STYLE)
def plot_timeline(
    spans: Sequence[Span | tuple[int, str, float, float]],
    *,
    title: str | None = None,
    note: str | None = None,
) -> Figure:
    """What each rank did when: a row a rank, a colour a kind of work.

    Where spans of one rank overlap, each kind of work gets a line of its own in that row.

    Args:
        spans: (rank, name, start, stop), in seconds of one clock. Time 0 is the first start.
        note: a line under the figure, for instance the machine.

    Raises:
        ValueError: no spans, or one that stops before it starts.
    """
    marks = [span if isinstance(span, Span) else Span(*span) for span in spans]
    _check_spans(marks)
    ranks = sorted({mark.rank for mark in marks})
    names = list(dict.fromkeys(mark.name for mark in marks))
    origin = min(mark.start for mark in marks)
    length = max(mark.stop for mark in marks) - origin
    scale, unit = (1, "s") if length >= 1 else (1e3, "ms") if length >= 1e-3 else (1e6, "µs")
    text = title or "What each rank does"
    height = 1.7 + 0.5 * len(ranks)
    fig, ax = new_figure(8, height, f"{text} ({_ranks([len(ranks)])})", note)
    lanes = len(names) if _overlap(marks) else 1
    for mark in marks:
        kind = names.index(mark.name)
        top = ranks.index(mark.rank) - 0.38 + (0.76 / lanes) * (kind if lanes > 1 else 0)
        left, width = (mark.start - origin) * scale, (mark.stop - mark.start) * scale
        ax.add_patch(Rectangle((left, top), width, 0.76 / lanes, **look(kind)))
    ax.set(
        xlim=(0, 1.01 * (length or 1) * scale),
        ylim=(len(ranks) - 0.5, -0.5),
        xlabel=f"time ({unit})",
    )
    rank_rows(ax, ranks)
    handles = [Patch(label=name, **look(kind)) for kind, name in enumerate(names)]
    _legend_above(ax, handles)
    return settle(fig)


def _draw_run(left: Axes, right: Axes | None, at: int, label: str, run: Sequence[Epoch]) -> None:
    """One run alone: a colour for each curve. Several: a colour for each run."""
    epochs = [record.epoch + 1 for record in run]
    test_color = LINES[at % len(LINES)] if label else VERMILLION
    train_color = test_color if label else BLUE
    marker = MARKERS[at % len(MARKERS)]
    train = [record.train_loss for record in run]
    left.plot(epochs, train, "--", color=train_color, marker=marker, markersize=5)
    test = [record.test_loss for record in run]
    named = label if right is None and label else "_"
    left.plot(epochs, test, "-", color=test_color, label=named, marker=marker, markersize=5)
    if right is None:
        return
    found = [record.test_accuracy for record in run]
    accuracy = [math.nan if value is None else 100 * value for value in found]
    right.plot(epochs, accuracy, "-", color=test_color, label=label, marker=marker, markersize=5)
    if not label and not math.isnan(accuracy[-1]):
        right.annotate(
            f"{accuracy[-1]:.1f} %",
            (epochs[-1], accuracy[-1]),
            xytext=(0, -14),
            textcoords="offset points",
            ha="center",
        )


def _training_legend(several: bool) -> list[Line2D]:
    train_color, test_color = (GREY, GREY) if several else (BLUE, VERMILLION)
    return [
        Line2D([], [], color=train_color, linestyle="--", label="training"),
        Line2D([], [], color=test_color, linestyle="-", label="test"),
    ]


def _draw_sample(ax: Axes, rank: int, index: int, text: str, repeated: bool) -> None:
    edge, line = (VERMILLION, _REPEATED_LINE) if repeated else (GREY, 0.8)
    fill: Look = {"facecolor": FILLS[rank % len(FILLS)], "edgecolor": edge}
    ax.add_patch(Rectangle((index - 0.42, rank - 0.4), 0.84, 0.8, linewidth=line, **fill))
    ax.text(index, rank, text, ha="center", va="center", fontsize=9, color="black")


def _assignment_legend(ax: Axes, *, turns: bool, repeated: bool, unused: bool) -> None:
    handles: list[Patch | Line2D] = []
    if turns:
        handles.append(
            Line2D([], [], marker="$1$", color=GREY, linestyle="", label="turn on that rank")
        )
    if repeated:
        frame: Look = {"facecolor": "none", "edgecolor": VERMILLION}
        handles.append(Patch(label="used more than once", linewidth=_REPEATED_LINE, **frame))
    if unused:
        handles.append(Line2D([], [], marker="x", color=VERMILLION, linestyle="", label="not used"))
    _legend_above(ax, handles)


def _legend_above(ax: Axes, handles: Sequence[Artist]) -> None:
    if handles:
        ax.legend(
            handles=handles,
            loc="lower left",
            bbox_to_anchor=(0, 1),
            ncols=min(len(handles), 5),
            borderaxespad=0.2,
        )


def _overlap(marks: Sequence[Span]) -> bool:
    """True if two spans of one rank share time (touching ends do not count)."""
    last_stop: dict[int, float] = {}
    for mark in sorted(marks, key=lambda mark: mark.start):
        if mark.start < last_stop.get(mark.rank, -math.inf):
            return True
        last_stop[mark.rank] = max(mark.stop, last_stop.get(mark.rank, -math.inf))
    return False


def _ranks(counts: Sequence[int]) -> str:
    """1 rank; 2 ranks; 1, 2 and 4 ranks."""
    head = ", ".join(str(count) for count in counts[:-1])
    joined = f"{head} and {counts[-1]}" if head else str(counts[-1])
    return f"{joined} rank" if list(counts) == [1] else f"{joined} ranks"


def _check_bars(labels: Sequence[str], repeats: list[list[float]]) -> None:
    if not labels or len(labels) != len(repeats):
        raise ValueError(
            f"{len(labels)} labels and {len(repeats)} values: expected at least one, and as many "
            "labels as values"
        )
    for label, points in zip(labels, repeats, strict=True):
        if not points or not all(math.isfinite(point) for point in points):
            raise ValueError(f"values {points} of {label!r}: expected finite numbers, at least one")


def _check_stacks(labels: Sequence[str], parts: Mapping[str, Sequence[float]]) -> None:
    if not labels or not parts:
        raise ValueError("nothing to plot: expected at least one label and one kind of part")
    for name, sizes in parts.items():
        if len(sizes) != len(labels):
            raise ValueError(f"{len(labels)} labels, but {len(sizes)} sizes of {name!r}")
        for label, size in zip(labels, sizes, strict=True):
            if not (math.isfinite(size) and size >= 0):
                raise ValueError(f"{name!r} of {label!r} is {size}: expected a size of 0 or more")


def _check_assignment(assignment: Sequence[Sequence[int]], n: int) -> None:
    if not assignment or n < 1:
        raise ValueError(f"{len(assignment)} ranks and n={n}: expected at least one of each")
    wrong = [index for share in assignment for index in share if not 0 <= index < n]
    if wrong:
        raise ValueError(f"index {wrong[0]} with n={n}: expected indices from 0 to {n - 1}")


def _check_spans(marks: Sequence[Span]) -> None:
    if not marks:
        raise ValueError("no spans to plot: expected at least one (rank, name, start, stop)")
    for mark in marks:
        if not mark.start <= mark.stop:
            raise ValueError(f"{mark}: expected a start that is not after its stop")
