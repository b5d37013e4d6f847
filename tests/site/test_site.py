"""Every page of the site in a real Chromium, with no network: it works, and asks for nothing."""

import importlib.util
import json
import re
import sys
import tomllib
from urllib.parse import unquote, urldefrag

import pytest
from conftest import ROOT, watched

from ddp_helpers.exercises import names
from ddp_helpers.exercises.core import load, source_of
from ddp_helpers.recipes import recipes
from ddp_helpers.scaling.others import rows, summary
from ddp_helpers.templates import template_files
from ddp_helpers.widgets import NAMES as EXPLORABLES
from ddp_helpers.widgets.ladder import RUNGS

pytestmark = [pytest.mark.browser, pytest.mark.timeout(400)]
LESSONS = sorted((ROOT / "notebooks").glob("**/[0-9]*.ipynb"))
MODULES = (
    *("ddp_helpers", "group", "training", "training.precision", "training.schedule", "data"),
    *("checkpoints", "training.resume", "timeline", "timeline.plots", "scaling", "exercises"),
    *("widgets", "sanitizer", "faults"),
)
IF_THERE = ("CHANGELOG.md", "notebooks/TROUBLESHOOTING.md", "notebooks/zh_CN/GLOSSARY.md")
IF_THERE += ("notebooks/zh_CN/TROUBLESHOOTING.md", "notebooks/zh_CN/INSTRUCTOR.md")


def html(path) -> str:
    return path.relative_to(ROOT).with_suffix(".html").as_posix()


def test_every_lesson_template_and_module_has_a_page(seen):
    wanted = {"index.html", "exercises.html", "explorables.html", "notebooks/INSTRUCTOR.html"}
    wanted |= {html(path) for path in LESSONS}
    wanted |= {html(ROOT / name) for name in IF_THERE if (ROOT / name).exists()}
    wanted |= {f"templates/{name}.html" for name in template_files()}
    wanted |= {f"recipes/{name}.html" for name in recipes()}
    wanted |= {f"zh_CN/{name}" for name in ("exercises.html", "explorables.html", "faults.html")}
    wanted |= {f"zh_CN/templates/{name}.html" for name in template_files()} | {"zh_CN-search.html"}
    wanted |= {"faults.html", "published_errors.html"} | {f"api/{name}.html" for name in MODULES}
    assert len(LESSONS) >= 7
    assert sorted(wanted - seen.keys()) == []


def test_no_page_has_an_error(seen):
    assert {name: each.errors for name, each in seen.items() if each.errors} == {}


def test_no_page_asks_for_anything_outside(seen):
    assert {name: each.outside for name, each in seen.items() if each.outside} == {}


def test_every_picture_is_there(seen):
    assert {name: each.broken_images for name, each in seen.items() if each.broken_images} == {}


def test_every_link_within_the_site_leads_somewhere(seen, site, address):
    dead = set()
    for name, each in seen.items():
        for link in each.links:
            if not link.startswith(address):
                assert link.startswith(("https://", "http://")), f"{name}: {link}"
                continue
            target, anchor = urldefrag(link.removeprefix(address))
            target = unquote(target) or "index.html"
            lost = anchor and target in seen and unquote(anchor) not in seen[target].ids
            if not (site / target).is_file() or lost:
                dead.add((name, link))
    assert sorted(dead) == []


def test_every_picture_fits_a_phone(seen):
    assert {name: each.wide_images for name, each in seen.items() if each.wide_images} == {}


def search(page, address: str, words: str, found: str = "found", home: str = "index.html"):
    """The links of the results, after the last one has come."""
    page.goto(f"{address}{home}")
    page.locator("input[name=q]").first.fill(words)
    page.locator("input[name=q]").first.press("Enter")
    said = "document.querySelector('#search-results p')?.innerText"
    page.wait_for_function(f"{said}.match(/{found}/)")
    return page.locator("#search-results ul.search > li > a")


def test_search_leads_to_the_lesson_about_it(page, address):
    results = search(page, address, "set_epoch")
    assert results.first.inner_text() == "03 · The training loop"
    page.locator("#search-results li p.context").first.wait_for()
    results.first.click()
    page.wait_for_url("**/notebooks/03_training_loop.html*")
    assert "sampler.set_epoch(epoch)" in page.locator("article").inner_text()


