"""Each explorable, moved by a reader in JupyterLab: by the keyboard, and what it then says."""

import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import nbformat
import pytest

from ddp_helpers import faults
from ddp_helpers.widgets import fault_lab, ladder

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.browser, pytest.mark.timeout(240)]


class Reader:
    """A page with one explorable in it."""

    def __init__(self, page, kernel=None):
        self.page, self.kernel = page, kernel
        self.root = page.locator(".ddp-explorable")
        self.noise = []
        page.on("console", self._note)

    def _note(self, message):
        if message.type == "error":
            self.noise.append(message.text)

    def open(self, lab, name, **start):
        given = "".join(f", {key}={value!r}" for key, value in start.items())
        cell = f"from ddp_helpers import widgets\n\nwidgets.explore({name!r}{given})"
        put_notebook(lab, self.page, f"{name}.ipynb", [cell], self.kernel)
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
        """Wait for words that hold `text`, a regular expression; the picture says the same."""
        script = """text => {
            const root = document.querySelector('.ddp-explorable');
            const flat = said => said.replace(/\\s+/g, ' ').trim();
            const said = flat(root.querySelector('[role=status]').innerText);
            const drawn = root.querySelector('svg[role=img]').getAttribute('aria-label');
            return new RegExp(text).test(said) && flat(drawn) == said;
        }"""
        try:
            self.page.wait_for_function(script, arg=text, timeout=1000 * seconds)
        except Exception:
            raise AssertionError(f"waited for {text!r}; it says: {self.words}") from None

    def until_text(self, text):
        """Wait for a text anywhere in the explorable."""
        script = "text => document.querySelector('.ddp-explorable').innerText.includes(text)"
        self.page.wait_for_function(script, arg=text, timeout=30_000)

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
        assert words not in shown, shown[-1500:]
        assert self.root.count() == 1
        assert self.page.locator(".ddp-static").count() == 0  # the figure is not shown twice


def put_notebook(lab, page, name, cells, kernel=None):
    book = nbformat.v4.new_notebook()
    book.cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3 (ipykernel)"}
    content = {"type": "notebook", "format": "json", "content": book}
    ask(lab, page.context, "put", f"contents/{name}", content)
    if kernel:  # a notebook that is opened takes the kernel of its session
        session = {"path": name, "name": name, "type": "notebook", "kernel": {"id": kernel}}
        ask(lab, page.context, "post", "sessions", session)
    page.goto(f"{lab}/tree/{name}?reset")
    page.locator(".jp-NotebookPanel .jp-CodeCell").first.wait_for(timeout=60_000)


def ask(lab, context, method, what, content):
    """What the server's own interface answers."""
    context.request.get(lab)  # the cookie that writing asks for comes with any page
    cookies = {cookie["name"]: cookie["value"] for cookie in context.cookies()}
    parts = urlsplit(lab)
    answer = getattr(context.request, method)(
        f"{parts.scheme}://{parts.netloc}/api/{what}",
        headers={"X-XSRFToken": cookies.get("_xsrf", ""), "Content-Type": "application/json"},
        data=json.dumps(content),
    )
    assert answer.ok, answer.text()
    return answer.json()


@pytest.fixture(scope="module")
def kernel(lab, chrome):
    """One kernel for all explorables: each of its own would load torch anew, and so its ranks."""
    return ask(lab, chrome, "post", "kernels", {"name": "python3"})["id"]


@pytest.fixture
def reader(page, kernel):
    return Reader(page, kernel)


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
    reader.press("Play the steps", "Step 1 of 2 .reduce-scatter")
    reader.root.get_by_role("button", name="Pause").wait_for()
    reader.until("Step 2 of 2 .all-gather")
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
    reader.page.wait_for_function("document.querySelectorAll('.ddp-explorable tr').length == 15")
    again = reader.root.get_by_role("button", name="Check again")
    again.press("Enter")
    reader.page.wait_for_function(
        "!document.querySelector('.ddp-explorable button').disabled", timeout=30_000
    )
    reader.until("16 ranks want")
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


