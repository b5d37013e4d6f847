"""The site's Chinese edition: nothing lags behind, and the frame of its pages is Chinese."""

import ast
import html
import json
import os
import re
import sys

import pytest
from conftest import ROOT

from ddp_helpers import faults, widgets
from ddp_helpers.exercises import names
from ddp_helpers.exercises.core import load
from ddp_helpers.templates import template_files
from ddp_helpers.words import VARIABLE, book, shown

sys.path.insert(0, str(ROOT / ".site"))
import editions
from template_pages import docstring

pytestmark = pytest.mark.timeout(400)  # the first of a run builds the site
CHINESE = re.compile("[\u4e00-\u9fff]")
THEME = ("Search", "Next", "Previous", "Home", "On this page", "Back to top", "Skip to content")
THEME += ("Made with", '<a href="https://www.sphinx-doc.org/">Sphinx</a> and')
CONF = ("Data-parallel PyTorch", "the authors of the course; MIT licence")
NAMES = {"English", "@pradyunsg", "'s", "Furo", "Sphinx"}
CODE = re.compile(r"(\d+ · )?[\w.]+\.(py|sh|sbatch|yaml)|\w+_\w+|(\d+ · )?[A-Za-z_]+")


def asked_for() -> set[str]:
    """Each text that the site gives to `said()`, wherever it comes from."""
    found = {*editions.FIXED, *editions.ICONS, *faults.GROUPS, *THEME, *CONF, "nothing"}
    for path in (ROOT / ".site").glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        named: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
                named |= {each.id: node.value.value for each in node.targets if hasattr(each, "id")}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "said":
                given = node.args[0]
                text = given.value if isinstance(given, ast.Constant) else None
                text = named.get(given.id) if isinstance(given, ast.Name) else text
                found |= {text} if text else set()
    docs = [docstring(path) for path in template_files().values()]
    for name in widgets.NAMES:
        source = (ROOT / "ddp_helpers" / "widgets" / f"{name}.py").read_text(encoding="utf-8")
        docs.append(ast.get_docstring(ast.parse(source)))
    parts = [part for text in docs for part in re.split(r"\n\s*\n", text)]
    return found | {" ".join(part.split()) for part in parts if not part.startswith("    ")}


def test_the_site_is_translated_and_no_translation_is_left_over():
    known = dict(book.entries(editions.WORDS.read_text(encoding="utf-8")))
    behind = sorted(asked_for() ^ known.keys())
    print("lagging, or left over:", *behind, sep="\n  ")
    assert len(behind) <= len(known) // 20, behind  # a docstring may have changed just now
    for text, told in known.items():
        assert told != text, text
        assert set(re.findall(r"\{\w+\}", text)) == set(re.findall(r"\{\w+\}", told)), text
        assert re.findall(r"`[^`]+`", text) == [] or "`" in told, text


def test_a_language_is_spoken_only_within(monkeypatch):
    monkeypatch.setenv(VARIABLE, "zh_CN")
    with editions.speaking("") as folder:
        assert (folder, editions.said("Exercises"), shown("Start from:")) == (
            "",
            "Exercises",
            "Start from:",
        )
    assert editions.said("notebook {number}", number="03") == "第 03 课"
    assert editions.said("no such text") == "no such text"


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("index", "zh_CN"),
        ("zh_CN", "index"),
        ("notebooks/03", "notebooks/zh_CN/03"),
        ("notebooks/zh_CN/03", "notebooks/03"),
        ("templates/starter", "zh_CN/templates/starter"),
        ("zh_CN/templates/starter", "templates/starter"),
        ("api/index", "zh_CN"),  # only in English
        ("notebooks/zh_CN/GLOSSARY", "index"),  # only in Chinese
    ],
)
def test_a_page_leads_to_its_other_edition(name, other):
    there = {"notebooks/03", "notebooks/zh_CN/03", "templates/starter", "zh_CN/templates/starter"}
    assert editions.other_page(name, there) == other


def chinese_pages(site) -> dict[str, str]:
    pages = {path.relative_to(site).as_posix(): path for path in site.rglob("*.html")}
    return {name: path.read_text() for name, path in pages.items() if editions.edition(name)}


