"""Explorables on their pages, in a real Chromium: moved by their controls, they draw what Python
draws in a kernel; and what a page says where they cannot move."""

import itertools
import os
import random
import re
import sys
import xml.etree.ElementTree as ET

import pytest
from conftest import ROOT, watched

from ddp_helpers import widgets
from ddp_helpers.widgets import one_step
from ddp_helpers.widgets.base import Explorable
from ddp_helpers.widgets.controls import Choice, Slider

sys.path[:0] = [str(ROOT / ".site"), str(ROOT / ".site" / "play")]

import moving  # noqa: E402
from mover import MOVING, RECORDED, load, recording, result_of  # noqa: E402
from recordings import decode, encode  # noqa: E402

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]
TIMES = 20
UNFOLD = "document.querySelectorAll('details').forEach((each) => each.open = true)"
LARGEST = 40  # MB
MOVE = """async ([name, steps]) => {
  const root = document.querySelector(`.ddp-play[data-explorable="${name}"]`);
  const seen = [];
  for (const {moves, detail} of steps) {
    for (const [control, at] of moves) {
      const drawn = new Promise((done) => root.addEventListener("ddp-drawn", done, {once: true}));
      const input = root.querySelector(`[name="${control}"]`);
      if (control === "run") root.querySelector(".ddp-run").click();
      else if (input.type === "checkbox") input.checked = at;
      else input.value = at;
      input?.dispatchEvent(new Event("input", {bubbles: true}));
      await drawn;
    }
    const same = document.createElement("div");
    same.innerHTML = detail;
    seen.push({
      shapes: [...root.querySelectorAll(".ddp-picture svg *")].map((each) => [
        each.tagName,
        Object.fromEntries([...each.attributes].map(({name, value}) => [name, value])),
        each.children.length ? "" : each.textContent,
      ]),
      words: root.querySelector(".ddp-words").innerText,
      alt: root.querySelector(".ddp-picture svg").getAttribute("aria-label"),
      detail: root.querySelector(".ddp-detail").innerHTML === same.innerHTML,
    });
  }
  return seen;
}"""


@pytest.fixture(scope="module", autouse=True)
def _pyodide():
    if not moving.moving():
        assert not os.environ.get("CI"), "CI must install Pyodide: npm ci --prefix .site"
        pytest.skip("no Pyodide here: npm ci --prefix .site")


def places(control) -> list[int | bool]:
    """Where a control can stand, as the page counts."""
    if isinstance(control, Slider):
        return list(range(control.least, control.most + 1, control.step))
    return list(range(len(control.pairs))) if isinstance(control, Choice) else [False, True]


def walk(name: str, explorable: Explorable) -> list[tuple[list, dict, bool]]:
    """Moves of one to three controls and now and then the button; after them the values, and
    whether what the ranks did is shown, as a kernel has it."""
    chosen = random.Random(name)
    controls = dict(explorable.controls)
    values = {key: control.value for key, control in controls.items()}
    found, ran = [], False
    for _ in range(TIMES):
        moves = []
        for key in chosen.sample(list(controls), min(len(controls), chosen.randint(1, 3))):
            at = chosen.choice(places(controls[key]))
            moves.append((key, at))
            control = controls[key]
            values[key] = control.pairs[at][1] if isinstance(control, Choice) else at
            if explorable.adjust:
                now = explorable.adjust(key, **values)
                controls |= now
                values |= {other: each.value for other, each in now.items()}
            ran = ran and key in explorable.keeps
        if name in RECORDED and chosen.random() < 0.7:
            moves.append(("run", True))
            ran = True
        found.append((moves, dict(values), ran))
    return found


def shapes(svg: str) -> list[tuple[str, dict, str]]:
    """Every element below an SVG's root, with what it says."""
    root = ET.fromstring(svg)
    return [
        (
            each.tag.rpartition("}")[2],
            {key.rpartition("}")[2]: plain(value) for key, value in each.attrib.items()},
            "" if len(each) else each.text or "",
        )
        for each in list(root.iter())[1:]
    ]


def plain(text: str) -> str:
    """Two pictures count their patterns on."""
    return re.sub(r"ddp-hatch-\d+", "ddp-hatch", text)