def test_one_step(lab, reader):
    reader.open(lab, "one_step")
    reader.until("60 thin layers, a batch of 256 digits, 2 workers. Which way.*Predict")
    reader.pick("digits in a batch", "64", "a batch of 64 digits", same=True)
    reader.pick("model", "SmallCNN", "SmallCNN, a batch of 64", same=True)
    reader.pick("model", "60 thin layers", "60 thin layers, a batch of 64", same=True)
    reader.press("Measure", r"DataParallel: [\d.]+ ms; after [\d.]+ ms thread 0.*DDP: [\d.]+ ms")
    reader.slide("moment", -50, r"after 0\.0 ms thread 0: \w")
    before = reader.words
    reader.slide("moment", 3, r"DDP: [\d.]+ ms; after [\d.]+ ms rank 0")
    assert reader.words != before
    reader.slide("workers", 1, "3 workers. Which way")
    reader.press("Measure", "thread 2: .*rank 2: ")
    reader.is_clean()


def test_ladder(lab, reader):
    def told(rung):
        before, after = ladder.RUNGS[rung - 1]
        same, new, gone = ladder.counts(before, after)
        counted = f"{same} lines stay, {new} are new, {gone} are gone"
        return f"Rung {rung} of {len(ladder.RUNGS)}: {after}.py follows {before}.py. {counted}"

    reader.open(lab, "ladder")
    reader.until(told(2))
    few = reader.root.locator("table tr").count()
    reader.pick("show", "whole files", told(2), same=True)
    reader.page.wait_for_function(
        "few => document.querySelectorAll('.ddp-explorable tr').length > few", arg=few
    )
    reader.slide("rung", 3, told(5))
    assert f"{ladder.RUNGS[4][1]}.py" in reader.root.locator("table").inner_text()
    reader.slide("rung", -4, told(1))
    reader.is_clean(words="Traceback")  # the templates may raise errors


def test_monitor(lab, reader):
    reader.open(lab, "monitor")
    reader.until("Not started. ranks: 2, epochs: 2, batches of 64, rank 1 sleeps 0 ms a step. Pre")
    reader.slide("epochs", 8, "epochs: 10, batches of 64", same=True)
    reader.pick("batch size per rank", "16", "batches of 16, rank 1 sleeps 0", same=True)
    reader.slide("rank 1 sleeps", 5, "sleeps 50 ms", same=True)  # the run takes a minute
    reader.press("Train on real ranks", r"rank 0 trains, step \d+ of 1250, [\d,]+ digits/s, loss")
    reader.until(r"rank 0 trains.*, waits [\d.]+ of [\d.]+ ms; rank 1")
    reader.until(r"rank 0 trains, step .*rank 1 trains, step")
    reader.press("Stop", r"^Stopped\. rank 0 ended, step \d+ of 1250.*rank 1 ended")
    reader.slide("ranks", 1, "Not started. ranks: 3, epochs: 10")
    reader.pick("batch size per rank", "128", "batches of 128, rank 1 sleeps 50", same=True)
    reader.slide("rank 1 sleeps", -3, "sleeps 20 ms", same=True)
    reader.slide("epochs", -9, "epochs: 1, batches of 128", same=True)
    reader.press("Train on real ranks", r"rank 2 done, step 11 of 11, .*Rank 1 sleeps 20 ms")
    reader.is_clean()


def test_fault_lab(lab, reader):
    reader.open(lab, "fault_lab")
    reader.until("Not run yet")
    assert "dist.init_process_group" in reader.root.inner_text()
    reader.pick("it shows as", "silently wrong", "Not run yet", same=True)
    cases = faults.names("silently wrong")
    number = cases.index("no_set_epoch") + 1
    reader.pick("case", f"case {number}", "Not run yet", same=True)
    reader.until_text("orders = ")
    reader.press("Run on real ranks", "Ran on 2 real ranks .faulty.: rank 0 .*Choose a diagnosis")
    guesses = [title for title in fault_lab.suspects("no_set_epoch") if title != "No set_epoch"]
    reader.pick("your diagnosis", guesses[0], "Not that one", same=True)
    reader.pick(
        "your diagnosis", "No set_epoch", "Right: No set_epoch. Without set_epoch", same=True
    )
    reader.until_text("Call `sampler.set_epoch(epoch)`")
    reader.pick("version", "mended", "Not run yet")
    reader.press("Run on real ranks", "mended.: rank 0 returned.*This is the mend of: No set_epoch")
    reader.is_clean(words="Traceback (most recent call last)\nIPython")