def words(page: str) -> list[str]:
    """What is read on a page, piece by piece, without scripts and pictures' insides."""
    page = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.S)
    attributes = re.findall(r'(?:aria-label|placeholder|title)="([^"]*)"', page)
    pieces = [*attributes, *re.sub(r"<[^>]+>", "\n", page).splitlines()]
    return [html.unescape(piece).strip() for piece in pieces if re.search("[A-Za-z]", piece)]


def test_the_frame_of_a_chinese_page_is_chinese(site):
    pages = chinese_pages(site)
    assert len(pages) >= 8 + len(template_files()) + 8
    for name, page in pages.items():
        assert re.search(r'<html[^>]* lang="zh-CN"', page), name
        frame = re.sub(
            r"<article.*?</article>|<div class=\"toc-tree\".*?</aside>", "", page, flags=re.S
        )
        english = {each for each in words(frame) if not CHINESE.search(each)} - NAMES
        english = {each for each in english if not CODE.fullmatch(each)}
        assert english == set(), name


def test_an_english_page_has_its_own_contents_and_the_way_to_the_chinese_one(site):
    page = (site / "exercises.html").read_text()
    contents = re.search(r'<div class="sidebar-tree">.*?</div>', page, flags=re.S)[0]
    assert 'lang="zh-CN" href="zh_CN/exercises.html">中文</a>' in contents
    assert len(CHINESE.findall(contents)) == 2
    assert re.search(r'<html[^>]* lang="en"', page)


def test_made_pages_say_the_same_in_chinese(site, monkeypatch):
    monkeypatch.setenv(VARIABLE, "zh_CN")
    folder = site / "zh_CN"
    shown_there = html.unescape(re.sub(r"<[^>]+>", "", (folder / "exercises.html").read_text()))
    for number in names():
        exercise = load(number).EXERCISE
        assert f"{number} {shown(exercise.title)}".replace("`", "") in shown_there
        assert f'check("{number}", {exercise.name})' in shown_there
    page = html.unescape(re.sub(r"<[^>]+>", "", (folder / "faults.html").read_text()))
    for name in faults.names():
        assert shown(faults.load(name).FAULT.title).replace("`", "") in page, name
    gallery = (folder / "explorables.html").read_text()
    assert [name for name in widgets.NAMES if f'>"{name}"<' not in gallery] == []


@pytest.fixture
def spoken():
    sys.path.insert(0, str(ROOT / ".site" / "play"))
    import spoken

    before = os.environ.pop(VARIABLE, None)
    yield spoken
    os.environ.pop(VARIABLE, None)
    os.environ |= {VARIABLE: before} if before else {}


@pytest.mark.parametrize("language", ["", "zh_CN"])
def test_a_picture_that_moves_speaks_the_language_of_its_page(spoken, language):
    for name in spoken.mover.MOVING:
        explorable = spoken.mover.known(name)
        stands = {key: spoken.mover.stand(each)["at"] for key, each in explorable.controls.items()}
        told = json.loads(spoken.move(name, json.dumps(stands), "", False, language))
        title = spoken.translated(explorable).title
        for text in (title, told["words"]):
            assert bool(CHINESE.search(text)) == bool(language), f"{name}: {text}"
        assert bool(CHINESE.search(told["svg"])) == bool(language), name


def test_a_page_gets_the_words_that_its_pictures_need(spoken):
    from moving import words as shipped

    found = shipped(ROOT, "zh_CN")
    assert "ddp_helpers/words/book.py" in found
    assert {"widgets", "figures"} <= set(spoken.WORDS)
    assert all(f"ddp_helpers/words/zh_CN/{name}.po" in found for name in spoken.WORDS)


@pytest.mark.browser
def test_a_chinese_picture_stays_chinese_when_it_moves(page, address):
    page.goto(f"{address}zh_CN/explorables.html")
    ring = page.locator('.ddp-play[data-explorable="ring"]')
    assert CHINESE.search(ring.locator(".ddp-title").inner_text())
    before = ring.locator("svg").get_attribute("aria-label")
    ring.locator("input").last.press("ArrowRight")
    page.wait_for_function(
        "([ring, before]) => ring.querySelector('svg').getAttribute('aria-label') !== before",
        arg=[ring.element_handle(), before],
    )
    assert CHINESE.search(ring.locator("svg").get_attribute("aria-label"))
    assert CHINESE.search(ring.locator(".ddp-words").inner_text())
