"""Screenshots of the explorables, from a real JupyterLab: the gallery of the README.

python tests/browser/gallery.py                    # all, light theme, into notebooks/images/
python tests/browser/gallery.py sampler ring       # some
python tests/browser/gallery.py --dark --to /tmp   # as they look in the dark theme
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from conftest import FLAGS, ROOT, serve
from PIL import Image
from playwright.sync_api import Page, sync_playwright
from test_widgets_in_jupyterlab import Reader

from ddp_helpers import widgets

sys.path.insert(0, str(ROOT / "tests"))
from chromium import find_chromium

FOLDER = ROOT / "notebooks" / "images"
MOST_BYTES = 100_000
WAYS = {
    "machine_room": {"ranks": 4, "workers": 1, "rows": "not pass"},
    "accumulation": {"way": "no no_sync"},
    "monitor": {"epochs": 1},
    "ladder": {"rung": 1},
}
"""Where an explorable's controls stand in its picture, where it is not as it starts."""


def choose_theme(page: Page, lab: str, dark: bool) -> None:
    """As the reader's menu does; a server keeps it."""
    page.goto(f"{lab}?reset")
    page.locator("#jp-top-panel").wait_for(timeout=60_000)
    cookies = {cookie["name"]: cookie["value"] for cookie in page.context.cookies()}
    parts = urlsplit(lab)
    theme = json.dumps({"theme": "JupyterLab Dark" if dark else "JupyterLab Light"})
    answer = page.request.put(
        f"{parts.scheme}://{parts.netloc}/lab/api/settings/@jupyterlab/apputils-extension:themes",
        headers={"X-XSRFToken": cookies.get("_xsrf", ""), "Content-Type": "application/json"},
        data=json.dumps({"raw": theme}),
    )
    assert answer.ok, answer.text()


def take(page: Page, lab: str, name: str, path: Path) -> int:
    """One screenshot, as a PNG of few colours; its size in bytes."""
    reader = Reader(page).open(lab, name, **WAYS.get(name, {}))
    button = reader.root.locator("button").filter(has_not_text="Play").first
    if button.count():  # ranks run for their picture, too
        button.click()
        page.wait_for_timeout(300)
        reader.until("^(?!The ranks run)", seconds=120)
        ready = "!document.querySelector('.ddp-explorable button').disabled"
        page.wait_for_function(ready, timeout=120_000)
    page.wait_for_timeout(500)
    picture = Image.open(io.BytesIO(reader.root.screenshot())).convert("RGB")
    few = picture.quantize(128, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    return path.stat().st_size


def main() -> int:
    """Command line; exit code 1 if a picture is too large for a README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*widgets.NAMES, []])
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--to", type=Path, default=FOLDER)
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    chromium = find_chromium()
    if chromium is None:
        sys.exit("no Chromium here: apt install chromium")
    large = []
    with tempfile.TemporaryDirectory() as root, serve(Path(root)) as lab, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1400, "height": 1300})
        choose_theme(page, lab, options.dark)
        for name in options.names or widgets.NAMES:
            size = take(page, lab, name, options.to / f"{name}.png")
            print(f"{name}.png: {size / 1000:.0f} kB", flush=True)
            large += [name] * (size > MOST_BYTES)
        browser.close()
    return bool(large)


if __name__ == "__main__":
    sys.exit(main())
