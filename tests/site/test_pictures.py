"""Explorables as pictures: whatever their controls say, all words can be read, and none is cut."""

import math
import random
import sys

import pytest
from conftest import ROOT
from test_moving import walk

from ddp_helpers import faults, widgets
from ddp_helpers.evidence.records import ALL, Frame, LaunchResult, RankResult, TimedCall
from ddp_helpers.plots.colors import GREY
from ddp_helpers.plots.lanes import draw_run
from ddp_helpers.plots.scene import CONTENT, PAGE, Scene, Words
from ddp_helpers.widgets.monitor import OfRank, Watch
from ddp_helpers.words import VARIABLE, columns, shown

sys.path.insert(0, str(ROOT / ".site" / "play"))

from mover import RECORDED, load, result_of

ROOM = 640  # pixels of a picture in JupyterLab, in a window of 820; a page has more
LETTER = 0.5  # of a font's size: narrower than most letters, so what fails is cut indeed


def watched(ranks, **_):
    told = Watch([OfRank() for _ in range(ranks)])
    for rank, one in enumerate(told.ranks):
        told.output(rank, [f"worked {12 * rank + 2:.1f} ms, waited 123.4 ms a step"])
        for step in range(1, 1251):
            one.tell(step / 100, step, 1250, 2 / step)
        told.end(rank, "was ended")
    return told


def seen(**_):
    ranks = (RankResult(0, exit_code=-9, seconds=12.0), RankResult(1, seconds=12.5))
    return faults.Seen("the report", (), "printed\n", LaunchResult(ranks))


MADE = {"monitor": watched, "fault_lab": seen, "planner": lambda **_: None}
MADE |= {"accumulation": lambda **_: None}


def assert_readable(scene: Scene, about: object) -> None:
    assert scene.width <= PAGE, about
    assert scene.narrowest <= ROOM, (about, min(s.size for s in scene.shapes if type(s) is Words))
    for shape in scene.shapes:
        if not isinstance(shape, Words):
            continue
        signs = len(shape.text) == 1  # ✓ is large, and words say the same
        assert signs or shape.color in (CONTENT, GREY, "#000000"), (about, shape)
        wide = LETTER * shape.size * columns(shown(shape.text))
        left = shape.x - {"start": 0, "middle": wide / 2, "end": wide}[shape.anchor]
        assert left >= -1, (about, shape)
        assert left + wide <= scene.width + 1, (about, shape)
        assert shape.size / 2 - 1 <= shape.y <= scene.height - shape.size / 2 + 1, (about, shape)


@pytest.mark.parametrize("language", ["", "zh_CN"])
@pytest.mark.parametrize("name", widgets.NAMES)
def test_all_words_can_be_read_in_a_window_of_820_pixels(name, language, monkeypatch):
    monkeypatch.setenv(VARIABLE, language)
    explorable = load(name)
    for _, values, ran in walk(name, explorable):
        result = None
        if name in RECORDED or name == "machine_room":
            result = result_of(name, values, ran)
        elif name in MADE and random.Random(str(values)).random() < 0.7:
            result = MADE[name](**values)
        try:
            picture = explorable.picture(values, result)
        except ValueError:
            continue  # what does not go together is not drawn
        assert_readable(picture.scene, values)


def test_so_can_those_of_a_drawn_run():
    call = TimedCall("all_reduce", Frame("cell In[3]", 5, "f"), ALL, 8, None, (0, 1), 0, 1, 1, None)
    ranks = [RankResult(0, exit_code=0), RankResult(1, calls=(call,)), *map(RankResult, (2, 3))]
    assert_readable(draw_run(ranks)[0], "four ranks")


def test_a_picture_for_more_ranks_scrolls_where_it_would_be_too_small():
    scene, words = draw_run([RankResult(rank, exit_code=0) for rank in range(8)])
    assert scene.width > PAGE
    assert f"min-width:{math.ceil(scene.width * 11 / 12)}px" in scene.svg(words)