@pytest.mark.parametrize("name", MOVING)
def test_it_draws_on_its_page_what_python_draws(page, address, name):
    explorable = load(name)
    steps, wanted = [], []
    for moves, values, ran in walk(name, explorable):
        try:
            picture = explorable.picture(values, result_of(name, values, ran))
            wanted.append((picture, picture.words))
        except ValueError as error:  # the picture before stays, and is not compared again
            picture = wanted[-1][0] if wanted else None
            wanted.append((picture, f"Not possible: {error}"))
        steps.append({"moves": moves, "detail": picture.detail if picture else ""})
    if not page.url.endswith("explorables.html"):
        page.goto(f"{address}explorables.html")
    seen = page.evaluate(MOVE, [name, steps])
    assert len({plain(str(each["shapes"])) for each in seen}) >= 5
    for now, (picture, words), step in zip(seen, wanted, steps, strict=True):
        assert " ".join(now["words"].split()) == " ".join(words.split()), step["moves"]
        if picture is None:
            continue
        assert now["alt"] == picture.words
        assert now["detail"]
        drawn = [
            (kind, {key: plain(value) for key, value in attributes.items()}, text)
            for kind, attributes, text in now["shapes"]
        ]
        assert drawn == shapes(picture.scene.svg(picture.words)), step["moves"]


def test_only_a_touch_loads_python_and_the_keyboard_moves_it(page, address):
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.mouse.move(0, 0)
    page.goto(f"{address}notebooks/03_training_loop.html")
    page.wait_for_load_state("networkidle")
    assert not [url for url in asked if "/play/" in url]
    page.evaluate(UNFOLD)
    sampler = page.locator('.ddp-play[data-explorable="sampler"]')
    assert "each of 3 ranks gets 4 samples" in sampler.locator("[role=status]").inner_text()
    slider = sampler.get_by_label("samples")
    slider.focus()
    slider.press("ArrowRight")
    page.wait_for_function(
        "document.querySelector('[data-explorable=sampler] svg')?.ariaLabel.includes('of 3 ranks')"
    )
    assert sampler.locator("output").first.inner_text() == "11"
    assert "each of 3 ranks gets 4 samples" in sampler.locator("[role=status]").inner_text()
    assert "Padding: 1" in sampler.locator("[role=status]").inner_text()
    assert [url for url in asked if "/play/" in url]
    others = page.locator(".ddp-play").evaluate_all("all => all.map(e => e.dataset.explorable)")
    assert others == ["sampler", "accumulation", "ladder"]  # no monitor: it needs ranks


def test_a_page_on_which_nothing_moves_loads_nothing_for_it(page, address):
    page.goto(f"{address}exercises.html")
    assert page.locator("script[src*='play.js']").count() == 0


def test_as_a_file_it_stands_still_and_says_how_it_moves(site, chrome):
    page = chrome.new_page()
    with watched(page, site.as_uri() + "/") as seen:
        page.goto(site.as_uri() + "/explorables.html")
        ring = page.locator('.ddp-play[data-explorable="ring"]')
        assert ring.locator("svg").is_visible()
        assert not ring.locator("input").first.is_visible()
        assert "make serve" in ring.locator(".ddp-how").inner_text()
    page.close()
    assert (seen.errors, seen.outside) == ([], [])


def test_a_chinese_lesson_moves_too(page, address):
    page.goto(f"{address}notebooks/zh_CN/01_process_groups.html")
    page.evaluate(UNFOLD)
    ring = page.locator('.ddp-play[data-explorable="ring"]')
    ring.get_by_label("step").press("ArrowRight")
    ring.locator("svg[aria-label^='第 3 步\uff0c']").wait_for()
    ring.get_by_role("button", name="逐步播放").click()
    for step in (4, 5, 6):
        ring.locator(f"svg[aria-label^='第 {step} 步\uff0c']").wait_for()
    ring.locator("[aria-pressed=false]").wait_for()
    assert "控件" in ring.locator(".ddp-how").inner_text()


def test_the_site_stays_small(site):
    size = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    assert size < 1e6 * LARGEST


def test_without_pyodide_the_pictures_stand_still(tmp_path, monkeypatch):
    import explorable_page

    monkeypatch.setattr(moving, "PYODIDE", tmp_path / "nothing")
    assert moving.moving() == ()
    explorable_page.write_explorables(ROOT, tmp_path)
    text = (tmp_path / "explorables.md").read_text()
    assert "ddp-play" not in text
    assert text.count("![") == len(widgets.NAMES)


@pytest.mark.parametrize("name", RECORDED)
def test_what_was_recorded_holds_every_setting_of_a_page(name):
    explorable = load(name)
    grid = recording(name).grid
    assert set(grid) == set(explorable.controls) - set(explorable.keeps)
    for setting in itertools.product(*grid.values()):
        assert recording(name).result(dict(zip(grid, setting, strict=True)))
    for key, values in grid.items():
        control = explorable.controls[key]
        pairs = getattr(control, "pairs", [("", place) for place in places(control)])
        assert [value for _, value in pairs] == values


def test_a_result_is_the_same_after_it_was_written_and_read():
    steps = (one_step.Step((one_step.Part("rank 0", "forward", 0.5, 1.25),), 1.25),)
    assert decode(encode({"DDP": steps})) == {"DDP": steps}
