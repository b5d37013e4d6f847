"""A picture of boxes, lines and words that is drawn twice: as SVG while a reader moves it, and by
matplotlib as the PNG that stays in the notebook.

The SVG takes about a millisecond; matplotlib needs some seventy for the same picture. The look is
that of `plots/style.py`. Lengths are pixels on the page, from the upper left corner.

Where there is less room than a picture is wide, it shrinks until its smallest words are `READABLE`,
and scrolls from there on. Pictures that are no wider than `PAGE` fit a page of the course and a
notebook in a window of 820 pixels.
"""

from __future__ import annotations

import html
import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict, Unpack

from ddp_helpers.plots.colors import GREY
from ddp_helpers.words import shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from ddp_helpers.plots.style import CourseFigure

PAGE = 698.0
READABLE = 11.0  # pixels: the smallest letters that a reader gets
CONTENT = "currentColor"  # the page's own text colour: it suits light and dark themes
_numbers = itertools.count()
_PX_TO_PT = 0.72  # for lines: a figure has 100 pixels an inch, which has 72 points
_FONT_TO_PT = 0.66  # for text: matplotlib's letters are wider than those of most browsers


@dataclass(frozen=True)
class Box:
    """A rectangle; `hatch` says once more what its colour says."""

    x: float
    y: float
    width: float
    height: float
    fill: str | None = None
    edge: str = GREY
    line: float = 1.0
    hatch: bool = False

    def svg(self, number: int) -> str:
        place = f'x="{self.x:.1f}" y="{self.y:.1f}"'
        place += f' width="{self.width:.1f}" height="{self.height:.1f}"'
        edge = f'stroke="{self.edge}" stroke-width="{self.line:g}"'
        plain = f'<rect {place} fill="{self.fill or "none"}" {edge}/>'
        return plain + (f'<rect {place} fill="url(#ddp-hatch-{number})"/>' if self.hatch else "")

    def draw(self, ax: Axes) -> None:
        from matplotlib.patches import Rectangle

        place = (self.x, self.y), self.width, self.height
        face, line = self.fill or "none", _PX_TO_PT * self.line
        ax.add_patch(Rectangle(*place, facecolor=face, edgecolor=self.edge, linewidth=line))
        if self.hatch:
            ax.add_patch(
                Rectangle(*place, facecolor="none", edgecolor="#444", hatch="///", linewidth=0)
            )


@dataclass(frozen=True)
class Line:
    """A straight line; with an arrow head at its end if asked for."""

    x: float
    y: float
    to_x: float
    to_y: float
    color: str = GREY
    width: float = 1.5
    dashed: bool = False
    arrow: bool = False

    def svg(self, _: int) -> str:
        dash = ' stroke-dasharray="5 3"' if self.dashed else ""
        ends = f'x1="{self.x:.1f}" y1="{self.y:.1f}" x2="{self.to_x:.1f}" y2="{self.to_y:.1f}"'
        head = ""
        if self.arrow:
            corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in self._head())
            head = f'<polygon points="{corners}" fill="{self.color}"/>'
        return f'<line {ends} stroke="{self.color}" stroke-width="{self.width:g}"{dash}/>{head}'

    def draw(self, ax: Axes) -> None:
        from matplotlib.patches import Polygon

        ax.plot(
            [self.x, self.to_x],
            [self.y, self.to_y],
            "--" if self.dashed else "-",
            color=self.color,
            linewidth=_PX_TO_PT * self.width,
        )
        if self.arrow:
            ax.add_patch(Polygon(self._head(), facecolor=self.color, linewidth=0))

    def _head(self) -> list[tuple[float, float]]:
        """The three corners of an arrow head."""
        angle = math.atan2(self.to_y - self.y, self.to_x - self.x)
        sides = [
            (self.to_x + 8 * math.cos(angle + turn), self.to_y + 8 * math.sin(angle + turn))
            for turn in (math.pi - 0.45, math.pi + 0.45)
        ]
        return [(self.to_x, self.to_y), *sides]


