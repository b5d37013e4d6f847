"""Recorded runs under the cells of lessons: played, they show what the ranks did, and nothing is
loaded for it."""

import json
import sys

import pytest
from conftest import ROOT, watched

sys.path.insert(0, str(ROOT / ".site"))

import run_page
from recordings import decode

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]
LESSONS = sorted(path.stem for path in run_page.FOLDER.glob("*.json"))
HANG = "one_stays_away"  # of 01, from an all_reduce
UNFOLD = "document.querySelectorAll('details').forEach((each) => each.open = true)"


def notebook(lesson: str) -> dict:
    return json.loads((ROOT / "notebooks" / f"{lesson}.ipynb").read_text(encoding="utf-8"))


def played(lesson: str, book: dict) -> set[str]:
    """What is launched in the cells that can be played."""
    codes = {run["code"] for run in run_page.playable(lesson, book).values()}
    return {
        name for name, run in run_page.recorded(lesson)["cells"].items() if run["code"] in codes
    }


def test_enough_cells_are_the_ones_that_were_recorded():
    found = {lesson: played(lesson, notebook(lesson)) for lesson in LESSONS}
    lost = {each: set(run_page.recorded(each)["cells"]) - found[each] for each in LESSONS}
    assert sum(map(len, found.values())) >= 8, f"changed since: {lost}; make recordings"
    assert len([lesson for lesson in found if found[lesson]]) >= 3
    assert HANG in found["01_process_groups"]


def test_a_changed_cell_is_not_played():
    lesson = notebook("01_process_groups")
    for cell in lesson["cells"]:
        if f"def {HANG}" in "".join(cell["source"]):
            cell["source"] = "".join(cell["source"]) + "  # changed"
    found = played("01_process_groups", lesson)
    assert HANG not in found
    assert len(found) > 5


@pytest.mark.parametrize("lesson", LESSONS)
def test_what_was_recorded_has_every_rank_and_its_times_in_order(lesson):
    for run in run_page.recorded(lesson)["cells"].values():
        ranks = decode(run["ranks"])
        assert [rank.rank for rank in ranks] == list(range(len(ranks)))
        times = [at for at, _, _ in run["told"]]
        assert times == sorted(times)
        assert all(0 <= at <= run["seconds"] for at in times)
        assert all(0 <= call.began <= run["seconds"] for rank in ranks for call in rank.calls)


@pytest.mark.parametrize("lesson", ["01_process_groups", "zh_CN/01_process_groups"])
def test_a_hang_is_played_by_the_keyboard(page, address, lesson):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{address}notebooks/{lesson}.html")
    run = page.locator(".ddp-recorded", has_text="all_reduce is missing")
    assert run.count() == 0  # it is drawn only for who plays it
    number = run_page.recorded("01_process_groups")["cells"][HANG]
    cell = page.locator(".cell", has_text="def one_stays_away")
    cell.locator(".ddp-recorded .ddp-run").press("Enter")
    slider = cell.locator(".ddp-film input")
    page.wait_for_function("slider => Number(slider.value) > 0", arg=slider.element_handle())
    page.keyboard.press("Enter")  # the focus is on its button: it pauses
    stands = slider.input_value()
    clip = "each => getComputedStyle(each).clipPath"
    assert cell.locator(".ddp-picture > svg").evaluate(clip).startswith("inset(")
    page.wait_for_timeout(400)
    assert slider.input_value() == stands
    slider.press("End")
    assert cell.locator(".ddp-picture > svg").evaluate(clip) == "none"
    assert "all_reduce is missing" in cell.locator(".ddp-picture > svg").text_content()
    lines = cell.locator(".ddp-lines").inner_text()
    assert all(text.strip() in lines for _, _, text in number["told"])
    assert "Missing: all_reduce of rank 2" in cell.locator(".ddp-said").inner_text()
    assert not [url for url in asked if "/play/" in url]


def test_who_wants_no_motion_sees_its_end_and_a_file_plays_too(chrome, site):
    page = chrome.new_page(reduced_motion="reduce")
    with watched(page, site.as_uri()) as seen:
        page.goto(f"{site.as_uri()}/notebooks/01_process_groups.html")
        cell = page.locator(".cell", has_text="def one_stays_away")
        cell.locator(".ddp-recorded .ddp-run").click()
        slider = cell.locator(".ddp-film input")
        assert slider.input_value() == slider.get_attribute("max")
        assert "Missing: all_reduce of rank 2" in cell.locator(".ddp-said").inner_text()
    page.close()
    assert (seen.errors, seen.outside) == ([], [])
