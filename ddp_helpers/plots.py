"""Figures of measured runs, drawn from records and files only.

Each function returns a matplotlib Figure with a transparent background. Text and axes are a grey
that stands out from white and from near-black alike, so one picture serves both themes. Colours
are from Okabe and Ito's palette (https://jfly.uni-koeln.de/color/), which people with any kind
of colour vision can tell apart; markers, line styles and hatches say the same again.
"""

from __future__ import annotations

import base64
import html
import io
import math
import statistics
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

GREY = "#767676"  # contrast 4.5 on white, 4.2 on JupyterLab's dark #111111
BLUE, VERMILLION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY = "#E69F00", "#56B4E9"
LINES = (BLUE, VERMILLION, GREEN, PURPLE)  # contrast of 3 or more on both backgrounds
FILLS = (SKY, ORANGE, GREEN, PURPLE, BLUE, VERMILLION)  # for areas, drawn with a grey edge
MARKERS, HATCHES = "osD^vP*X", ("", "///", "...", "xxx")

_DPI = 144
_STYLE = {
    "font.size": 10,
    "text.color": GREY,
    "axes.labelcolor": GREY,
    "axes.edgecolor": GREY,
    "axes.titlecolor": GREY,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "legend.frameon": False,
    "legend.labelcolor": GREY,
    "hatch.linewidth": 0.8,
}


class Epoch(Protocol):
    """What is read of a record of one epoch; `training.EpochRecord` has it all."""

    @property
    def epoch(self) -> int: ...
    @property
    def train_loss(self) -> float: ...
    @property
    def test_loss(self) -> float: ...
    @property
    def test_accuracy(self) -> float: ...
    @property
    def world_size(self) -> int: ...


@dataclass(frozen=True)
class Span:
    """Something that a rank did, from `start` to `stop` in seconds of one clock."""

    rank: int
    name: str
    start: float
    stop: float


class CourseFigure(Figure):
    """A Figure that also appears when it is the last line of a notebook cell."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        return _png(self), {"width": _width(self)}


@matplotlib.rc_context(_STYLE)
def plot_training(
    records: Sequence[Epoch] | Mapping[str, Sequence[Epoch]],
    title: str | None = None,
    *,
    note: str | None = None,
) -> Figure:
    """Loss and accuracy against the epoch, for one run or several.

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
    fig, (left, right) = _figure(7.6, 3.4, text, note, columns=2)
    for at, (label, run) in enumerate(runs.items()):
        _draw_run(left, right, at, f"{label} ({_ranks([run[0].world_size])})" if label else "", run)
    left.set(xlabel="epoch", ylabel="loss (cross-entropy, nats)", ylim=(0, None))
    right.set(xlabel="epoch", ylabel="test accuracy (%)")
    for ax in (left, right):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    left.legend(handles=_training_legend(several=len(runs) > 1))
    if len(runs) > 1:
        right.legend(loc="lower right")
    return _settled(fig)


@matplotlib.rc_context(_STYLE)
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
    fig, ax = _figure(max(4.6, 1.3 * len(labels) + 1.5), 3.4, title, below)
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
    return _settled(fig)


@matplotlib.rc_context(_STYLE)
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
    fig, ax = _figure(8, height, f"{text} ({_ranks([world_size])}, {n} samples)", None)
    turns = n <= 40
    for rank, share in enumerate(assignment):
        for turn, index in enumerate(share, start=1):
            _draw_sample(ax, rank, index, str(turn) if turns else "", uses[index] > 1)
    unused = [index for index in range(n) if not uses[index]]
    ax.plot(unused, [world_size - 0.45] * len(unused), "x", color=VERMILLION, clip_on=False)
    ax.set(xlim=(-0.6, n - 0.4), ylim=(world_size - 0.4, -0.6), xlabel="index in the dataset")
    _rank_rows(ax, range(world_size))
    ax.xaxis.set_major_locator(MaxNLocator(nbins=20, integer=True))
    repeated = max(uses.values(), default=0) > 1
    _assignment_legend(ax, turns=turns, repeated=repeated, unused=bool(unused))
    return _settled(fig)


