"""A recorded run under its cell in a lesson: played, it draws its lanes and prints as it did.

Nothing is loaded for it: picture, lines and times are in the page. The committed output stays.
"""

from __future__ import annotations

import functools
import html
import json
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
RUNS = HERE / "runs"
sys.path[:0] = [str(HERE / "play"), str(RUNS)]

from cells import FOLDER, fingerprint  # noqa: E402
from recordings import decode  # noqa: E402

from ddp_helpers.evidence.records import RankResult  # noqa: E402
from ddp_helpers.plots.lanes import HEAD, ROW, draw_run, row_times  # noqa: E402

WORDS = tomllib.loads((RUNS / "words.toml").read_text(encoding="utf-8"))


@functools.cache
def recorded(lesson: str) -> dict:
    """What was recorded of a lesson: `recorded`, and `cells` by what they launch; or nothing."""
    path = FOLDER / f"{lesson}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"cells": {}}


def playable(lesson: str, notebook: dict) -> dict[int, dict]:
    """The recorded runs of an English lesson, by the place of the cell whose code it still is."""
    runs = {run["code"]: run for run in recorded(lesson)["cells"].values()}
    codes = [fingerprint("".join(cell["source"])) for cell in notebook["cells"]]
    return {at: runs[code] for at, code in enumerate(codes) if code in runs}


def put_runs(notebook: dict, page: str, root: Path) -> None:
    """Add a button to each cell of a lesson that has a recorded run."""
    lesson = Path(page).stem
    english = root / "notebooks" / f"{lesson}.ipynb"
    if not recorded(lesson)["cells"] or not english.exists():
        return
    original = json.loads(english.read_text(encoding="utf-8"))
    runs = {original["cells"][at]["id"]: run for at, run in playable(lesson, original).items()}
    words = WORDS["zh" if page.startswith("notebooks/zh_CN") else "en"]
    for cell in notebook["cells"]:
        if cell.get("id") in runs:
            shown = player(runs[cell["id"]], recorded(lesson)["recorded"], words)
            output = {"output_type": "display_data", "metadata": {}, "data": {"text/html": shown}}
            cell["outputs"].append(output)


def player(run: dict, about: str, words: dict[str, str]) -> str:
    """A button, and what it shows: a picture whose rows come one by one, and the output's lines."""
    ranks: tuple[RankResult, ...] = decode(run["ranks"])
    lanes, rows, told = "", [], ""
    if any(rank.calls for rank in ranks):
        scene, told = draw_run(ranks)
        begin = min(rank.calls[0].began for rank in ranks if rank.calls)
        ends = [HEAD + ROW * (at + 1) for at in range(len(row_times(ranks)))]
        rows = [
            [round(begin + time, 6), round(100 * (1 - end / scene.height), 2)]
            for time, end in zip(row_times(ranks), ends, strict=True)
        ]
        lanes = f'<div class="ddp-picture">{scene.svg(told)}</div>'
    facts = {"rows": rows, "lines": run["told"], "seconds": run["seconds"]}
    data = json.dumps(facts, ensure_ascii=False).replace("<", "\\u003c")
    label = html.escape(words["moment"])
    return (
        f'<div class="ddp-recorded"><button type="button" class="ddp-run" hidden>{words["open"]}'
        f'</button><template><fieldset class="ddp-film" aria-label="{label}">'
        f'<label><span>{label}</span><input type="range" min="0" value="0"><output></output>'
        f'</label><button type="button" data-by="-1">{words["back"]}</button>'
        f'<button type="button" class="ddp-pass" data-stop="{words["stop"]}">{words["play"]}'
        f'</button><button type="button" data-by="1">{words["on"]}</button></fieldset>'
        f'{lanes}<pre class="ddp-lines" role="region" tabindex="0" '
        f'aria-label="{words["lines"]}"></pre>'
        f'<p class="ddp-said" role="status" data-words="{html.escape(told)}"></p>'
        f'<p class="ddp-note">{words["about"].format(about)}</p></template>'
        f'<script type="application/json">{data}</script></div>'
    )
