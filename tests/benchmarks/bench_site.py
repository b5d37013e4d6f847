"""How long a reader of a page waits for an explorable: until it first moves, and then for a move.

    make site && python tests/benchmarks/bench_site.py [--rounds 5] [--lighthouse]

With --lighthouse also what Lighthouse gives a phone on a slow network for the first page and a
lesson, from the site's own server; npx fetches it once (190 MB), and a busy machine lowers it.

Each round is a Chromium that has never seen the page: from the first touch of a control to the
first picture that Python draws in the page; then the moves of every explorable, each to its
picture. The server is on this machine, so no network is in it.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parents[2]
PATHS = (ROOT / ".site" / "play", ROOT / ".site", ROOT / "tests", ROOT)
sys.path[:0] = map(str, PATHS)

from chromium import find_chromium  # noqa: E402
from mover import MOVING  # noqa: E402
from serve import Handler  # noqa: E402

from ddp_helpers.environment import usable_cpu_count  # noqa: E402

FIRST, EACH = 4.0, 0.1  # seconds
LIGHTHOUSE = "lighthouse@12.8.2"  # the last that runs on node 20
SCORED = ("index.html", "notebooks/01_process_groups.html")
KINDS = ("performance", "accessibility")
LEAST = 0.9
MOVES = """async ([name, times]) => {
  const root = document.querySelector(`.ddp-play[data-explorable="${name}"]`);
  const inputs = [...root.querySelectorAll(".ddp-controls [name]")];
  const waited = [];
  for (let move = 0; move < times; move++) {
    const input = inputs[move % inputs.length];
    const drawn = new Promise((done) => root.addEventListener("ddp-drawn", done, {once: true}));
    const most = input.options ? input.options.length - 1 : Number(input.max);
    const least = input.options ? 0 : Number(input.min);
    if (input.type === "checkbox") input.checked = !input.checked;
    else input.value = Number(input.value) < most ? Number(input.value) + 1 : least;
    const start = performance.now();
    input.dispatchEvent(new Event("input", {bubbles: true}));
    await drawn;
    root.getBoundingClientRect(); // laid out, as the reader sees it
    waited.push((performance.now() - start) / 1000);
  }
  return waited;
}"""


class Quiet(SimpleHTTPRequestHandler):
    """A static server that prints nothing."""

    def log_message(self, *_: object) -> None:
        pass


def scores(address: str) -> dict[str, float]:
    """What Lighthouse gives a page."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "report.json")
        command = ["npx", "--yes", LIGHTHOUSE, address, "--quiet", "--output=json"]
        command += [f"--output-path={file}", f"--only-categories={','.join(KINDS)}"]
        command += ["--chrome-flags=--headless=new --no-sandbox --disable-gpu"]
        surroundings = os.environ | {"CHROME_PATH": str(find_chromium())}
        subprocess.run(command, env=surroundings, check=True, timeout=600)
        found = json.loads(file.read_text(encoding="utf-8"))["categories"]
    return {kind: found[kind]["score"] for kind in KINDS}


def is_scored_low(site: Path, rounds: int) -> bool:
    """Print the median of some rounds for each page; whether one is below `LEAST`."""
    handler = functools.partial(Handler, directory=str(site))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    low = False
    for page in SCORED:
        address = f"http://127.0.0.1:{server.server_port}/{page}"
        found = [scores(address) for _ in range(rounds)]
        medians = {kind: statistics.median(each[kind] for each in found) for kind in KINDS}
        low |= min(medians.values()) < LEAST
        print(page, *(f"{kind} {score:.2f}" for kind, score in medians.items()), sep=", ")
    server.shutdown()
    return low


def round_of(page: Page, address: str, times: int) -> tuple[float, dict[str, list[float]]]:
    """Seconds until the first move is seen, and of each later one."""
    page.goto(f"{address}explorables.html")
    page.wait_for_load_state("networkidle")
    (first,) = page.evaluate(MOVES, ["ring", 1])
    return first, {name: page.evaluate(MOVES, [name, times]) for name in MOVING}


def main() -> int:
    """Command line; exit code 1 if a median is above its limit."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--moves", type=int, default=40)
    parser.add_argument("--site", type=Path, default=ROOT / "build" / "site")
    parser.add_argument("--lighthouse", action="store_true")
    options = parser.parse_args()
    if not (options.site / "play" / "worker.mjs").exists():
        sys.exit(f"nothing moves in {options.site}: run make site, with npm, first")
    server = ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(options.site))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}/"
    firsts, moves = [], {name: [] for name in MOVING}
    with sync_playwright() as play:
        for _ in range(options.rounds):
            browser = play.chromium.launch(
                executable_path=find_chromium(), args=["--no-sandbox", "--disable-gpu"]
            )
            first, found = round_of(browser.new_page(), address, options.moves)
            browser.close()
            firsts.append(first)
            for name, waited in found.items():
                moves[name] += waited
    server.shutdown()
    print(f"explorables on a page, CPU cores: {usable_cpu_count()}, rounds: {options.rounds}")
    slow = statistics.median(firsts) > FIRST
    print(
        f"first move, cold: median {statistics.median(firsts):.2f} s, longest {max(firsts):.2f} s"
    )
    for name, waited in moves.items():
        median = statistics.median(waited)
        slow |= median > EACH
        print(f"{name:13} median {1e3 * median:6.1f} ms, longest {1e3 * max(waited):6.1f} ms")
    if options.lighthouse:
        slow |= is_scored_low(options.site, options.rounds)
    return int(slow)


if __name__ == "__main__":
    sys.exit(main())
