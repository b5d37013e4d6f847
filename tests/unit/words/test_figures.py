"""What is drawn in the reader's language: figures where a font has its letters, and explorables."""

import re
import warnings
from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.text import Text

from ddp_helpers.plots import letters, plot_bars, plot_timeline
from ddp_helpers.plots.scene import Scene
from ddp_helpers.plots.style import png_bytes
from ddp_helpers.words import VARIABLE

CHINESE = re.compile("[\u4e00-\u9fff]")
TITLE = "每个 rank 在做什么（3 个 rank）"
SPANS = [(0, "works", 0.0, 1.0), (1, "waits", 0.5, 1.0), (2, "works", 0.0, 2.0)]


@pytest.fixture
def chinese(monkeypatch):
    monkeypatch.setenv(VARIABLE, "zh_CN")


@pytest.fixture
def no_font(monkeypatch):
    """A machine without Chinese letters: its fonts are hidden from matplotlib, and from a look."""
    known = font_manager.fontManager.ttflist
    latin = [font for font in known if letters.A_LETTER not in letters._letters(font.fname)]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", latin)
    monkeypatch.setattr(font_manager, "findSystemFonts", list)
    letters._chinese.cache_clear()
    yield
    letters._chinese.cache_clear()


def make_font(path: Path, name: str, some: str) -> str:
    """A font file with boxes for these letters, and nothing else."""
    pen = TTGlyphPen(None)
    pen.moveTo((100, 0))
    for corner in ((100, 800), (900, 800), (900, 0)):
        pen.lineTo(corner)
    pen.closePath()
    glyph, names = pen.glyph(), {ord(letter): f"uni{ord(letter):04X}" for letter in some}
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap(names)
    builder.setupGlyf(dict.fromkeys((".notdef", *names.values()), glyph))
    builder.setupHorizontalMetrics(dict.fromkeys((".notdef", *names.values()), (1000, 100)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": name, "styleName": "Regular"})
    builder.setupOS2(sTypoAscender=900)
    builder.setupPost()
    builder.save(path)
    return str(path)


def drawn(figure) -> list[str]:
    """What stands on a figure; a letter without a glyph is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        png_bytes(figure)
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def test_a_font_that_is_there_draws_the_chinese_title(chinese, no_font, tmp_path):
    some = letters.A_LETTER + "".join(CHINESE.findall(TITLE)) + "（）时间工作等待"
    font_manager.fontManager.addfont(make_font(tmp_path / "a.ttf", "Some Letters", some))
    letters._chinese.cache_clear()
    texts = drawn(plot_timeline(SPANS))
    assert {TITLE, "时间 (s)", "工作", "等待"} <= set(texts)


def test_without_a_font_the_english_words_stay(chinese, no_font, monkeypatch):
    figure = plot_timeline(SPANS)
    assert {"What each rank does (3 ranks)", "time (s)", "works"} <= set(drawn(figure))
    told = png_bytes(figure)
    monkeypatch.delenv(VARIABLE)
    assert png_bytes(plot_timeline(SPANS)) == told


def test_a_font_that_lacks_a_letter_is_not_taken(chinese, no_font, tmp_path):
    some = letters.A_LETTER + "时间工"
    font_manager.fontManager.addfont(make_font(tmp_path / "b.ttf", "Few Letters", some))
    letters._chinese.cache_clear()
    texts = drawn(plot_timeline(SPANS))
    assert {"时间 (s)", "works", "waits", "What each rank does (3 ranks)"} <= set(texts)


def test_the_fonts_of_this_machine(chinese):
    if not letters._font_with({letters.A_LETTER}):
        pytest.skip("no font with Chinese letters here: apt install fonts-noto-cjk")
    assert TITLE in drawn(plot_timeline(SPANS))
    names = ["one process\n1 worker", "threads\n2 workers"]
    figure = plot_bars(names, [[1.0, 2.0, 3.0], 2.0], ylabel="one step (ms)", title="a run")
    told = drawn(figure)
    assert {"单个进程\n1 个 worker", "单步耗时 (ms)", "a run", "中位数 2"} <= set(told)


def test_a_scene_is_chinese_in_both_forms(chinese):
    scene = Scene(200, 100)
    scene.text(10, 10, "not measured yet")
    svg = scene.svg("The last batch has 3.")
    assert "还没有测量" in svg
    assert "最后一个批次有 3 个" in svg
    found = bool(letters._font_with(set("还没有测量")))
    assert ("还没有测量" in drawn(scene.figure())) is found


def test_a_font_that_came_after_matplotlib_made_its_list(chinese, no_font, tmp_path, monkeypatch):
    some = letters.A_LETTER + "时间"
    file = make_font(tmp_path / "c.ttf", "New Letters", some)
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [file])
    assert letters._font_with(set("时间")) == "New Letters"
