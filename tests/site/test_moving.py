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

from ddp_helpers import faults, widgets
from ddp_helpers.widgets import fault_lab, one_step
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
    value = lambda at, key: getattr(controls[key], "pairs", {at: ("", at)})[at][1]
    stands = lambda at, key: value(at, key) == values[key]  # a page hears only of what moves
    for _ in range(TIMES):
        moves = []
        for key in chosen.sample(list(controls), min(len(controls), chosen.randint(1, 3))):
            at = chosen.choice([at for at in places(controls[key]) if not stands(at, key)] or [0])
            moves.append((key, at))
            control = controls[key]
            values[key] = control.pairs[at][1] if isinstance(control, Choice) else at
            moved = settle(explorable, key, controls, values)
            ran = ran and moved <= set(explorable.keeps)
        if name in RECORDED and chosen.random() < 0.7:
            moves.append(("run", True))
            ran = True
            if isinstance(controls.get("moment"), Choice):  # which passes by itself until it moves
                at = chosen.choice(places(controls["moment"]))
                moves.append(("moment", at))
                values["moment"] = controls["moment"].pairs[at][1]
        found.append((moves, dict(values), ran))
    return found


def settle(explorable: Explorable, moved: str, controls: dict, values: dict) -> set[str]:
    """What has moved in the end, as ipywidgets do it: one that changes calls the next."""
    now = explorable.adjust(moved, **values) if explorable.adjust else {}
    before = dict(values)
    controls |= now
    values |= {key: each.value for key, each in now.items()}
    found = {moved}
    for key in now:
        if values[key] != before[key]:
            found |= settle(explorable, key, controls, values)
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
    assert others == ["sampler", "monitor", "accumulation", "ladder"]


def test_a_page_on_which_nothing_moves_loads_nothing_for_it(page, address):
    page.goto(f"{address}exercises.html")
    assert page.locator("script[src*='play.js']").count() == 0


def test_a_recorded_run_passes_by_and_can_be_stopped(page, address):
    page.goto(f"{address}explorables.html")
    run = page.locator('.ddp-play[data-explorable="monitor"]')
    assert run.get_by_role("button", name="Play").is_disabled()  # first predict, then run
    run.locator("[name=slow_ms]").press("End")  # a run of some seconds
    run.get_by_role("button", name="Train on real ranks (recorded)").press("Enter")
    words, moment = run.locator("[role=status]"), run.get_by_label("moment of the run").last
    page.wait_for_function("document.querySelector('.ddp-film output').textContent > '0.5 s'")
    assert words.get_attribute("aria-live") == "off"
    run.get_by_role("button", name="Pause").press("Enter")
    stands = int(moment.input_value())
    assert "rank 0 trains, step" in words.inner_text()
    assert words.get_attribute("aria-live") is None
    run.get_by_role("button", name="One on").press("Enter")
    assert int(moment.input_value()) == stands + 1
    moment.press("End")
    page.locator("svg[aria-label*='rank 1 done, step']").wait_for()
    assert "recorded" in run.inner_text()
    assert "2 CPU cores" in run.inner_text()


def test_who_wants_no_motion_sees_how_a_run_ended(chrome, address):
    page = chrome.new_page(reduced_motion="reduce")
    page.set_default_timeout(90_000)
    page.goto(f"{address}explorables.html")
    run = page.locator('.ddp-play[data-explorable="monitor"]')
    run.get_by_role("button", name="Train on real ranks (recorded)").click()
    page.locator("svg[aria-label*='rank 1 done, step']").wait_for()
    assert run.get_by_role("button", name="Play").is_enabled()
    page.close()


def test_the_failure_lab_asks_for_the_cause_and_then_shows_the_mend(page, address):
    page.goto(f"{address}notebooks/05_when_it_breaks.html")
    page.evaluate(UNFOLD)
    lab = page.locator('.ddp-play[data-explorable="fault_lab"]')
    lab.get_by_label("it shows as").select_option("silently wrong")
    number = faults.names("silently wrong").index("no_set_epoch") + 1
    lab.get_by_label("case").select_option(f"case {number}")
    lab.get_by_text("orders = ").wait_for()
    lab.get_by_role("button").press("Enter")
    said = lab.get_by_role("status")
    said.filter(has_text="What is wrong? Choose a diagnosis.").wait_for()
    assert "What torch prints, without launch()" in lab.inner_text()
    assert "The report" not in lab.inner_text()
    lab.get_by_label("your diagnosis").select_option("No set_epoch")
    said.filter(has_text="Right: No set_epoch.").wait_for()
    assert "sampler.set_epoch(epoch)" in lab.inner_text()
    assert "The report" in lab.inner_text()


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
    ring.get_by_role("slider", name="步", exact=True).press("ArrowRight")
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
    if name == "fault_lab":  # which cases there are depends on how they show
        cases = [case for group in faults.GROUPS for case in faults.names(group)]
        assert grid == {"fault": cases, "version": list(fault_lab.VERSIONS)}
        return
    for key, values in grid.items():
        control = explorable.controls[key]
        pairs = getattr(control, "pairs", [("", place) for place in places(control)])
        assert [value for _, value in pairs] == values


def test_what_was_recorded_names_no_folder_of_the_machine():
    home = re.compile(r"(?<!\.\.\.)/(?:lib/python\d|home/|root/|tmp/pytest)")
    files = sorted((ROOT / ".site").glob("*/recorded*")) + sorted(
        ROOT.glob(".site/*/recorded/**/*")
    )
    texts = {path: path.read_text() for path in files if path.is_file()}
    assert len(texts) > 5
    assert not {path: found[0] for path, text in texts.items() if (found := home.search(text))}


def test_a_result_is_the_same_after_it_was_written_and_read():
    steps = (one_step.Step((one_step.Part("rank 0", "forward", 0.5, 1.25),), 1.25),)
    assert decode(encode({"DDP": steps})) == {"DDP": steps}
