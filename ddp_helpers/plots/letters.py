"""Figures in the reader's language, where a font has its letters; else the English text stays.

A letter that no font has would be drawn as an empty box. So each is looked up in the font's own
table before a text is drawn. An SVG scene needs none of this: a browser looks for itself.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Literal

from matplotlib import font_manager, rcParams
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text
from matplotlib.ticker import FixedLocator

from ddp_helpers.words import VARIABLE, shown

USUAL = (  # tried first: others have fewer letters, or are made for headings
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans SC", "Source Han Sans SC"),
    *("Source Han Sans CN", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Microsoft YaHei"),
    *("PingFang SC", "SimHei", "Droid Sans Fallback"),
)
A_LETTER = "\u4e2d"  # a font without this one has no Chinese


def drawable(text: str) -> tuple[str, list[str] | None]:
    """The text as it can be drawn, and the fonts for it; None where any font will do."""
    told = shown(text)
    if told == text or "$" in told:
        return text, None
    own = list(rcParams["font.family"])
    missing = {letter for letter in told if not letter.isascii()} - _own_letters(tuple(own))
    if not missing:
        return told, None
    font = _font_with(missing)
    return (told, [*own, font]) if font else (text, None)


def say_in_readers_words(fig: Figure) -> None:
    """Each text of a figure in the reader's language, as far as there are words and letters."""
    if not os.environ.get(VARIABLE):
        return
    for artist in fig.findobj(Text):
        text, fonts = drawable(artist.get_text())
        if text != artist.get_text():
            artist.set(text=text, fontfamily=fonts)
    for ax in fig.axes:  # the texts of ticks are made again at each drawing
        _say_ticks(ax, "x", ax.xaxis)
        _say_ticks(ax, "y", ax.yaxis)


def _say_ticks(ax: Axes, name: Literal["x", "y"], axis: Axis) -> None:
    """Labels that were given one by one; numbers have none."""
    form, places = axis.get_major_formatter(), axis.get_majorticklocs().tolist()
    if not isinstance(axis.get_major_locator(), FixedLocator):
        return
    old = [str(form(place, at)) for at, place in enumerate(places)]
    new = [drawable(label) for label in old]
    if old != [text for text, _ in new]:
        axis.set_ticks(places, [text for text, _ in new])
    if fonts := next((fonts for _, fonts in new if fonts), None):
        ax.tick_params(axis=name, labelfontfamily=fonts)


def _font_with(letters: set[str]) -> str | None:
    """The name of a font that has all these letters."""
    fonts = _chinese(tuple(font.fname for font in font_manager.fontManager.ttflist))
    return next((name for name, file in fonts if letters <= _letters(file)), None)


@cache
def _chinese(files: tuple[str, ...]) -> list[tuple[str, str]]:
    """Names and files of the fonts with Chinese letters, the usual ones first.

    Args:
        files: those that matplotlib knows; it keeps a list, which may be older than a font.
    """
    known = font_manager.fontManager.ttflist
    found = {font.name: font.fname for font in known if font.name in USUAL}
    if not found:
        for file in set(font_manager.findSystemFonts()) - set(files):
            if A_LETTER in _letters(file):
                font_manager.fontManager.addfont(file)
        found = {font.name: font.fname for font in known if A_LETTER in _letters(font.fname)}
    rank = {name: at for at, name in enumerate(USUAL)}
    return sorted(found.items(), key=lambda pair: rank.get(pair[0], len(USUAL)))


@cache
def _letters(file: str) -> frozenset[str]:
    try:
        return frozenset(map(chr, FT2Font(file).get_charmap()))
    except (OSError, RuntimeError):  # it went away, or is no font after all
        return frozenset()


@cache
def _own_letters(families: tuple[str, ...]) -> frozenset[str]:
    found = font_manager.findfont(FontProperties(family=list(families)))
    return _letters(found)
