"""The Chinese edition of the site: what its pages say, and the frame around them.

The code here speaks English. A text of the site's own is given to `said()`, one of the package to
`ddp_helpers.words.shown()`, and both answer in the language of `speaking()`. The site's texts are
in zh_CN.po, beside this file, and so are those of the theme for which Sphinx has no Chinese.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from gettext import translation
from pathlib import Path

from ddp_helpers.words import VARIABLE, book, language

WORDS = Path(__file__).with_name("zh_CN.po")
NAMES = {"": "English", "zh_CN": "中文"}
HOMES = {"": "index", "zh_CN": "zh_CN"}
SEARCH = "zh_CN-search"  # at the top, as the links of its results are written for that
MADE = ("exercises.md", "explorables.md", "faults.md", "templates/")  # in each language
CAPTION = re.compile(r'(?=<p class="caption")')
CHINESE = re.compile("[\u4e00-\u9fff]")
# what the theme writes into its pages as it stands
ICONS = (
    *("Menu", "Expand", "Light mode", "Dark mode"),
    *("Auto light/dark, in light mode", "Auto light/dark, in dark mode"),
)
FIXED = (
    "Toggle site navigation sidebar",
    "Toggle table of contents sidebar",
    "Toggle Light / Dark / Auto color theme",
    "Link to this heading",
    "Link to this image",
    "Show code cell output",
    "Hide code cell output",
    "Show code cell content",
    "Hide code cell content",
)


@contextmanager
def speaking(spoken: str) -> Iterator[str]:
    """The time in which pages are written in a language, "" for English; gives their folder."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = spoken or "en"
    try:
        yield spoken
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def said(text: str, /, **values: object) -> str:
    """A text of the site, with its holes filled as `str.format` does it."""
    told = _chinese().get(text, text) if language() else text
    return told.format(**values) if values else told


@cache
def _chinese() -> dict[str, str]:
    return dict(book.entries(WORDS.read_text(encoding="utf-8")))


def paragraphs(text: str) -> str:
    """A docstring, paragraph by paragraph; an indented one is code, which is never translated."""
    parts = re.split(r"\n\s*\n", text)
    if language():
        parts = [
            part if part.startswith("    ") else said(" ".join(part.split())) for part in parts
        ]
    return "\n\n".join(parts)


def lessons(root: Path) -> Path:
    """The folder of the notebooks in the language that is spoken."""
    return root / "notebooks" / language()


def to_lesson(name: str, page: str) -> str:
    """The link from a made page, named as in English, to a notebook in its language."""
    made = posixpath.join(language(), page)
    there = posixpath.join("notebooks", language(), name)
    return posixpath.relpath(there, posixpath.dirname(made) or ".")


def twin(page: str) -> str:
    """The line of a made page that leads to its other edition."""
    other = "" if language() else "zh_CN"
    here, there = posixpath.join(language(), page), posixpath.join(other, page)
    return f"[{NAMES[other]}]({posixpath.relpath(there, posixpath.dirname(here) or '.')})\n"


def in_edition(page: str, file: str) -> str:
    """The page that a link in a file of the course leads to: the one in the file's language."""
    return f"zh_CN/{page}" if edition(file) and page.startswith(MADE) else page


def edition(name: str) -> str:
    """The language of a page or a file of the course, by its name."""
    chinese = name.startswith(("zh_CN", "notebooks/zh_CN", "README.zh-CN"))
    return "zh_CN" if chinese else ""


def other_page(name: str, there: set[str]) -> str:
    """The page that says the same in the other language, or the first one of that edition."""
    if name in HOMES.values():
        return HOMES["" if edition(name) else "zh_CN"]
    if edition(name):
        twin = name.replace("zh_CN/", "", 1)
    elif name.startswith("notebooks/"):
        twin = name.replace("notebooks/", "notebooks/zh_CN/", 1)
    else:
        twin = f"zh_CN/{name}"
    return twin if twin in there else HOMES["" if edition(name) else "zh_CN"]


def frame(app, pagename: str, templatename: str, context: dict, doctree: object) -> None:
    """For html-page-context: a page's own edition in the sidebar, and Chinese words around it."""
    spoken = edition(pagename)
    context["furo_navigation_tree"] = _navigation(app, pagename, context)
    if spoken:
        app.add_js_file("sphinx.js")  # what Sphinx's own scripts say, in Chinese
    for way in ("prev", "next"):  # the contents of the other edition begin where these end
        step = context.get(way)
        if step and edition(_target(pagename, step["link"])) != spoken:
            context[way] = None
    if spoken:
        _chinese_frame(context)


def _navigation(app, pagename: str, context: dict) -> str:
    """The contents of this edition, and the way to the other one."""
    spoken = edition(pagename)
    parts = CAPTION.split(context.get("furo_navigation_tree", ""))
    own = [
        part for part in parts if bool(CHINESE.search(part.partition("</p>")[0])) == bool(spoken)
    ]
    other = "" if spoken else "zh_CN"
    href = context["pathto"](other_page(pagename, app.env.found_docs))
    tag = "zh-CN" if other else "en"
    link = f'<a class="reference internal" lang="{tag}" href="{href}">{NAMES[other]}</a>'
    switch = f'<ul class="ddp-edition"><li class="toctree-l1">{link}</li></ul>'
    return switch + "".join(own)


def _target(pagename: str, link: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(pagename), link))


def _chinese_frame(context: dict) -> None:
    sphinx, to = _sphinx(), context["pathto"]

    def gettext(text: str) -> str:
        with speaking("zh_CN"):
            told = said(" ".join(text.split()))
        return told if CHINESE.search(told) else sphinx(text)

    def pathto(page: str, *more: object, **named: object) -> str:
        chinese = {"index": "zh_CN", "search": SEARCH}
        return to(chinese.get(page, page), *more, **named)

    with speaking("zh_CN"):
        words = {name: said(context[name]) for name in ("docstitle", "copyright")}
        body = context.get("body", "")
        for text in FIXED:
            body = body.replace(f'"{text}"', f'"{said(text)}"').replace(
                f">{text}<", f">{said(text)}<"
            )
    context |= {**words, "body": body, "language": "zh-CN", "gettext": gettext, "pathto": pathto}


@cache
def _sphinx() -> Callable[[str], str]:
    """Sphinx's own Chinese."""
    return translation("sphinx", _locale(), ["zh_CN"]).gettext


def search_words() -> Path:
    """What Sphinx's search says in Chinese, as a script."""
    return _locale() / "zh_CN" / "LC_MESSAGES" / "sphinx.js"


def _locale() -> Path:
    import sphinx

    return Path(sphinx.__file__).parent / "locale"


def search_page(app) -> Iterator[tuple[str, dict, str]]:
    """For html-collect-pages: the search as Chinese pages have it."""
    yield SEARCH, {}, "search.html"


def fixed_words(app, exception: Exception | None) -> None:
    """For build-finished: what the theme's templates say in English whatever the language."""
    if exception is not None:
        return
    for page in Path(app.outdir).rglob("*.html"):
        if edition(page.relative_to(app.outdir).as_posix()):
            text = page.read_text(encoding="utf-8")
            with speaking("zh_CN"):
                pairs = [(f'aria-label="{each}"', f'aria-label="{said(each)}"') for each in FIXED]
                pairs += [
                    (f"<title>{each}</title>", f"<title>{said(each)}</title>") for each in ICONS
                ]
                pairs.append(("Toggle navigation of ", said("Toggle navigation of")))
            for english, chinese in pairs:
                text = text.replace(english, chinese)
            page.write_text(text, encoding="utf-8")
