"""Figures of collectives: what each rank held before and after, and what a message costs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import LogLocator

from ddp_helpers.plots.colors import BLUE, GREY, SKY
from ddp_helpers.plots.style import STYLE, Look, look, new_figure, rank_rows

MIXED: Look = {"facecolor": "white", "edgecolor": GREY, "hatch": "////"}


@matplotlib.rc_context(STYLE)
def plot_cost(
    sizes: Sequence[int],
    seconds: Sequence[Sequence[float]],
    *,
    title: str,
    note: str | None = None,
) -> Figure:
    """Time of a message against its size, both axes logarithmic.

    Args:
        sizes: bytes of a message, at least 1.
        seconds: for each size its repeats, more than 0. The line joins the medians.
        title: name the call, the backend and the number of ranks.
        note: a line under the figure, for instance the machine.

    Raises:
        ValueError: nothing to plot, different lengths, or a value that is not above 0.
    """
    _check_cost(sizes, seconds)
    below = "    ".join(text for text in ("line: median, dots: single runs", note) if text)
    fig, ax = new_figure(6.4, 3.6, title, below)
    for size, repeats in zip(sizes, seconds, strict=True):
        dots = [1e3 * second for second in repeats]
        ax.plot([size] * len(dots), dots, "o", color=SKY, markersize=4, alpha=0.6, zorder=2)
    medians = [1e3 * statistics.median(repeats) for repeats in seconds]
    ax.plot(sizes, medians, "-o", color=BLUE, markersize=5, zorder=3)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set(xlabel="size of the tensor", ylabel="time of one call (ms)")
    ax.xaxis.set_major_formatter(lambda size, _: _bytes(size))
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.yaxis.set_minor_formatter("")
    ax.tick_params(which="both", colors=GREY)
    return fig


@matplotlib.rc_context(STYLE)
def plot_collectives(
    demos: Mapping[str, tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]]],
    *,
    title: str,
    note: str | None = None,
) -> Figure:
    """What each rank had before a collective, and has after it: a row a rank, a box a number.

    A box has the colour of the one rank that held its number before, and stripes if no single
    rank did: then it was computed from several. So start from numbers that differ between ranks.

    Args:
        demos: {name: (before, after)}; each has one list of numbers a rank, which may be empty.
        note: a line under the figure.

    Raises:
        ValueError: nothing to plot, or before and after have different numbers of ranks.
    """
    _check_collectives(demos)
    columns = min(3, len(demos))
    rows = math.ceil(len(demos) / columns)
    ranks = max(len(before) for before, _ in demos.values())
    fig, _ = new_figure(3.3 * columns, (0.36 * ranks + 0.75) * rows + 0.7, title, note)
    fig.clear()
    fig.suptitle(title, fontweight="bold", fontsize=11)
    panels = [fig.add_subplot(rows, columns, at + 1) for at in range(len(demos))]
    for ax, (name, (before, after)) in zip(panels, demos.items(), strict=True):
        _draw_collective(ax, name, before, after)
    widest = max(ax.get_xlim()[1] for ax in panels)
    for ax in panels:
        ax.set_xlim(right=widest)  # boxes of one size in all panels
    handles = [Patch(label=f"from rank {rank}", **look(rank)) for rank in range(ranks)]
    handles.append(Patch(label="from several", **MIXED))
    fig.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return fig


def _draw_collective(
    ax: Axes, name: str, before: Sequence[Sequence[float]], after: Sequence[Sequence[float]]
) -> None:
    left = max(map(len, before))
    right = max(map(len, after))
    for rank, (had, has) in enumerate(zip(before, after, strict=True)):
        for at, value in enumerate(had):
            _draw_number(ax, rank, at, value, look(rank))
        for at, value in enumerate(has):
            origins = [r for r, values in enumerate(before) if value in values]
            style = look(origins[0]) if len(origins) == 1 else MIXED
            _draw_number(ax, rank, left + 1 + at, value, style)
    middle = (len(before) - 1) / 2
    ax.annotate(
        "",
        (left + 0.45, middle),
        (left - 0.4, middle),
        arrowprops={"arrowstyle": "->", "color": GREY, "linewidth": 1.5},
    )
    ax.set(xlim=(-0.6, left + right + 0.6), ylim=(len(before) - 0.5, -0.5), xticks=[])
    ax.set_title(name, fontsize=10)
    rank_rows(ax, range(len(before)))
    ax.spines["bottom"].set_visible(False)


def _draw_number(ax: Axes, rank: int, at: int, value: float, style: Look) -> None:
    ax.add_patch(Rectangle((at - 0.46, rank - 0.4), 0.92, 0.8, **style))
    # on stripes a number needs a ground of its own
    box = {"facecolor": "white", "edgecolor": "none", "pad": 0.8} if style.get("hatch") else None
    ax.text(at, rank, f"{value:g}", ha="center", va="center", fontsize=8, color="black", bbox=box)


def _bytes(size: float) -> str:
    return f"{size / 2**20:g} MiB" if size >= 2**20 else f"{size / 2**10:g} KiB"


def _check_cost(sizes: Sequence[int], seconds: Sequence[Sequence[float]]) -> None:
    if not sizes or len(sizes) != len(seconds):
        raise ValueError(
            f"{len(sizes)} sizes and {len(seconds)} lists of seconds: expected as many of each, "
            "at least one"
        )
    for size, repeats in zip(sizes, seconds, strict=True):
        if size < 1 or not repeats or min(repeats) <= 0:
            raise ValueError(
                f"size {size} with times {list(repeats)}: expected a size of at least 1 byte "
                "and times above 0 s, as both axes are logarithmic"
            )


def _check_collectives(
    demos: Mapping[str, tuple[Sequence[Sequence[float]], Sequence[Sequence[float]]]],
) -> None:
    if not demos:
        raise ValueError("no collective to draw: give {name: (before, after)}")
    for name, (before, after) in demos.items():
        if not before or len(before) != len(after):
            raise ValueError(
                f"{name}: {len(before)} ranks before and {len(after)} after; expected the same "
                "number, at least one"
            )