@matplotlib.rc_context(_STYLE)
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
    fig, ax = _figure(8, height, f"{text} ({_ranks([len(ranks)])})", note)
    lanes = len(names) if _overlap(marks) else 1
    for mark in marks:
        kind = names.index(mark.name)
        top = ranks.index(mark.rank) - 0.38 + (0.76 / lanes) * (kind if lanes > 1 else 0)
        left, width = (mark.start - origin) * scale, (mark.stop - mark.start) * scale
        ax.add_patch(Rectangle((left, top), width, 0.76 / lanes, **_look(kind)))
    ax.set(
        xlim=(0, 1.01 * (length or 1) * scale),
        ylim=(len(ranks) - 0.5, -0.5),
        xlabel=f"time ({unit})",
    )
    _rank_rows(ax, ranks)
    handles = [Patch(label=name, **_look(kind)) for kind, name in enumerate(names)]
    _legend_above(ax, handles)
    return _settled(fig)


def show(fig: Figure, alt: str) -> None:
    """Display a figure in a notebook, with a text for those who can't see it.

    The `<img alt=...>` is HTML, because JupyterLab 4 draws a bare image/png without any
    alternative text. The PNG travels along for tools that take no HTML.

    Args:
        alt: what the figure shows, in a sentence or two.

    Raises:
        ValueError: no text.
    """
    from IPython.display import display

    _check_alt(alt)
    png = base64.b64encode(_png(fig, alt)).decode("ascii")
    source = f'src="data:image/png;base64,{png}"'
    bundle = {
        "text/html": f'<img {source} alt="{html.escape(alt)}" width="{_width(fig)}">',
        "image/png": png,
        "text/plain": alt,
    }
    display(bundle, raw=True, metadata={"image/png": {"alt": alt, "width": _width(fig)}})
    _close(fig)


def save(fig: Figure, path: str | Path, alt: str) -> Path:
    """Write a figure to a file (.png or .svg), with its text as the file's description.

    Raises:
        ValueError: no text, or another kind of file.
    """
    _check_alt(alt)
    path = Path(path)
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"{path.name}: expected a name that ends in .png or .svg")
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = path.suffix[1:]
    path.write_bytes(_png(fig, alt) if kind == "png" else _svg(fig, alt))
    _close(fig)
    return path


def _figure(
    width: float, height: float, title: str, note: str | None, columns: int = 1
) -> tuple[CourseFigure, Axes | np.ndarray]:
    """A Figure that pyplot knows nothing of, so that no notebook shows it a second time."""
    fig = CourseFigure(figsize=(width, height), layout="constrained")
    fig.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    axes = fig.subplots(1, columns)
    fig.suptitle(title, fontweight="bold", fontsize=11)
    for ax in fig.axes:
        ax.tick_params(colors=GREY)  # ticks are made late, when the style is gone
        ax.grid(axis="y", color=GREY, alpha=0.25)
        ax.set_axisbelow(True)
    if note:
        fig.supxlabel(note, x=0.99, ha="right", fontsize=9, color=GREY)
    return fig, axes


def _settled(fig: CourseFigure) -> CourseFigure:
    """Lay out once and keep it: each further drawing would move the axes a little."""
    fig.draw_without_rendering()
    fig.set_layout_engine("none")
    return fig


