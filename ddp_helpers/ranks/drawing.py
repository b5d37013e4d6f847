"""The picture of a run where its reader sees it: under the cell, or in a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path

from ddp_helpers.evidence.records import RankResult
from ddp_helpers.ranks.notebook import is_kernel
from ddp_helpers.words import shown


class Draw(Enum):
    """Other than at once."""

    LATER = "note the calls, for who draws them later"


def check_draw(draw: object, one_machine: bool = True) -> None:
    """Refuse what can't be drawn to, before anything runs.

    Raises:
        ValueError: it is no .svg file in a folder that is there, or True where no notebook is,
            or there are several machines.
    """
    if draw and not one_machine:
        raise ValueError(
            f"draw={draw!r} with hosts: the clocks of machines differ; draw one machine's"
        )
    if draw in (False, Draw.LATER) or (draw is True and is_kernel()):
        return
    if draw is True:
        raise ValueError(
            'draw=True shows a picture in a notebook; here give a file: draw="run.svg"'
        )
    if not isinstance(draw, str | Path) or Path(draw).suffix != ".svg":
        raise ValueError(f"draw={draw!r}: expected True, False, or the name of an .svg file")
    if not Path(draw).absolute().parent.is_dir():
        raise ValueError(f"draw={str(draw)!r}: there is no folder {Path(draw).absolute().parent}")


def show_run(ranks: Sequence[RankResult], draw: bool | str | Path | Draw) -> None:
    """Draw what the ranks have called, and when."""
    if draw in (False, Draw.LATER):
        return
    if draw is True:
        show_beside({"": ranks})
        return
    from ddp_helpers.plots.lanes import draw_run

    scene, words = draw_run(ranks)
    Path(str(draw)).write_text(scene.svg(words), encoding="utf-8")


def show_beside(runs: Mapping[str, Sequence[RankResult]]) -> None:
    """Runs with their titles, beside each other where the page is wide."""
    from IPython.display import display

    from ddp_helpers.plots.lanes import draw_run

    drawn = {shown(title): draw_run(ranks) for title, ranks in runs.items()}
    page = "".join(
        f'<div style="overflow-x:auto"><b>{title}</b>{scene.svg(words)}</div>'
        for title, (scene, words) in drawn.items()
    )
    told = "\n".join(f"{title} {shown(words)}".strip() for title, (_, words) in drawn.items())
    html = f'<div style="display:flex;flex-wrap:wrap;gap:24px">{page}</div>'
    display({"text/html": html, "text/plain": told}, raw=True)
