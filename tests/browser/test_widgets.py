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

    def slide(self, label, presses, until, same=False):
        """Move a slider by arrow keys; negative is down."""
        row = self.root.locator(".widget-slider", has_text=re.compile(rf"^{re.escape(label)}"))
        handle = row.locator(".noUi-handle")
        handle.focus()
        self._moves(lambda: self._press(handle, presses), until, same=same)

    def tick(self, label, until):
        box = self.root.get_by_label(label, exact=True)
        box.focus()
        self._moves(lambda: self.page.keyboard.press("Space"), until)

    def pick(self, label, option, until, same=False):
        choice = self.root.get_by_label(label, exact=True)
        choice.focus()
        self._moves(lambda: choice.select_option(option), until, same=same)

    def press(self, label, until, seconds=60, same=False):
        button = self.root.get_by_role("button", name=label)
        button.focus()
        self._moves(lambda: self.page.keyboard.press("Enter"), until, seconds, same)

    def _press(self, handle, presses):
        for _ in range(abs(presses)):
            handle.press("ArrowRight" if presses > 0 else "ArrowLeft")

    def _moves(self, act, until, seconds=30, same=False):
        before = self.picture
        act()
        self.until(until, seconds)
        if same:  # what some controls change is in the words only
            return
        drawn = "before => document.querySelector('.ddp-explorable svg').innerHTML != before"
        self.page.wait_for_function(drawn, arg=before, timeout=5000)

    def is_clean(self, words="Error"):
        assert not self.noise, self.noise
        shown = self.page.locator(".jp-NotebookPanel").inner_text()
        assert "Traceback" not in shown
        assert words not in shown, shown[-1500:]
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


def test_ring(lab, reader):
    reader.open(lab, "ring")
    reader.until("Step 2 of 6 .reduce-scatter.*whole sum of 0 of 4 chunks.*ring 4 MiB.* 0 16 MiB")
    reader.slide("step", 1, "Step 3 of 6 .reduce-scatter.*whole sum of 1 of 4 chunks.*ring 6 MiB")
    reader.slide("step", 1, "Step 4 of 6 .all-gather.*which keeps it.*whole sum of 2 of 4")
    reader.slide("step", 2, "Step 6 of 6.*whole sum of 4 of 4 chunks.*ring 12 MiB.* 0 48 MiB")
    reader.slide("ranks", -2, "Step 2 of 2.*whole sum of 2 of 2 chunks.*ring 8 MiB.* 0 16 MiB")
    reader.slide("gradients", 2, "ring 10 MiB, through rank 0 20 MiB")
    reader.slide("step", -2, r"^Step 0 of 2\. Rank 0 holds the whole sum of 0 of 2")
    reader.is_clean()


def test_collectives(lab, reader):
    reader.open(lab, "collectives")
    reader.until("all_reduce on 3 ranks: rank 0 starts with 10, 11, rank 1 with 20, 21.*Predict")
    run = lambda until: reader.press("Run on real ranks", until)
    run("all_reduce ran on 3 real ranks.*rank 0 60, 63; rank 1 60, 63; rank 2 60, 63.*busiest")
    reader.slide("ranks", -1, "all_reduce on 2 ranks.*Predict")
    reader.slide("blocks per rank or part", -1, "rank 0 starts with 10, rank 1 with 20")
    reader.pick("KiB of a block", "1024", "rank 1 with 20, in blocks of 1024 KiB")
    run("rank 0 30; rank 1 30.*all ranks together: 2,0.. KiB.*One block is 1024 KiB")
    for call, answer in {
        "broadcast": "rank 0 10; rank 1 10",
        "reduce": "rank 0 30; rank 1 nothing",
        "all_gather": "rank 0 10, 20; rank 1 10, 20",
        "gather": "rank 0 10, 20; rank 1 nothing",
        "scatter": "rank 0 10; rank 1 11",
        "reduce_scatter": "rank 0 30; rank 1 32",
        "all_to_all": "rank 0 10, 20; rank 1 11, 21",
    }.items():
        reader.pick("call", call, f"{call} on 2 ranks.*Predict")
        run(f"{call} ran on 2 real ranks .CPU, gloo.. After it: {answer}.")
    reader.is_clean()


def test_machine_room(lab, reader):
    reader.open(lab, "machine_room")
    reader.until(r"This machine: \d+ pass, \d+ warn, \d+ fail. 2 ranks want CPU threads")
    rows = reader.root.locator("table tr")
    assert rows.count() == 15
    reader.slide("threads per rank", 16, r"CPU threads: 32 of \d+ cores")
    reader.slide("loader workers per rank", 1, r"CPU threads: 34 of .*/dev/shm: 0.0625 of")
    reader.slide("one batch", 16, "/dev/shm: 0.125 of")
    reader.slide("ranks", 14, r"16 ranks want CPU threads: 272 of .*memory: 5 of .*/dev/shm: 1 of")
    reader.pick("rows", "not pass", "This machine", same=True)
    reader.page.wait_for_function("document.querySelectorAll('.ddp-explorable tr').length < 15")
    reader.pick("rows", "all rows", "This machine", same=True)
    reader.press("Check again", r"16 ranks want", same=True)
    reader.page.wait_for_function("document.querySelectorAll('.ddp-explorable tr').length == 15")
    reader.is_clean(words="Traceback")  # the report itself may speak of an error


def test_accumulation(lab, reader):
    reader.open(lab, "accumulation")
    reader.until("2 optimizer steps of 4 micro-batches on 2 ranks: .* talk 2 times.* 20 MiB. Comp")
    reader.press("Run on real ranks", "talk 2 times.*Counted on real ranks: 2, 2")
    reader.slide("optimizer steps", 1, "3 optimizer steps.*talk 3 times.*sends 30 MiB. Computed")
    reader.slide("micro-batches of a step", -2, "of 2 micro-batches.*talk 3 times")
    reader.slide("ranks", 1, "on 3 ranks: the ranks talk 3 times, and each sends 40 MiB")
    reader.slide("gradients", 2, "each sends 48 MiB", same=True)
    reader.pick("way", "no no_sync", "talk 6 times.*3 exchanges are wasted")
    reader.pick("way", "only backward in no_sync", "talk 6 times.*3 exchanges", same=True)
    reader.press("Run on real ranks", "Counted on real ranks: 6, 6, 6", same=True)
    reader.is_clean()