def test_search_finds_a_function_first(page, address):
    results = search(page, address, "launch")
    assert results.first.get_attribute("href").startswith("api/ddp_helpers.html#")


def test_search_finds_two_characters_within_a_chinese_sentence(page, address):
    results = search(page, address, "会合")
    assert "notebooks/zh_CN/01_process_groups.html" in {
        link.get_attribute("href").partition("?")[0] for link in results.all()
    }


def test_a_chinese_page_searches_in_chinese_and_finds_chinese_lessons_first(page, address):
    results = search(page, address, "all_reduce", found="匹配", home="zh_CN.html")
    assert page.url.startswith(f"{address}zh_CN-search.html?")
    first = [link.get_attribute("href").partition("?")[0] for link in results.all()[:3]]
    assert all(link.startswith("notebooks/zh_CN/0") for link in first), first


def test_search_that_finds_nothing_says_so(page, address):
    page.goto(f"{address}search.html?q=zzzqqq")
    page.get_by_text("did not match any documents").wait_for()


def test_it_works_without_a_server(site, chrome):
    page = chrome.new_page()
    page.set_default_timeout(90_000)
    with watched(page, site.as_uri() + "/") as seen:
        first = search(page, site.as_uri() + "/", "set_epoch").first
        assert first.inner_text() == "03 · The training loop"
        first.click()
        page.wait_for_url("**/03_training_loop.html*")
        assert page.locator(".ddp-play img").first.evaluate("each => each.naturalWidth") > 0
    page.close()
    assert (seen.errors, seen.outside) == ([], [])


def test_the_theme_can_be_dark(page, address):
    page.goto(f"{address}notebooks/03_training_loop.html")
    ground = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
    assert min(page.evaluate(ground)) > 200
    for _ in range(3):  # as the system has it, then light, then dark
        if page.locator("body").get_attribute("data-theme") == "dark":
            break
        page.locator("button.theme-toggle:visible").click()
    assert page.locator("body").get_attribute("data-theme") == "dark"
    assert max(page.evaluate(ground)) < 60
    page.goto(f"{address}index.html")  # it stays
    assert page.locator("body").get_attribute("data-theme") == "dark"
    picture = page.locator("article td img").first
    ground = picture.evaluate("each => getComputedStyle(each).backgroundColor")
    page.evaluate("localStorage.clear()")
    assert ground == "rgb(255, 255, 255)"


@pytest.mark.parametrize("name", template_files())
def test_a_template_can_be_copied_and_shows_what_is_new(page, address, name):
    path = template_files()[name]
    page.goto(f"{address}templates/{name}.html")
    page.evaluate("navigator.clipboard.writeText('nothing yet')")
    page.locator(".whole-file button.copybtn").click()
    assert page.evaluate("navigator.clipboard.readText()") == path.read_text(encoding="utf-8")
    words = page.locator("article").inner_text()
    assert re.search(rf"python -m ddp_helpers new \S+ --template {name}\n", words)
    new = page.locator(".changes .gi").all_inner_texts()
    before = next((old for old, after in RUNGS if after == name), None)
    assert any("# NEW" in line for line in new) == (before is not None)
    if before:
        assert page.locator(f"#what-is-new a[href='{before}.html']").count() == 1