@dataclass(frozen=True)
class Words:
    """One line of text; `y` is its middle, `anchor` is start, middle or end."""

    x: float
    y: float
    text: str
    size: float = 12.0
    anchor: str = "middle"
    color: str = CONTENT
    bold: bool = False

    def svg(self, _: int) -> str:
        weight = ' font-weight="bold"' if self.bold else ""
        text = html.escape(shown(self.text))  # a browser finds a font with its letters
        return (
            f'<text x="{self.x:.1f}" y="{self.y:.1f}" dy="0.35em" font-size="{self.size:g}" '
            f'text-anchor="{self.anchor}" fill="{self.color}"{weight}>{text}</text>'
        )

    def draw(self, ax: Axes) -> None:
        from ddp_helpers.plots.letters import drawable

        text, fonts = drawable(self.text)
        ax.text(
            self.x,
            self.y,
            text,
            fontfamily=fonts,
            ha={"start": "left", "middle": "center", "end": "right"}[self.anchor],
            va="center",
            color=GREY if self.color == CONTENT else self.color,  # a PNG can't follow the page
            fontsize=_FONT_TO_PT * self.size,
            weight="bold" if self.bold else "normal",
        )


class BoxLook(TypedDict, total=False):
    fill: str | None
    edge: str
    line: float
    hatch: bool


class LineLook(TypedDict, total=False):
    color: str
    width: float
    dashed: bool
    arrow: bool


class WordsLook(TypedDict, total=False):
    size: float
    anchor: str
    color: str
    bold: bool


@dataclass
class Scene:
    """Shapes in the order in which they are painted."""

    width: float
    height: float
    shapes: list[Box | Line | Words] = field(default_factory=list)

    def box(self, x: float, y: float, width: float, height: float, **look: Unpack[BoxLook]) -> None:
        self.shapes.append(Box(x, y, width, height, **look))

    def line(self, x: float, y: float, to_x: float, to_y: float, **look: Unpack[LineLook]) -> None:
        self.shapes.append(Line(x, y, to_x, to_y, **look))

    def text(self, x: float, y: float, text: object, **look: Unpack[WordsLook]) -> None:
        self.shapes.append(Words(x, y, str(text), **look))

    def axis(self, x: float, y: float, width: float, top: float, label: str) -> None:
        """A horizontal axis from 0 to `top` with four to eight ticks."""
        self.line(x, y, x + width, y, width=1.0)
        for tick in ticks(top):
            at = x + width * tick / top
            self.line(at, y, at, y + 4, width=1.0)
            self.text(at, y + 13, f"{tick:g}")
        self.text(x + width / 2, y + 29, label)

    @property
    def narrowest(self) -> float:
        """How narrow the picture may be shown: its smallest words can still be read."""
        sizes = [shape.size for shape in self.shapes if isinstance(shape, Words)]
        return min(1.0, READABLE / min(sizes)) * self.width if sizes else 0.0

    def svg(self, alt: str) -> str:
        """The picture as inline SVG, with a text for those who can't see it."""
        number, alt = next(_numbers), shown(alt)
        parts = [shape.svg(number) for shape in self.shapes]
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{html.escape(alt)}" '
            f'viewBox="0 0 {self.width:g} {self.height:g}" width="{self.width:g}" '
            f'style="max-width:100%;min-width:{math.ceil(self.narrowest)}px;height:auto;'
            'display:block" font-family="sans-serif">'
            f"<title>{html.escape(alt)}</title>{_DEFS.replace('ID', str(number))}"
            f"{''.join(parts)}</svg>"
        )

    def figure(self) -> CourseFigure:
        """The same picture as a matplotlib figure."""
        import matplotlib

        from ddp_helpers.plots.style import STYLE, CourseFigure

        with matplotlib.rc_context(STYLE):
            fig = CourseFigure(figsize=(self.width / 100, self.height / 100))
            ax = fig.add_axes((0, 0, 1, 1))
            ax.set(xlim=(0, self.width), ylim=(self.height, 0))
            ax.set_axis_off()
            for shape in self.shapes:
                shape.draw(ax)
        return fig


def ticks(top: float) -> list[float]:
    """Round numbers from 0 to `top`, four to eight of them."""
    if not top > 0:
        raise ValueError(f"top={top!r}: expected an axis longer than 0")
    step = 10 ** math.floor(math.log10(top / 2))
    step *= next(k for k in (0.5, 1, 2, 2.5, 5, 10) if top / (k * step) < 7)
    return [step * i for i in range(int(top / step * (1 + 1e-9)) + 1)]


_DEFS = (
    '<defs><pattern id="ddp-hatch-ID" width="6" height="6" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><line x1="0" y1="0" x2="0" y2="6" stroke="#444" '
    'stroke-width="2"/></pattern></defs>'
)
