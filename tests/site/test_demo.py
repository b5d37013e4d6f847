"""The moving picture that README opens with: what it shows was recorded, and it can stand still."""

import json
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / ".site"))

from demo import picture

FILE = ROOT / "notebooks" / "images" / "demo.svg"
OPACITY = "each => getComputedStyle(each).opacity"
RECORDED = json.loads((ROOT / ".site" / "demo" / "recorded.json").read_text())


def test_the_picture_is_the_one_of_the_recording():
    assert FILE.read_text() == picture.draw(RECORDED), "python .site/demo/picture.py draws it anew"


def test_in_the_recording_one_waits_and_the_other_says_why():
    assert RECORDED["alone"]["alive"]
    assert RECORDED["alone"]["lines"] == []
    lines = [line for _, line in RECORDED["launched"]["lines"]]
    program = (ROOT / ".site" / "demo" / "stuck.py").read_text().splitlines()
    line = 1 + next(at for at, text in enumerate(program) if "barrier" in text)
    assert f"rank 0 waited in barrier at train.py, line {line}, in train: dist.barrier()" in lines
    assert any(line.startswith("why: the ranks wait in different calls") for line in lines)


def test_in_the_recording_two_models_part_and_the_sanitizer_says_where():
    alone, watched = RECORDED["drifting"]["alone"], RECORDED["drifting"]["watched"]
    last = {rank: weight for _, rank, _, _, weight in alone["steps"]}
    first = {rank: loss for _, rank, _, loss, _ in reversed(alone["steps"])}
    ends = {rank: loss for _, rank, _, loss, _ in alone["steps"]}
    assert abs(last[0] - last[1]) > 1
    assert all(ends[rank] < first[rank] / 2 for rank in (0, 1))  # and yet both seem to learn
    assert alone["lines"] == []
    assert len(watched["steps"]) < len(alone["steps"]) / 2
    lines = [line for _, line in watched["lines"]]
    assert lines[0].startswith("sanitizer: no gradient was averaged on ranks 0 and 1")
    program = (ROOT / ".site" / "demo" / "drift.py").read_text().splitlines()
    at = 1 + next(at for at, text in enumerate(program) if "optimizer.step()" in text)
    assert f"  at drift.py, line {at}, in train" in lines


@pytest.mark.browser
@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_it_moves_only_for_those_who_want_motion(chrome, motion):
    context = chrome.new_context(reduced_motion=motion)
    page = context.new_page()
    page.goto(FILE.as_uri())
    moving = page.evaluate("document.getAnimations().length")
    report = page.locator("text.bad", has_text="why:").evaluate(OPACITY)
    context.close()
    assert (moving > 50, report) == ((False, "1") if motion == "reduce" else (True, "0"))
