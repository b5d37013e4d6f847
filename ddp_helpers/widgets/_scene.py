"""A picture of boxes, lines and words that is drawn twice: as SVG while a reader moves it, and by
matplotlib as the PNG that stays in the notebook.

The SVG takes about a millisecond; matplotlib needs some seventy for the same picture. The look is
that of `figures.py`. Lengths are pixels on the page, from the upper left corner.
"""

from __future__ import annotations

import html
import itertools
import math
from dataclasses import dataclass, field

from ddp_helpers.plots.style import GREY

CONTENT = "currentColor"  # the page's own text colour: it suits light and dark themes
_numbers = itertools.count()


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


@dataclass
class Scene:
    """Shapes in the order in which they are painted."""

    width: float
    height: float
    shapes: list[Box | Line | Words] = field(default_factory=list)

    def box(self, x: float, y: float, width: float, height: float, **look: object) -> None:
        self.shapes.append(Box(x, y, width, height, **look))

    def line(self, x: float, y: float, to_x: float, to_y: float, **look: object) -> None:
        self.shapes.append(Line(x, y, to_x, to_y, **look))

    def text(self, x: float, y: float, text: object, **look: object) -> None:
        self.shapes.append(Words(x, y, str(text), **look))

    def axis(self, x: float, y: float, width: float, top: float, label: str) -> None:
        """A horizontal axis from 0 to `top` with four to eight ticks."""
        self.line(x, y, x + width, y, width=1.0)
        for tick in ticks(top):
            at = x + width * tick / top
            self.line(at, y, at, y + 4, width=1.0)
            self.text(at, y + 13, f"{tick:g}", size=11)
        self.text(x + width / 2, y + 29, label, size=12)

    def svg(self, alt: str) -> str:
        """The picture as inline SVG, with a text for those who can't see it."""
        number = next(_numbers)
        parts = [_SVG[type(shape)](shape, number) for shape in self.shapes]
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{html.escape(alt)}" '
            f'viewBox="0 0 {self.width:g} {self.height:g}" width="{self.width:g}" '
            'style="max-width:100%;height:auto;display:block" font-family="sans-serif">'
            f"<title>{html.escape(alt)}</title>{_DEFS.replace('ID', str(number))}"
            f"{''.join(parts)}</svg>"
        )

    def figure(self) -> object:
        """The same picture as a matplotlib figure."""
        import matplotlib

        from ddp_helpers.plots.style import STYLE, CourseFigure

        with matplotlib.rc_context(STYLE):
            fig = CourseFigure(figsize=(self.width / 100, self.height / 100))
            ax = fig.add_axes((0, 0, 1, 1))
            ax.set(xlim=(0, self.width), ylim=(self.height, 0))
            ax.set_axis_off()
            for shape in self.shapes:
                _MATPLOTLIB[type(shape)](shape, ax)
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


def _box_svg(box: Box, number: int) -> str:
    place = f'x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}"'
    edge = f'stroke="{box.edge}" stroke-width="{box.line:g}"'
    plain = f'<rect {place} fill="{box.fill or "none"}" {edge}/>'
    return plain + (f'<rect {place} fill="url(#ddp-hatch-{number})"/>' if box.hatch else "")


def _line_svg(line: Line, _: int) -> str:
    dash = ' stroke-dasharray="5 3"' if line.dashed else ""
    ends = f'x1="{line.x:.1f}" y1="{line.y:.1f}" x2="{line.to_x:.1f}" y2="{line.to_y:.1f}"'
    head = ""
    if line.arrow:
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in _head(line))
        head = f'<polygon points="{corners}" fill="{line.color}"/>'
    return f'<line {ends} stroke="{line.color}" stroke-width="{line.width:g}"{dash}/>{head}'


def _words_svg(words: Words, _: int) -> str:
    weight = ' font-weight="bold"' if words.bold else ""
    text = html.escape(words.text)
    return (
        f'<text x="{words.x:.1f}" y="{words.y:.1f}" dy="0.35em" font-size="{words.size:g}" '
        f'text-anchor="{words.anchor}" fill="{words.color}"{weight}>{text}</text>'
    )


def _head(line: Line) -> list[tuple[float, float]]:
    """The three corners of an arrow head."""
    angle = math.atan2(line.to_y - line.y, line.to_x - line.x)
    sides = [
        (line.to_x + 8 * math.cos(angle + turn), line.to_y + 8 * math.sin(angle + turn))
        for turn in (math.pi - 0.45, math.pi + 0.45)
    ]
    return [(line.to_x, line.to_y), *sides]


def _box_matplotlib(box: Box, ax: object) -> None:
    from matplotlib.patches import Rectangle

    look = {"facecolor": box.fill or "none", "edgecolor": box.edge, "linewidth": 0.72 * box.line}
    place = (box.x, box.y), box.width, box.height
    ax.add_patch(Rectangle(*place, **look))
    if box.hatch:
        ax.add_patch(
            Rectangle(*place, facecolor="none", edgecolor="#444", hatch="///", linewidth=0)
        )


def _line_matplotlib(line: Line, ax: object) -> None:
    from matplotlib.patches import Polygon

    style = {"color": line.color, "linewidth": 0.72 * line.width}
    ax.plot([line.x, line.to_x], [line.y, line.to_y], "--" if line.dashed else "-", **style)
    if line.arrow:
        ax.add_patch(Polygon(_head(line), facecolor=line.color, linewidth=0))


def _words_matplotlib(words: Words, ax: object) -> None:
    side = {"start": "left", "middle": "center", "end": "right"}[words.anchor]
    color = GREY if words.color == CONTENT else words.color  # a PNG can't follow the page
    style = {"fontsize": 0.66 * words.size, "weight": "bold" if words.bold else "normal"}
    ax.text(words.x, words.y, words.text, ha=side, va="center", color=color, **style)


_SVG = {Box: _box_svg, Line: _line_svg, Words: _words_svg}
_MATPLOTLIB = {Box: _box_matplotlib, Line: _line_matplotlib, Words: _words_matplotlib}
