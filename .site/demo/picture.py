"""The moving picture that README opens with: two mistakes, with torchrun alone and with launch().

    python .site/demo/picture.py        # of recorded.json, into notebooks/images/demo.svg

Time passes as it did on the real ranks. Who asks for less motion sees how it ended.
"""

from __future__ import annotations

import html
import itertools
import json
import math
import sys
import textwrap
from itertools import count
from pathlib import Path

HERE = Path(__file__).resolve().parent
FILE = HERE.parents[1] / "notebooks" / "images" / "demo.svg"
WIDE, HIGH, PANEL = 900, 884, 436
HALF = 496  # where the second mistake begins
LANE, AXIS = 70, 13.0  # pixels before a lane; seconds that it is long
LOOP = 20.0  # seconds: the last picture stays for the rest
LETTERS = 60  # of a line of output
FIRST_LINE = 9  # of the program, as it is shown
FOUND = "sanitizer: "  # how a finding begins
DRIFT_AXIS, CHART = 8.0, 84  # seconds, pixels
STYLE = """
text { font-family: ui-monospace, Menlo, Consolas, monospace; font-size: 11px; fill: #24292f; }
.title { font-family: system-ui, sans-serif; font-size: 14px; font-weight: 600; }
.small { font-family: system-ui, sans-serif; font-size: 11px; fill: #59636e; }
.bad { fill: #b04a00; font-weight: 600; }
.ground { fill: #ffffff; }
.frame { fill: none; stroke: #8c959f; }
.halo { paint-order: stroke; stroke: #ffffff; stroke-width: 4px; stroke-linejoin: round; }
.works { fill: #56b4e9; } .talks { fill: #0072b2; }
.waits { fill: url(#wait); stroke: #d55e00; }
.axis { stroke: #8c959f; }
.one, .two { fill: none; stroke-width: 2.4px; stroke-linecap: round; }
.one { stroke: #0072b2; } .two { stroke: #d55e00; stroke-dasharray: 5 4; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .small { fill: #9aa5b1; } .bad { fill: #ff9a57; }
  .ground { fill: #0d1117; } .halo { stroke: #0d1117; }
  .one { stroke: #56b4e9; } .two { stroke: #ff9a57; }
}
@media (prefers-reduced-motion: reduce) { * { animation: none !important; } }
"""
DEFS = (
    '<defs><pattern id="wait" width="6" height="6" patternUnits="userSpaceOnUse" '
    'patternTransform="rotate(45)"><rect width="6" height="6" fill="#d55e00" opacity=".35"/>'
    '<line x1="0" y1="0" x2="0" y2="6" stroke="#d55e00" stroke-width="3"/></pattern></defs>'
)


class Picture:
    """Shapes, and the rules that move them; without the rules they are as at the end."""

    def __init__(self) -> None:
        self.shapes: list[str] = []
        self.rules: list[str] = []
        self._numbers = count()

    def text(self, x: float, y: float, words: str, kind: str = "", at: float | None = None) -> None:
        """A line of text; with `at` it comes after so many seconds."""
        style = self._rule(f"0%,{_share(at)}{{opacity:0}}{_share(at, 0.1)},to{{opacity:1}}", at)
        self.shapes.append(
            f'<text x="{x:g}" y="{y:g}" class="{kind}" xml:space="preserve"{style}>'
            f"{html.escape(words)}</text>"
        )

    def bar(self, x: float, y: float, wide: float, kind: str, start: float, end: float) -> None:
        """A bar that grows from `start` to `end`, in seconds."""
        style = self._rule(
            f"0%,{_share(start)}{{transform:scaleX(0)}}{_share(end)},to{{transform:none}}",
            start,
            f"transform-origin:{x:.1f}px 0",
        )
        place = f'x="{x:.1f}" y="{y:g}" width="{wide:.1f}" height="18"'
        self.shapes.append(f'<rect {place} class="{kind}"{style}/>')

    def stroke(self, path: str, kind: str, at: float) -> None:
        """A line that comes after so many seconds."""
        frames = f"0%,{_share(at)}{{opacity:0}}{_share(at, 0.05)},to{{opacity:1}}"
        self.shapes.append(f'<path d="{path}" class="{kind}"{self._rule(frames, at)}/>')

    def only_between(self, x: float, y: float, words: str, start: float, end: float) -> None:
        """A text that goes again; who sees no motion never sees it."""
        frames = (
            f"0%,{_share(start)}{{opacity:0}}{_share(start, 0.01)},{_share(end)}{{opacity:1}}"
            f"{_share(end, 0.01)},to{{opacity:0}}"
        )
        style = self._rule(frames, start, "opacity:0")
        self.shapes.append(f'<text x="{x:g}" y="{y:g}" class="small"{style}>{words}</text>')

    def _rule(self, frames: str, at: float | None, fixed: str = "") -> str:
        if at is None:
            return ""
        name = f"m{next(self._numbers)}"
        self.rules.append(f"@keyframes {name}{{{frames}}}")
        more = f";{fixed}" if fixed else ""
        return f' style="animation:{name} {LOOP:g}s linear infinite{more}"'

    def svg(self, alt: str) -> str:
        """The file's text."""
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDE} {HIGH}" width="{WIDE}" '
            f'height="{HIGH}" role="img" aria-label="{html.escape(alt)}">\n'
            f"<title>{html.escape(alt)}</title>\n<style>{STYLE}"
            + "\n".join(self.rules)
            + f"</style>\n{DEFS}\n"
            + f'<rect width="{WIDE}" height="{HIGH}" class="ground"/>\n'
            + "\n".join(self.shapes)
            + "\n</svg>\n"
        )