def test_overlap(lab, reader):
    reader.open(lab, "overlap")
    reader.until("6 layers of 512, 6.01 MiB of gradients, .* buckets of 1 MiB, ranks: 2. How many")
    reader.slide("layers", -3, "3 layers of 512, 3.01 MiB", same=True)
    reader.pick("width", "256", "3 layers of 256, 0.753 MiB", same=True)
    reader.pick("batch per rank", "16", "batches of 16, buckets", same=True)
    reader.slide("bucket_cap_mb", -2, "buckets of 0.05 MiB, ranks: 2", same=True)
    measured = r"Measured on {} ranks .cpu.: {} all-reduces in a step, \d+% of their time hidden"
    reader.press("Measure on real ranks", measured.format(2, 3))  # a bucket for each layer
    reader.slide("bucket_cap_mb", 3, "buckets of 25 MiB, ranks: 2. How many")
    reader.slide("ranks", 1, "buckets of 25 MiB, ranks: 3", same=True)
    reader.press("Measure on real ranks", measured.format(3, 1))
    reader.is_clean()


def test_planner(lab, reader):
    reader.open(lab, "planner")
    reader.until("Predicted for servers of 8, 10 Gbit/s, 25.6 million parameters, 1.5 ms.*64 ranks")
    reader.pick("machine", "one server, NVLink", r"one server, NVLink.*efficiency of (9\d|100)%")
    reader.pick("machine", "PCs, 1 Gbit/s", r"PCs, 1 Gbit/s.*efficiency of (\d|1\d)% ")
    slow = efficiency(reader)
    reader.pick("gradients travel as", "float16", "PCs, 1 Gbit/s")
    half = efficiency(reader)
    assert half > 1.5 * slow
    reader.slide("accumulation steps", 3, "batches of 64 x 4")
    assert efficiency(reader) > 1.5 * half
    reader.slide("parameters", 1, "124 million parameters")
    reader.slide("compute of a sample", 1, "5 ms a sample")
    reader.slide("ranks up to", -3, ": 8 ranks train")
    reader.pick("batch per rank", "16", "batches of 16 x 4")
    reader.press("Measure this machine", "Predicted for", same=True)
    reader.until_text("predicted step (ms)")
    rows = reader.root.locator("table tr").all_inner_texts()
    assert [row.split()[0] for row in rows] == ["ranks", "1", "2", "4"]
    reader.is_clean()


def test_memory(lab, reader):
    reader.open(lab, "memory")
    reader.until("1.3 billion parameters under DDP over 8.*It fits on: H100, H200")
    plain = gigabytes(reader)
    reader.pick("held by", "FSDP", "under FSDP over 8")
    sharded = gigabytes(reader)
    assert sharded < plain
    reader.tick("activation checkpointing", "under FSDP over 8, activation checkpointing")
    again = gigabytes(reader)
    assert again < sharded
    reader.pick("precision", "mixed", "activation checkpointing.*It fits on: RTX 4090")
    reader.slide("data-parallel ranks", -1, "under FSDP over 4.*on 4 GPUs")
    assert gigabytes(reader) > again / 2
    reader.pick("parameters", "65 billion", "65 billion.*surely fits on none")
    reader.pick("tensor parallel", "8", "tensor parallel over 8.*on 32 GPUs")
    reader.pick("pipeline stages", "4", "4 pipeline stages.*on 128 GPUs")
    reader.slide("micro-batches", 4, "16 x 4 samples a rank")
    reader.slide("samples at once", -1, "16 x 2 samples a rank")
    reader.pick("optimizer", "sgd", "It fits on: ")
    reader.is_clean()


def gigabytes(reader):
    return float(re.search(r"a rank holds ([\d.]+) GB", reader.words)[1])


def efficiency(reader):
    return int(re.search(r"efficiency of (\d+)%", reader.words)[1])


@pytest.mark.parametrize("name", ["01_process_groups", "05_when_it_breaks"])
def test_a_notebook_that_has_not_run_shows_the_static_pictures(lab, page, name):
    book = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    explored = sum("widgets.explore(" in cell.source for cell in book.cells)
    page.goto(f"{lab}/tree/notebooks/{name}.ipynb?reset")
    pictures = page.locator(".jp-NotebookPanel .ddp-static img")
    pictures.first.wait_for(timeout=90_000)
    assert pictures.count() == explored >= 1
    for picture in pictures.all():
        assert picture.evaluate("image => image.naturalWidth") > 500
        alt = picture.get_attribute("alt")
        assert len(alt) > 30
        below = picture.locator("xpath=..").locator("p").first.inner_text()
        assert " ".join(below.split()) == " ".join(alt.split())
    assert "Error displaying widget" not in page.locator(".jp-NotebookPanel").inner_text()


def test_the_gallery_can_be_made():
    """`make gallery` uses this file's Reader."""
    script = Path(__file__).with_name("gallery.py")
    run = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
