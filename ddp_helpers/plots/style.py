"""The look that all figures share, and how they reach a notebook or a file.

The background is transparent. Text and axes are a grey that stands out from white and from
near-black alike, so one picture serves both themes. The colours are those of `colors.py`.
"""

from __future__ import annotations

import base64
import html
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ddp_helpers.plots.colors import FILLS, GREY, HATCHES
from ddp_helpers.plots.letters import say_in_readers_words
from ddp_helpers.words import shown

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

DPI = 144
STYLE: dict[RcKeyType, Any] = {
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


class Look(TypedDict, total=False):
    """How an area is filled, as matplotlib's patches and bars take it."""

    facecolor: str
    edgecolor: str
    hatch: str


class CourseFigure(Figure):
    """A Figure that also appears when it is the last line of a notebook cell."""

    def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
        return png_bytes(self), {"width": _width(self)}


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
    alt = shown(alt)
    png = base64.b64encode(png_bytes(fig, alt)).decode("ascii")
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
    kind, alt = path.suffix[1:], shown(alt)
    path.write_bytes(png_bytes(fig, alt) if kind == "png" else _svg(fig, alt))
    _close(fig)
    return path


def new_figure(
    width: float, height: float, title: str, note: str | None
) -> tuple[CourseFigure, Axes]:
    """A Figure that pyplot knows nothing of, so that no notebook shows it a second time."""
    fig = _new_figure(width, height, title, note, columns=1)
    return fig, fig.axes[0]


def new_pair(
    width: float, height: float, title: str, note: str | None
) -> tuple[CourseFigure, Axes, Axes]:
    """The same with two Axes, side by side."""
    fig = _new_figure(width, height, title, note, columns=2)
    left, right = fig.axes
    return fig, left, right


def _new_figure(
    width: float, height: float, title: str, note: str | None, columns: int
) -> CourseFigure:
    layout = ConstrainedLayoutEngine(w_pad=0.08, h_pad=0.08)
    fig = CourseFigure(figsize=(width, height), layout=layout)
    fig.subplots(1, columns)
    fig.suptitle(title, fontweight="bold", fontsize=11)
    for ax in fig.axes:
        ax.tick_params(colors=GREY)  # ticks are made late, when the style is gone
        ax.grid(axis="y", color=GREY, alpha=0.25)
        ax.set_axisbelow(True)
    if note:
        fig.supxlabel(note, x=0.99, ha="right", fontsize=9, color=GREY)
    return fig


def settle(fig: CourseFigure) -> CourseFigure:
    """Lay out once and keep it: each further drawing would move the axes a little."""
    say_in_readers_words(fig)  # before: other words take other room
    fig.draw_without_rendering()
    fig.set_layout_engine("none")
    return fig


def look(kind: int) -> Look:
    """Colour, then hatch, so that also the seventh kind of work has a look of its own."""
    hatch = HATCHES[(kind // len(FILLS)) % len(HATCHES)]
    return {"facecolor": FILLS[kind % len(FILLS)], "edgecolor": GREY, "hatch": hatch}


def rank_rows(ax: Axes, ranks: Sequence[int]) -> None:
    ax.set_yticks(range(len(ranks)), [f"rank {rank}" for rank in ranks])
    ax.tick_params(axis="y", length=0)
    ax.grid(visible=False)
    ax.spines["left"].set_visible(False)


def _check_alt(alt: str) -> None:
    if not isinstance(alt, str) or not alt.strip():
        raise ValueError(
            f"alt={alt!r}: expected a sentence that says what the figure shows, for readers who "
            "can't see it"
        )


def _width(fig: Figure) -> int:
    """Pixels on the page; the PNG has more, for sharp text on fine screens."""
    return round(fig.get_figwidth() * 100)


def png_bytes(fig: Figure, alt: str | None = None) -> bytes:
    say_in_readers_words(fig)
    file = io.BytesIO()
    about = {"Description": alt, "Software": None}
    fig.savefig(file, format="png", dpi=DPI, transparent=True, metadata=about)
    return file.getvalue()


def _svg(fig: Figure, alt: str) -> bytes:
    say_in_readers_words(fig)
    file = io.BytesIO()
    fig.savefig(file, format="svg", transparent=True, metadata={"Description": alt, "Date": None})
    return file.getvalue()


def _close(fig: Figure) -> None:
    """Figures of this module need no closing; one made with pyplot would be shown twice."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close(fig)
