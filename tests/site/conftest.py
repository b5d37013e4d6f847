"""The site, built once, shown by a plain static server, and a Chromium without a network."""

import contextlib
import functools
import importlib.util
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# nobody listens at that port, and only this machine is reached without the proxy
FLAGS = ["--no-sandbox", "--disable-gpu", "--proxy-server=http://127.0.0.1:9"]
PHONE = {"width": 400, "height": 900}
LOOK = """() => ({
  links: [...document.querySelectorAll("a[href]")].map((each) => each.href),
  ids: [...document.querySelectorAll("[id]")].map((each) => each.id),
  broken_images: [...document.images]
    .filter((each) => !each.complete || each.naturalWidth === 0)
    .map((each) => each.src),
  wide_images: [...document.images]
    .filter((each) => each.getBoundingClientRect().width > innerWidth)
    .map((each) => each.src),
})"""


@dataclass
class Seen:
    """What a page did while it was open, and what is on it."""

    errors: list[str] = field(default_factory=list)
    outside: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    broken_images: list[str] = field(default_factory=list)
    wide_images: list[str] = field(default_factory=list)
    """Pictures that do not fit the screen of a phone."""


@pytest.fixture(scope="session")
def site(tmp_path_factory) -> Path:
    """The folder of the finished site."""
    if importlib.util.find_spec("sphinx") is None:
        assert not os.environ.get("CI"), "CI must install the group `site`"
        pytest.skip("no Sphinx here: pip install -c constraints.txt -e '.[site]'")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, str(ROOT / ".site" / "build.py")]
    command += ["--out", str(folder / "site"), "--work", str(folder / "pages")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def address(site) -> Iterator[str]:
    """Where a static server shows the site: http://127.0.0.1:PORT/."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def chrome(chromium) -> Iterator:
    """A Chromium that finds no other machine; closed before the next file starts its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def seen(site, address, chrome) -> dict[str, Seen]:
    """Every page of the site, opened once on the screen of a phone."""
    found = {}
    page = chrome.new_page(viewport=PHONE)
    for path in sorted(site.rglob("*.html")):
        name = path.relative_to(site).as_posix()
        if not name.startswith(("_static/", "_downloads/")):
            with watched(page, address) as found[name]:
                page.goto(address + name)
                for key, value in page.evaluate(LOOK).items():
                    setattr(found[name], key, value)
    page.close()
    return found


@contextlib.contextmanager
def watched(page, inside: str) -> Iterator[Seen]:
    """Note the errors of a page, and its requests to anything but `inside`."""
    seen = Seen()
    listeners = {
        "request": lambda request: note(request.url),
        "pageerror": lambda error: seen.errors.append(str(error)),
        "console": lambda line: line.type == "error" and seen.errors.append(line.text),
    }

    def note(url: str) -> None:
        if not url.startswith((inside, "data:")):
            seen.outside.append(url)

    for event, listener in listeners.items():
        page.on(event, listener)
    yield seen
    for event, listener in listeners.items():
        page.remove_listener(event, listener)


@pytest.fixture(scope="module")
def screen(chrome, address) -> Iterator:
    """One page on a large screen, which may read and write the clipboard."""
    context = chrome.new_context(viewport={"width": 1400, "height": 1000}, color_scheme="light")
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=address)
    context.set_default_timeout(90_000)  # a busy machine is slow, and that is no fault
    yield context.new_page()
    context.close()


@pytest.fixture
def page(screen, address) -> Iterator:
    """That page; a test that leaves an error or asks outside fails."""
    with watched(screen, address) as seen:
        yield screen
    assert not seen.errors
    assert not seen.outside