def _draw_run(left: Axes, right: Axes, at: int, label: str, run: Sequence[Epoch]) -> None:
    """One run alone: a colour for each curve. Several: a colour for each run."""
    epochs = [record.epoch + 1 for record in run]
    test_color = LINES[at % len(LINES)] if label else VERMILLION
    train_color = test_color if label else BLUE
    style = {"marker": MARKERS[at % len(MARKERS)], "markersize": 5}
    left.plot(epochs, [record.train_loss for record in run], "--", color=train_color, **style)
    left.plot(epochs, [record.test_loss for record in run], "-", color=test_color, **style)
    accuracy = [100 * record.test_accuracy for record in run]
    right.plot(epochs, accuracy, "-", color=test_color, label=label, **style)
    if not label:
        place = {"xytext": (0, -14), "textcoords": "offset points", "ha": "center"}
        right.annotate(f"{accuracy[-1]:.1f} %", (epochs[-1], accuracy[-1]), **place)


def _training_legend(several: bool) -> list[Line2D]:
    colors = (GREY, GREY) if several else (BLUE, VERMILLION)
    names = (("training", "--"), ("test", "-"))
    return [
        Line2D([], [], color=color, linestyle=line, label=name)
        for color, (name, line) in zip(colors, names, strict=True)
    ]


def _draw_sample(ax: Axes, rank: int, index: int, text: str, repeated: bool) -> None:
    look = {"facecolor": FILLS[rank % len(FILLS)], "edgecolor": GREY, "linewidth": 0.8}
    if repeated:
        look |= {"edgecolor": VERMILLION, "linewidth": 2.5}
    ax.add_patch(Rectangle((index - 0.42, rank - 0.4), 0.84, 0.8, **look))
    ax.text(index, rank, text, ha="center", va="center", fontsize=9, color="black")


def _assignment_legend(ax: Axes, *, turns: bool, repeated: bool, unused: bool) -> None:
    handles: list[Patch | Line2D] = []
    if turns:
        handles.append(
            Line2D([], [], marker="$1$", color=GREY, linestyle="", label="turn on that rank")
        )
    if repeated:
        frame = {"facecolor": "none", "edgecolor": VERMILLION, "linewidth": 2.5}
        handles.append(Patch(label="used more than once", **frame))
    if unused:
        cross = {"marker": "x", "color": VERMILLION, "linestyle": ""}
        handles.append(Line2D([], [], label="not used", **cross))
    _legend_above(ax, handles)


def _look(kind: int) -> dict[str, object]:
    """Colour, then hatch, so that also the seventh kind of work has a look of its own."""
    hatch = HATCHES[(kind // len(FILLS)) % len(HATCHES)]
    return {"facecolor": FILLS[kind % len(FILLS)], "edgecolor": GREY, "hatch": hatch}


def _rank_rows(ax: Axes, ranks: Sequence[int]) -> None:
    ax.set_yticks(range(len(ranks)), [f"rank {rank}" for rank in ranks])
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False)
    ax.spines["left"].set_visible(False)


def _legend_above(ax: Axes, handles: list[Patch | Line2D]) -> None:
    if handles:
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "ncols": min(len(handles), 5)}
        ax.legend(handles=handles, borderaxespad=0.2, **place)


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


def _check_alt(alt: str) -> None:
    if not isinstance(alt, str) or not alt.strip():
        raise ValueError(
            f"alt={alt!r}: expected a sentence that says what the figure shows, for readers who "
            "can't see it"
        )


def _width(fig: Figure) -> int:
    """Pixels on the page; the PNG has more, for sharp text on fine screens."""
    return round(fig.get_figwidth() * 100)


def _png(fig: Figure, alt: str | None = None) -> bytes:
    file = io.BytesIO()
    about = {"Description": alt, "Software": None}
    fig.savefig(file, format="png", dpi=_DPI, transparent=True, metadata=about)
    return file.getvalue()


def _svg(fig: Figure, alt: str) -> bytes:
    file = io.BytesIO()
    fig.savefig(file, format="svg", transparent=True, metadata={"Description": alt, "Date": None})
    return file.getvalue()


def _close(fig: Figure) -> None:
    """Figures of this module need no closing; one made with pyplot would be shown twice."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close(fig)
