"""The figure of what is done: a square for each exercise, a row for each notebook."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.patches import Patch, Rectangle

from ddp_helpers.plots.colors import BLUE, GREY, ORANGE
from ddp_helpers.plots.style import STYLE, CourseFigure, new_figure, settle

LOOKS = {  # a mark says the same as the colour
    "done": (BLUE, "", "✓"),
    "tried": (ORANGE, "///", "…"),
    "open": ("none", "", ""),
}


def plot_progress(numbers: Sequence[str], state: dict) -> CourseFigure:
    """Draw which exercises are done, tried or open.

    Args:
        numbers: the ids of all exercises, in order.
        state: a progress file as `progress_file.read` gives it.
    """
    notebooks = list(dict.fromkeys(number.partition(".")[0] for number in numbers))
    done = sum(kind_of(state, number) == "done" for number in numbers)
    with matplotlib.rc_context(STYLE):
        title = f"{done} of {len(numbers)} exercises done"
        fig, ax = new_figure(6.0, 0.9 + 0.42 * len(notebooks), title, None)
        for number in numbers:
            notebook, _, place = number.partition(".")
            _square(ax, int(place), notebooks.index(notebook), kind_of(state, number))
        ax.set_yticks(range(len(notebooks)), [f"notebook {name}" for name in notebooks])
        longest = max(int(number.partition(".")[2]) for number in numbers)
        ax.set_xticks(range(1, longest + 1))
        ax.set(xlim=(0.4, longest + 0.6), ylim=(len(notebooks) - 0.4, -0.6), xlabel="exercise")
        ax.tick_params(length=0)
        ax.grid(visible=False)
        ax.spines[:].set_visible(False)
        handles = [
            Patch(facecolor=colour, edgecolor=GREY, hatch=hatch, label=kind)
            for kind, (colour, hatch, _) in LOOKS.items()
        ]
        ax.legend(handles=handles, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
        return settle(fig)


def kind_of(state: dict, number: str) -> str:
    """`done`, `tried` or `open`."""
    record = state["exercises"].get(number, {})
    return "done" if record.get("passed_at") else "tried" if record.get("tries") else "open"


def _square(ax, x: int, y: int, kind: str) -> None:
    colour, hatch, mark = LOOKS[kind]
    corner = (x - 0.4, y - 0.35)
    ax.add_patch(Rectangle(corner, 0.8, 0.7, facecolor=colour, edgecolor=GREY, hatch=hatch))
    ax.text(x, y, mark, ha="center", va="center", color="white", fontweight="bold")
