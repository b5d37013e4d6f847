"""The failure lab as a game: pick a fault, run it, watch the ranks, and say what was wrong."""

from __future__ import annotations

import hashlib
import html
import re
from typing import TYPE_CHECKING

from ddp_helpers.faults._catalogue import GROUPS, Seen, functions, names, record
from ddp_helpers.plots.colors import BLUE, GREEN, GREY, ORANGE, VERMILLION
from ddp_helpers.plots.scene import PAGE, Scene
from ddp_helpers.widgets.controls import Choice
from ddp_helpers.words import shown

if TYPE_CHECKING:
    from ddp_helpers.evidence.records import RankResult
    from ddp_helpers.widgets.base import Explorable, Picture

VERSIONS = ("faulty", "mended")
NOT_YET = "..."
LINES = 12  # of the ranks' own text
ENDS = {
    "returned": GREEN,
    "raised an error": VERMILLION,
    "was ended by the launcher": ORANGE,
    "was killed or left early": BLUE,
}
THINNEST = 2.0  # pixels of a rank that lived for a moment
HATCHED = ("raised an error", "was killed or left early")


def suspects(name: str) -> list[str]:
    """Four titles, the right one among them, always in the same order for one fault."""
    group = record(name).group
    others = [other for other in names() if other != name]
    near = [other for other in others if record(other).group == group]
    mixed = sorted(near, key=lambda other: _chance(name, other))
    mixed += sorted(set(others) - set(near), key=lambda other: _chance(name, other))
    chosen = sorted([name, *mixed[:3]], key=lambda other: _chance("place", name, other))
    return [record(other).title for other in chosen]


def _chance(*words: str) -> str:
    return hashlib.sha256("/".join(words).encode()).hexdigest()


def code(name: str) -> str:
    """The functions of a fault, without its mend and without the comment that gives it away."""
    found = (text for title, text in functions(name).items() if title != "fixed")
    return re.sub(r"\s*# FAULT.*", "", "\n\n".join(found))


def how_it_ended(rank: RankResult) -> str:
    """One of `ENDS`."""
    if rank.ok:
        return "returned"
    if rank.error is not None:
        return "raised an error"
    return "was ended by the launcher" if rank.exit_code is None else "was killed or left early"


def run(group: str, fault: str, version: str, guess: str) -> Seen:
    """The fault or its mend, on real ranks."""
    from ddp_helpers import faults

    return faults.run(fault, fixed=version == VERSIONS[1])


def draw(group: str, fault: str, version: str, guess: str, result: Seen | None) -> Picture:
    """How long each rank lived and how it ended; below, what it printed, and the code."""
    from ddp_helpers.widgets.base import Picture

    ranks = result.result.ranks if result and result.result else ()
    scene = _scene(ranks, run=result is not None)
    return Picture(scene, _in_words(fault, version, guess, result), _detail(fault, guess, result))


def _in_words(fault: str, version: str, guess: str, result: Seen | None) -> str:
    title = record(fault).title
    if result is None:
        return "Not run yet. Read the code, predict what the ranks will do, then run it."
    if result.result is None:
        text = f"Ran as a command in a terminal ({version})."
    else:
        ends = [
            f"rank {rank.rank} {how_it_ended(rank)} after {rank.seconds:.1f} s"
            for rank in result.result.ranks
        ]
        text = f"Ran on {len(ends)} real ranks ({version}): {'; '.join(ends)}."
    if version == VERSIONS[1]:
        return f"{text} This is the mend of: {title}."
    if guess == NOT_YET:
        return f"{text} What is wrong? Choose a diagnosis."
    if guess == title:
        return f"{text} Right: {title}. {record(fault).cause}"
    return f"{text} Not that one: {guess} looks different. Read the last lines again."


