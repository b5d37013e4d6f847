"""Each explorable, moved by a reader in JupyterLab: by the keyboard, and what it then says."""

import json
import re
from urllib.parse import urlsplit

import nbformat
import pytest

pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]


class Reader:
    """A page with one explorable in it."""

    def __init__(self, page):
        self.page = page
        self.root = page.locator(".ddp-explorable")
        self.noise = []
        page.on("console", self._note)

    def _note(self, message):
        if message.type == "error":
            self.noise.append(message.text)

    def open(self, lab, name, **start):
        given = "".join(f", {key}={value!r}" for key, value in start.items())
        cell = f"from ddp_helpers import widgets\n\nwidgets.explore({name!r}{given})"
        put_notebook(lab, self.page, f"{name}.ipynb", [cell])
        self.page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
        self.noise.clear()
        self.page.get_by_role("menuitem", name="Run", exact=True).click()
        self.page.get_by_text("Run All Cells", exact=True).click()
        self.root.locator("svg[role=img]").wait_for(timeout=90_000)
        return self

    @property
    def words(self):
        return self.root.locator("[role=status]").inner_text()

    @property
    def picture(self):
        return self.root.locator("svg[role=img]").inner_html()

    def until(self, text, seconds=30):
        """Wait for words that hold `text`, a regular expression; the picture's own text agrees."""
        script = """text => {
            const root = document.querySelector('.ddp-explorable');
            const said = root.querySelector('[role=status]').innerText;
            return new RegExp(text).test(said.replace(/\\s+/g, ' '));
        }"""
        try:
            self.page.wait_for_function(script, arg=text, timeout=1000 * seconds)
        except Exception:
            raise AssertionError(f"waited for {text!r}; it says: {self.words}") from None
        flat = lambda said: " ".join(said.split())
        alt = self.root.locator("svg[role=img]").get_attribute("aria-label")
        assert flat(alt) == flat(self.words)

    def slide(self, label, presses, until):
        """Move a slider by arrow keys; negative is down."""
        row = self.root.locator(".widget-slider", has_text=re.compile(rf"^{re.escape(label)}"))
        handle = row.locator(".noUi-handle")
        handle.focus()
        self._moves(lambda: self._press(handle, presses), until)

    def tick(self, label, until):
        box = self.root.get_by_label(label, exact=True)
        box.focus()
        self._moves(lambda: self.page.keyboard.press("Space"), until)

    def pick(self, label, option, until):
        self._moves(lambda: self.root.get_by_label(label, exact=True).select_option(option), until)

    def press(self, label, until, seconds=60):
        button = self.root.get_by_role("button", name=label)
        button.focus()
        self._moves(lambda: self.page.keyboard.press("Enter"), until, seconds)

    def _press(self, handle, presses):
        for _ in range(abs(presses)):
            handle.press("ArrowRight" if presses > 0 else "ArrowLeft")

    def _moves(self, act, until, seconds=30):
        before = self.picture
        act()
        self.until(until, seconds)
        assert self.picture != before, "the picture stayed as it was"

    def is_clean(self):
        assert not self.noise, self.noise
        shown = self.page.locator(".jp-NotebookPanel").inner_text()
        assert "Traceback" not in shown
        assert "Error" not in shown, shown[-1500:]
        assert self.root.count() == 1
        assert self.page.locator(".ddp-static").count() == 0  # the figure is not shown twice


def put_notebook(lab, page, name, cells):
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (ipykernel)"}
    page.goto(f"{lab}?reset")
    page.locator("#jp-top-panel").wait_for(timeout=60_000)
    cookies = {cookie["name"]: cookie["value"] for cookie in page.context.cookies()}
    parts = urlsplit(lab)
    answer = page.request.put(
        f"{parts.scheme}://{parts.netloc}/api/contents/{name}",
        headers={"X-XSRFToken": cookies.get("_xsrf", ""), "Content-Type": "application/json"},
        data=json.dumps({"type": "notebook", "format": "json", "content": book}),
    )
    assert answer.ok, answer.text()
    page.goto(f"{lab}/tree/{name}?reset")
    page.locator(".jp-NotebookPanel .jp-CodeCell").first.wait_for(timeout=60_000)


@pytest.fixture
def reader(page):
    return Reader(page)


def test_sampler(lab, reader):
    reader.open(lab, "sampler")
    reader.until("Epoch 0: each of 4 ranks gets 6 samples, in 2 batches. Padding: 2")
    reader.slide("samples", 2, r"gets 6 samples, in 2 batches\. Each sample is used exactly once")
    reader.slide("ranks", 1, r"each of 5 ranks gets 5 samples.*Padding: 1")
    reader.tick("drop_last", r"each of 5 ranks gets 4 samples.*Left out: \d+, \d+, \d+, \d+\.")
    reader.slide("batch size per rank", -2, "in 4 batches")
    reader.slide("epoch", 1, "Epoch 1: .*Another order than in epoch 0")
    reader.tick("call set_epoch", "Epoch 1: .*The same order as in epoch 0")
    reader.tick("shuffle", r"Left out: 20, 21, 22, 23\. The same order")
    reader.is_clean()