def test_a_line_that_only_lost_its_mark_is_not_shown_as_new():
    sys.path.insert(0, str(ROOT / ".site"))
    from template_pages import diff

    before = '"""One."""\nimport a  # NEW\nimport b\n'
    after = '"""Two."""\nimport a\nimport c  # NEW\n'
    assert [line for line in diff(before, after) if line[0] in "+-"] == [
        "-import b",
        "+import c  # NEW",
    ]


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: html(path))
def test_a_lesson_shows_its_committed_outputs(page, address, path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", ())]
    pictures = [o for o in outputs if "<img" in "".join(o.get("data", {}).get("text/html", ""))]
    printed = ["".join(o["text"]) for o in outputs if o["output_type"] == "stream"]
    page.goto(address + html(path))
    assert page.locator(".cell_output .text_html img").count() == len(pictures)
    shown = page.locator("article").evaluate("each => each.textContent")
    lines = {line.rstrip() for text in printed for line in text.splitlines() if "\x1b" not in line}
    assert [line for line in lines if line not in shown] == []


def test_formulas_are_drawn_by_the_browser(page, address):
    page.goto(f"{address}notebooks/02_dataparallel_vs_ddp.html")
    assert page.locator("math").count() >= 2
    assert page.locator("div.formula math").bounding_box()["height"] > 30


def test_tasks_are_shown_and_solutions_are_not(page, address):
    page.goto(f"{address}exercises.html")
    shown = page.locator("article").evaluate("each => each.textContent")
    for number in names():
        module = load(number)
        _, solution = source_of(module, "solution").split("\n", 1)
        assert f'check("{number}", {module.EXERCISE.name})' in shown
        assert module.EXERCISE.task.replace("`", "") in shown.replace("`", "")
        assert solution.strip() not in shown, number


def test_the_gallery_has_every_explorable(page, address):
    page.goto(f"{address}explorables.html")
    shown = page.locator("article").inner_text()
    assert [name for name in EXPLORABLES if f'widgets.explore("{name}")' not in shown] == []
    assert page.locator("article img, .ddp-picture > svg").count() == len(EXPLORABLES)


def test_predictions_are_shown_with_their_misses(page, address):
    page.goto(f"{address}/predictions.html")
    text = page.inner_text("article")
    assert summary(rows()) in text
    assert text.count("missed") == sum(not row.inside for row in rows())
    assert page.locator("article table tbody tr").count() == len(rows())


def test_files_that_are_not_a_sites_are_left_alone(tmp_path):
    spec = importlib.util.spec_from_file_location("site_build", ROOT / ".site" / "build.py")
    site_build = importlib.util.module_from_spec(spec)  # tests/notebooks has a build.py, too
    spec.loader.exec_module(site_build)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="not a site's"):
        site_build.empty(tmp_path)
    assert (tmp_path / "letter.txt").exists()


def test_every_part_of_the_site_has_an_exact_pin():
    pins = (ROOT / "constraints.txt").read_text().lower()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name in project["optional-dependencies"]["site"]:
        assert re.search(rf"^{name}==[\d.]+$", pins, flags=re.M), name


def test_a_question_keeps_the_guess_and_unfolds_the_answer(page, address):
    page.goto(f"{address}notebooks/00_check_your_machine.html")
    page.evaluate("localStorage.clear()")
    question = page.locator("fieldset.ddp-ask", has_text="different processes")
    cell = page.locator(".cell", has=question)
    verdict = cell.locator(".ddp-was")
    assert not verdict.is_visible()
    question.get_by_label("2").check()
    assert verdict.inner_text() == "you: 2, it was 3"
    page.reload()
    assert verdict.inner_text() == "you: 2, it was 3"
    assert question.get_by_label("2").is_checked()
    question.get_by_label("3").check()
    assert verdict.inner_text() == "you: 3, it was 3 ✓"
    number = page.locator("fieldset.ddp-ask", has_text="rows that warn")
    number.get_by_label("a number").fill("2")
    number.get_by_label("a number").press("Enter")
    assert page.locator(".cell", has=number).locator(".ddp-was").inner_text().startswith("you: 2")
    page.evaluate("localStorage.clear()")


def test_a_lesson_that_is_done_is_marked_in_both_languages(page, address):
    page.goto(f"{address}notebooks/03_training_loop.html")
    page.evaluate("localStorage.clear()")
    button = page.get_by_role("button", name="Mark this lesson as done")
    assert button.get_attribute("aria-pressed") == "false"
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "true"
    assert page.locator(".sidebar-tree a", has=page.locator(".ddp-done")).count() == 1
    page.locator(".ddp-edition a").click()
    page.wait_for_url("**/zh_CN/03_training_loop.html")
    marks = page.locator(".sidebar-tree a", has=page.locator(".ddp-done"))
    assert [link.get_attribute("href") for link in marks.all()] == ["#"]
    page.get_by_role("button", name="标记为已学完").press("Enter")
    assert page.locator(".ddp-done").count() == 0
    page.evaluate("localStorage.clear()")
