"""Figures of `RankTimeline` records: one step as it happened, and where the time goes."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedLocator, NullLocator
from matplotlib.transforms import blended_transform_factory

from ddp_helpers.plots.colors import BLUE, FILLS, GREEN, GREY, MARKERS, VERMILLION
from ddp_helpers.plots.style import STYLE, Look, new_figure, new_pair, settle
from ddp_helpers.timeline.intervals import Interval, difference, intersection
from ddp_helpers.timeline.records import (
    BACKWARD,
    DATA,
    EXPOSED,
    FORWARD,
    KINDS,
    OPTIMIZER,
    OTHER,
    Collective,
    RankTimeline,
    StepTimeline,
    mean_shares,
    overlap,
    typical_step,
)

_SKY, _ORANGE, _, _PURPLE = FILLS[:4]
LOOKS: dict[str, Look] = {
    FORWARD: {"facecolor": _SKY, "edgecolor": GREY},
    BACKWARD: {"facecolor": BLUE, "edgecolor": GREY},
    OPTIMIZER: {"facecolor": _PURPLE, "edgecolor": GREY, "hatch": "..."},
    DATA: {"facecolor": _ORANGE, "edgecolor": GREY, "hatch": "xxx"},
    EXPOSED: {"facecolor": VERMILLION, "edgecolor": GREY, "hatch": "///"},
    OTHER: {"facecolor": "none", "edgecolor": GREY},
}
_HIDDEN: Look = {"facecolor": GREEN, "edgecolor": GREY}
_NEAR = 0.002  # of the step: gaps below are too narrow to be seen


@matplotlib.rc_context(STYLE)
def plot_overlap(
    timelines: Sequence[RankTimeline],
    step: int | None = None,
    *,
    title: str | None = None,
    note: str | None = None,
) -> Figure:
    """One step: for each rank a lane of compute and a lane of communication.

    Communication is green where backward hides it, and hatched red where nothing does.

    Args:
        timelines: one a rank, of one machine (their clocks are compared).
        step: which of the recorded steps; by default the one whose overlap is most like that of
            all of them, so that the figure and the number below it tell the same.

    Raises:
        ValueError: no timelines.
        IndexError: no such step.
    """
    _check(timelines)
    step = typical_step(timelines) if step is None else step
    steps = [timeline.steps[step] for timeline in timelines]
    origin = min(one.start_ns for one in steps)
    length = max(one.stop_ns for one in steps) - origin
    text = title or "Compute and communication of one step"
    text = f"{text} ({len(steps)} ranks)"
    fig, ax = new_figure(8, 1.8 + 0.8 * len(steps), text, _note(timelines, note))
    for row, one in enumerate(steps):
        _draw_step(ax, row, one, origin, length)
    ax.set(xlim=(0, length / 1e6), ylim=(2.5 * len(steps) - 0.5, -0.6), xlabel="time (ms)")
    rows = [2.5 * row + lane for row in range(len(steps)) for lane in (0, 1)]
    names = [f"rank {t.rank}  {lane}" for t in timelines for lane in ("compute", "all-reduce")]
    ax.set_yticks(rows, names)
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False)
    ax.spines["left"].set_visible(False)
    shown = {kind: LOOKS[kind] for kind in (FORWARD, BACKWARD, OPTIMIZER, DATA)}
    _legend(fig, shown | {"hidden": _HIDDEN, "not hidden": LOOKS[EXPOSED]})
    return settle(fig)


def describe_overlap(timelines: Sequence[RankTimeline], step: int | None = None) -> str:
    """The same in words, for those who can't see the figure."""
    _check(timelines)
    first = timelines[0].steps[typical_step(timelines) if step is None else step]
    share = overlap(timelines)
    hidden = "no all-reduce" if share is None else f"{share:.0%} of it hidden behind backward"
    return (
        f"One step of {len(timelines)} ranks, a lane of compute and one of communication for each: "
        f"rank {timelines[0].rank} needs {1e3 * first.seconds:.1f} ms and makes "
        f"{len(first.all_reduces)} all-reduces; over all recorded steps {hidden}."
    )


@matplotlib.rc_context(STYLE)
def plot_shares(
    runs: Mapping[str, Sequence[RankTimeline]],
    *,
    title: str = "Where the time of a step goes",
    note: str | None = None,
) -> Figure:
    """For each run one bar, cut into the kinds of work; the mean over ranks and steps.

    Raises:
        ValueError: no runs, or one without timelines.
    """
    if not runs:
        raise ValueError("no runs to plot: expected {label: timelines}")
    fig, ax = new_figure(8, 1.9 + 0.5 * len(runs), title, note)
    for row, timelines in enumerate(runs.values()):
        left = 0.0
        for kind, share in mean_shares(timelines).items():
            ax.barh(row, 100 * share, 0.6, left=left, **LOOKS[kind])
            left += 100 * share
    ax.set(xlim=(0, 100), ylim=(len(runs) - 0.5, -0.5), xlabel="share of the step (%)")
    ax.set_yticks(range(len(runs)), list(runs))
    ax.grid(visible=False)
    _legend(fig, {kind: LOOKS[kind] for kind in KINDS})
    return settle(fig)


