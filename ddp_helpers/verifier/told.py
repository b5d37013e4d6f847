"""A verdict in words."""

from __future__ import annotations

from ddp_helpers.verifier.records import EQUAL, NOT_COMPARED, Verdict
from ddp_helpers.words import shown

MOST_NOTES = 4


def told(verdict: Verdict) -> str:
    lines = [_headline(verdict)]
    if verdict.why:
        lines.append(f"  why: {verdict.why}")
    if verdict.way_out:
        lines.append(f"  what to do: {verdict.way_out}")
    lines += [f"  note: {note}" for note in verdict.notes[:MOST_NOTES]]
    lines.append(f"  it took {verdict.seconds:.1f} s")
    return shown("\n".join(lines))


def _headline(verdict: Verdict) -> str:
    n = verdict.ranks
    if verdict.outcome == EQUAL:
        s = "s" if verdict.steps != 1 else ""
        return (
            f"equal: {verdict.steps} step{s} on {n} ranks are the same as in one process with the "
            "whole batches"
        )
    if verdict.outcome == NOT_COMPARED:
        return f"can't be compared: {n} ranks with one process"
    where = {
        "samples": "in the samples",
        "weights": "in the weights before it",
        "gradients": "in the gradients that optimizer.step() gets",
        "updates": "in what optimizer.step() does",
    }[verdict.stage]
    what = f", first {verdict.parameter}" if verdict.parameter else ""
    what += f" ({verdict.module})" if verdict.module else ""
    return f"parts at step {verdict.step}, {where}{what}: {n} ranks are not one process"