def _share(at: float | None, later: float = 0.0) -> str:
    """A moment as a share of the whole loop."""
    return f"{100 * min(1.0, ((at or 0.0) + later) / LOOP):.2f}%"


def draw(found: dict) -> str:
    """The picture of a recording."""
    picture = Picture()
    _program(picture)
    _panel(picture, 4, "torchrun --nproc_per_node=2 train.py", found["alone"], alone=True)
    launch = f"launch(train, 2, timeout={found['limit']})"
    _panel(picture, WIDE - PANEL - 4, launch, found["launched"], alone=False)
    _drift(picture, found["drifting"])
    about = f"Real ranks, and time as it passed: recorded {found['recorded']}, torch and gloo."
    picture.text(4, HIGH - 6, about, "small")
    return picture.svg(in_words(found))


def in_words(found: dict) -> str:
    """What happens in the picture."""
    (_, notice), *report = found["launched"]["lines"]
    return (
        "Two ranks run a program in which only rank 0 comes to a barrier. With torchrun alone both "
        f"wait, and nothing is printed: after {found['alone']['until']:.0f} s it still waits. With "
        f"launch() a line says: {notice}. At its limit the ranks are ended, and it says why: "
        f"{report[3][1].removeprefix('why: ')}. Below, two ranks pass DDP by: their weights part, "
        "and torchrun alone says nothing. With sanitize=True the run ends, and it says why: "
        f"{_why(found['drifting']['watched'])}."
    )


def _program(picture: Picture) -> None:
    lines = (HERE / "stuck.py").read_text(encoding="utf-8").splitlines()[FIRST_LINE - 1 :]
    picture.text(4, 18, "train.py, with a mistake", "title")
    picture.text(WIDE - PANEL, 18, "Who waits for whom? Alone it only waits.", "title")
    for at, line in enumerate(lines):
        number = FIRST_LINE + at
        kind = "bad" if "barrier" in line else ""
        picture.text(10, 42 + 15 * at, f"{number:2}  {line.removeprefix('    ')}", kind)
    at = next(at for at, line in enumerate(lines) if "barrier" in line)
    picture.text(230, 42 + 15 * at, "only rank 0 comes here", "small")
    for at, (kind, words) in enumerate(
        (("works", "computes"), ("talks", "exchanges"), ("waits", "waits for the other rank"))
    ):
        y = 34 + 22 * at
        picture.shapes.append(
            f'<rect x="{WIDE - PANEL}" y="{y}" width="26" height="14" class="{kind}"/>'
        )
        picture.text(WIDE - PANEL + 34, y + 11, words, "small")


def _panel(picture: Picture, left: float, command: str, run: dict, alone: bool) -> None:
    top = 146
    frame = f'x="{left}" y="{top}" width="{PANEL}" height="{HALF - top - 14}" rx="6"'
    picture.shapes.append(f'<rect {frame} class="frame"/>')
    ended = run["lines"][-1][0] if run["lines"] else AXIS
    prompt = f"In [*]: {'!' if alone else ''}{command}"
    picture.text(left + 12, top + 22, prompt)
    _lanes(picture, left, top + 40, run["events"], min(ended, AXIS))
    _clock(picture, left + LANE, top + 102, min(ended, AXIS))
    if alone:
        words = f"Nothing is printed. After {run['until']:.0f} s it still waits, and the notebook"
        picture.text(left + 12, top + 134, words, "small", AXIS - 0.5)
        words = "with it: torch gives up after its timeout, 30 minutes."
        picture.text(left + 12, top + 150, words, "small", AXIS - 0.5)
        return
    y = top + 130
    for at, line in run["lines"]:
        for part in textwrap.wrap(line, LETTERS, subsequent_indent="    "):
            picture.text(left + 12, y, part, "bad" if line.startswith("why") else "", at)
            y += 14
        y += 2