def describe_shares(runs: Mapping[str, Sequence[RankTimeline]]) -> str:
    """The same in words."""
    lines = []
    for label, timelines in runs.items():
        parts = (f"{kind} {share:.0%}" for kind, share in mean_shares(timelines).items())
        lines.append(f"{' '.join(label.split())}: {', '.join(parts)}")
    return "Shares of a step. " + "; ".join(lines) + "."


@matplotlib.rc_context(STYLE)
def plot_sweep(
    labels: Sequence[str],
    seconds: Sequence[Sequence[float]],
    overlaps: Sequence[float],
    *,
    xlabel: str,
    title: str,
    note: str | None = None,
) -> Figure:
    """Step time and overlap against a setting, such as the size of a bucket.

    Args:
        labels: the settings, in order.
        seconds: for each setting its repeats of one step; the line joins the medians.
        overlaps: for each setting the share of all-reduce time that is hidden, 0 to 1.

    Raises:
        ValueError: different lengths, or nothing to plot.
    """
    if not labels or not len(labels) == len(seconds) == len(overlaps) or not all(seconds):
        raise ValueError(
            f"{len(labels)} labels, {len(seconds)} times and {len(overlaps)} overlaps: expected "
            "equally many, at least one"
        )
    fig, left, right = new_pair(8, 3.4, title, note)
    places = range(len(labels))
    for at, repeats in enumerate(seconds):
        left.plot([at] * len(repeats), [1e3 * one for one in repeats], ".", color=GREY)
    medians = [1e3 * statistics.median(repeats) for repeats in seconds]
    left.plot(places, medians, color=BLUE, marker=MARKERS[0])
    right.plot(places, [100 * share for share in overlaps], color=VERMILLION, marker=MARKERS[1])
    left.set(ylabel="one training step (ms)", ylim=(0, None))
    right.set(ylabel="all-reduce that is hidden (%)", ylim=(0, 105))
    for ax in (left, right):
        ax.xaxis.set_major_locator(FixedLocator(list(places)))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_xticklabels(labels)
        ax.set_xlabel(xlabel)
    return settle(fig)


def _draw_step(ax: Axes, row: int, step: StepTimeline, origin: int, length: int) -> None:
    at = (origin, length)
    for kind, intervals in step.work.items():
        _draw(ax, 2.5 * row - 0.4, 0.8, intervals, at, LOOKS[kind])
    backward = step.work.get(BACKWARD, ())
    lanes = _lanes(step.collectives)
    height = 0.8 / (max(lanes, default=0) + 1)
    for call, lane in zip(step.collectives, lanes, strict=True):
        whole, top = [(call.start_ns, call.stop_ns)], 2.5 * row + 0.6 + lane * height
        _draw(ax, top, height, difference(whole, backward), at, LOOKS[EXPOSED])
        _draw(ax, top, height, intersection(whole, backward), at, _HIDDEN)


def _lanes(calls: Sequence[Collective]) -> list[int]:
    """For each call the first lane that is free when it starts: gloo sends two at a time."""
    free_at: list[int] = []
    lanes = []
    for call in calls:
        lane = next((i for i, at in enumerate(free_at) if at <= call.start_ns), len(free_at))
        free_at[lane : lane + 1] = [call.stop_ns]
        lanes.append(lane)
    return lanes


def _draw(
    ax: Axes,
    top: float,
    height: float,
    intervals: Sequence[Interval],
    at: tuple[int, int],
    style: Look,
) -> None:
    """Neighbours with a gap that nobody can see become one rectangle."""
    origin, length = at
    near: list[list[int]] = []
    for start, stop in intervals:
        if near and start - near[-1][1] < _NEAR * length:
            near[-1][1] = stop
        else:
            near.append([start, stop])
    for start, stop in near:
        corner, width = ((start - origin) / 1e6, top), (stop - start) / 1e6
        ax.add_patch(Rectangle(corner, width, height, linewidth=0.4, **style))


def _legend(fig: Figure, looks: Mapping[str, Look]) -> None:
    """Above the axes, as wide as the figure; kept out of the layout, it can't make axes narrow."""
    (ax,) = fig.axes
    handles = [Patch(label=label, **style) for label, style in looks.items()]
    place = blended_transform_factory(fig.transFigure, ax.transAxes)
    legend = ax.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, 1),
        bbox_transform=place,
        ncols=6,
        columnspacing=1.2,
        borderaxespad=0.2,
    )
    legend.set_in_layout(False)
    ax.set_title(" ", fontsize=14)  # keeps its room


def _note(timelines: Sequence[RankTimeline], note: str | None) -> str:
    share = overlap(timelines)
    hidden = "no all-reduce" if share is None else f"overlap {share:.0%}, over all recorded steps"
    return "    ".join(text for text in (hidden, note) if text)


def _check(timelines: Sequence[RankTimeline]) -> None:
    if not timelines:
        raise ValueError("no timelines to plot: expected one a rank, as launch(...).values has")
