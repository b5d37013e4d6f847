"""The page that holds the planner against tables that others published: every row of them."""

from __future__ import annotations

from pathlib import Path

from ddp_helpers.scaling import others

HEAD = """# Predictions, held against others' tables

The planner's model of a step beside what others measured and published. Of each table the speed of
one GPU is taken as it stands; all other numbers are predicted from rated links. No row is left out
for its error. The same in a terminal: `python -m ddp_helpers plan --published`.
"""


def write_others(pages: Path) -> None:
    """Write predictions.md: a table for each series, with its source and what was assumed."""
    found = others.rows()
    parts = [HEAD, f"**{others.summary(found)}.**\n", "Assumed of all of them:\n"]
    parts += [f"- {text}" for text in others.ASSUMED]
    parts += [_series(series) for series in others.SERIES]
    (pages / "predictions.md").write_text("\n".join(parts) + "\n", encoding="utf-8")


def _series(series: others.Series) -> str:
    unit = "one GPU of the first row given" if series.is_share else "samples a second"
    head = f"| GPUs | published ({unit}) | predicted | range | error | |"
    rows = [head, "| ---: | ---: | ---: | ---: | ---: | --- |"]
    for row in series.rows():
        told, low, high = map(others.number, vars(row.predicted).values())
        missed = "" if row.inside else "missed"
        real = others.number(row.published)
        rows.append(
            f"| {row.ranks} | {real} | {told} | {low} to {high} | {row.off:+.0%} | {missed} |"
        )
    source = f"[source]({series.source})" if series.source.startswith("http") else series.source
    words = f"{source}. Sends: {series.sends.words}. Links: {series.servers.words}."
    return f"\n## {series.name}\n\n{series.batch} samples a GPU. {words}\n\n" + "\n".join(rows)