def _drift(picture: Picture, found: dict) -> None:
    """The second mistake: models that part while each loss falls."""
    lines = (HERE / "drift.py").read_text(encoding="utf-8").splitlines()
    picture.text(4, HALF + 18, "drift.py, with another one", "title")
    shown = [at for at, line in enumerate(lines, 1) if "ddp = " in line or "loss = " in line]
    for row, at in enumerate(shown):
        kind = "bad" if "ddp.module(x)" in lines[at - 1] else ""
        picture.text(10, HALF + 42 + 15 * row, f"{at:2}  {lines[at - 1].strip()}", kind)
    picture.text(WIDE - PANEL, HALF + 18, "One model, or two? Alone nobody says.", "title")
    picture.text(340, HALF + 57, "passes DDP by", "small")
    alone, watched = found["alone"], found["watched"]
    weights = [step[4] for run in (alone, watched) for step in run["steps"]]
    span = min(weights), max(weights)
    command = "!torchrun --nproc_per_node=2 drift.py"
    left = _drift_panel(picture, 4, command, alone["steps"], span)
    (first, last) = (
        next(step for step in reversed(alone["steps"]) if step[1] == rank) for rank in (0, 1)
    )
    words = f"After {last[2]} steps: losses {first[3]:.2f} and {last[3]:.2f}, "
    words += f"weights {first[4]:.2f} and {last[4]:.2f}."
    picture.text(left, HALF + 226, words, "small", last[0])
    picture.text(left, HALF + 242, "Two models, and nothing is said.", "small", last[0])
    command = "launch(train, 2, sanitize=True)"
    left = _drift_panel(picture, WIDE - PANEL - 4, command, watched["steps"], span)
    y = HALF + 226
    for at, line in watched["lines"]:
        for part in textwrap.wrap(line, LETTERS, subsequent_indent="    "):
            picture.text(left, y, part, "bad" if line.startswith(FOUND) else "", at)
            y += 14


def _why(run: dict) -> str:
    return next(line for _, line in run["lines"] if line.startswith(FOUND)).removeprefix(FOUND)


def _drift_panel(picture: Picture, left: float, command: str, steps: list, span: tuple) -> float:
    """A frame, and one weight of each rank over time; where its text begins."""
    top = HALF + 72
    frame = f'x="{left}" y="{top}" width="{PANEL}" height="{HIGH - top - 22}" rx="6"'
    picture.shapes.append(f'<rect {frame} class="frame"/>')
    picture.text(left + 12, top + 22, f"In [*]: {command}")
    picture.text(left + 12, top + 50, "a weight", "small")
    picture.text(left + 12, top + 64, "of each", "small")
    floor, wide = top + 36 + CHART, PANEL - LANE - 80
    picture.shapes.append(
        f'<path d="M{left + LANE} {floor}h{wide}" class="axis" stroke-width="1" fill="none"/>'
    )
    share = lambda weight: (weight - span[0]) / (span[1] - span[0])
    for rank, kind in ((0, "one"), (1, "two")):
        own = [
            (left + LANE + wide * at / DRIFT_AXIS, floor - CHART * share(weight), at)
            for at, number, _, _, weight in steps
            if number == rank
        ]
        for (x, y, _), (to_x, to_y, at) in itertools.pairwise(own):
            picture.stroke(f"M{x:.1f} {y:.1f}L{to_x:.1f} {to_y:.1f}", kind, at)
        for x, y, at in own[-1:]:  # none if it was ended before its first line
            picture.stroke(f"M{x - 0.1:.1f} {y:.1f}h.2", kind, at)
            picture.text(x + 6, y + 4, f"rank {rank}", "small", at)
    return left + 12


def _lanes(picture: Picture, left: float, top: float, events: list[dict], end: float) -> None:
    """For each rank: it computes, exchanges, and at last waits for what does not come."""
    place = lambda at: left + LANE + (PANEL - LANE - 16) * at / AXIS
    for rank in (0, 1):
        y = top + 26 * rank
        picture.text(left + 12, y + 13, f"rank {rank}")
        own = [each for each in events if each["rank"] == rank]
        free = 0.0
        for call, back in zip(own, [*own[1:], None], strict=True):
            if call["done"]:
                free = call["at"]
                continue
            picture.bar(place(free), y, place(call["at"]) - place(free), "works", free, call["at"])
            if back is not None:
                wide = max(3.0, place(back["at"]) - place(call["at"]))
                picture.bar(place(call["at"]) - 1, y, wide, "talks", call["at"], call["at"] + 0.05)
            else:
                wide = place(end) - place(call["at"])
                picture.bar(place(call["at"]), y, wide, "waits", call["at"], end)
                picture.text(place(call["at"]) + 8, y + 13, call["name"], "halo", call["at"])


def _clock(picture: Picture, left: float, top: float, end: float) -> None:
    """Seconds below the lanes, and how many have passed."""
    wide = PANEL - LANE - 16
    picture.shapes.append(
        f'<path d="M{left} {top - 6}h{wide}" class="axis" stroke-width="1" fill="none"/>'
    )
    for second in range(0, int(AXIS) + 1, 4):
        picture.text(left + wide * second / AXIS - 3, top + 8, f"{second}", "small")
    picture.text(left + wide - 14, top + 8, "s", "small")
    for second in range(math.ceil(end)):
        until = min(second + 1.0, end)
        picture.only_between(left - 58, top + 8, f"{second} s", second, until)
    picture.text(left - 58, top + 8, f"{end:.0f} s", "small", end)


def main() -> int:
    """Write the file."""
    found = json.loads((HERE / "recorded.json").read_text(encoding="utf-8"))
    FILE.write_text(draw(found), encoding="utf-8")
    print(f"wrote {FILE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