def _detail(fault: str, guess: str, result: Seen | None) -> str:
    solved = guess == record(fault).title
    boxes = []
    if result is not None:
        boxes.append(("What the ranks printed", last_lines(result.output + raised(result))))
    if result is not None and result.alone is not None:
        boxes.append(("What torch prints, without launch()", last_lines(result.alone)))
    if solved:
        boxes.append(("The mend", functions(fault)["fixed"]))
    else:
        boxes.append(("The code", code(fault)))
    if result is not None and solved:
        boxes.append(("The report", shown(result.report or "nothing to report")))
        boxes.append(("What to do", shown(record(fault).mend)))
    return "".join(
        f'<div style="margin-top:6px"><b>{shown(name)}</b><pre tabindex="0" style="margin:2px 0;'
        "font-size:11px;white-space:pre-wrap;max-height:220px;overflow:auto;"
        f'border-left:3px solid {GREY};padding-left:8px">{html.escape(text)}</pre></div>'
        for name, text in boxes
    )


def raised(seen: Seen) -> str:
    """Of each rank that raised an error its first line, or where the sanitizer saw the ranks.

    launch() keeps errors, so ranks print none; and what the sanitizer says would tell the answer.
    """
    errors = [rank.error for rank in seen.result.ranks if rank.error] if seen.result else []
    lines = {line for error in errors for line in str(error).splitlines() if line[:6] == "  rank"}
    firsts = [str(error).splitlines()[0] for error in errors if "Sanitizer" not in error.type_name]
    return "".join(f"{line.strip()}\n" for line in [*firsts, *sorted(lines)])


def last_lines(text: str) -> str:
    """The end of what was printed, where an error stands."""
    return "\n".join(text.strip().splitlines()[-LINES:]) or shown("nothing")


def _scene(ranks: tuple[RankResult, ...], *, run: bool) -> Scene:
    left, wide, row = 64, 418, 30
    scene = Scene(PAGE, 34 + row * max(1, len(ranks)) + 44)
    for at, (name, color) in enumerate(ENDS.items()):
        x = left + (0, 100, 230, 430)[at]
        scene.box(x, 4, 14, 14, fill=color, hatch=name in HATCHED)
        scene.text(x + 20, 11, name, anchor="start")
    if not ranks:
        text = "it ran as a command" if run else "not run yet"
        scene.text(left, 48, text, anchor="start", size=14, color=GREY)
        return scene
    top = max(rank.seconds for rank in ranks) or 1.0
    for at, rank in enumerate(ranks):
        y, end = 32 + row * at, how_it_ended(rank)
        scene.text(left - 8, y + 11, f"rank {rank.rank}", anchor="end")
        width = wide * rank.seconds / top
        scene.box(left, y, max(THINNEST, width), 22, fill=ENDS[end], hatch=end in HATCHED)
        where = left + width + 8
        scene.text(where, y + 11, f"{end}, {rank.seconds:.1f} s", anchor="start")
    scene.axis(left, 36 + row * len(ranks), wide, top, "time that the rank lived (s)")
    return scene


def explorable(
    fault: str = "uneven_batches", version: str = VERSIONS[0], guess: str = NOT_YET
) -> Explorable:
    """Pick a fault, run it, and find out what it is."""
    from ddp_helpers.widgets.base import Explorable

    group = record(fault).group
    controls = {
        "group": Choice("it shows as", group, GROUPS),
        "fault": Choice("case", fault, _cases(group)),
        "version": Choice("version", version, VERSIONS),
        "guess": Choice("your diagnosis", guess, [NOT_YET, *suspects(fault)]),
    }
    title = "Failure lab: what is wrong here?"
    return Explorable(title, controls, draw, run=run, keeps=["group", "guess"], adjust=_adjust)


def _adjust(moved: str, group: str, fault: str, version: str, guess: str) -> dict[str, Choice]:
    """Another group has other cases, and another case other suspects."""
    if moved == "group":
        cases = _cases(group)
        return {"fault": Choice("case", cases[0][1], cases)}
    if moved == "fault":
        return {"guess": Choice("your diagnosis", NOT_YET, [NOT_YET, *suspects(fault)])}
    return {}


def _cases(group: str) -> list[tuple[str, str]]:
    """Numbers, because a name would give it away."""
    return [(f"case {at + 1}", name) for at, name in enumerate(names(group))]
