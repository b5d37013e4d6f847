"""What measured rounds let one say, and silence where they scatter.

    compare({"copies": times, "views": times}, "copies", "views")
    says("backward is the longest part", [True, True, False, ...])

Each prints an arrow, what is claimed and the verdict; below it the figures. A verdict needs three
quarters of the rounds, 12 of 16: a coin falls so in 4 of 100 tries. `make steady` runs a notebook
again and again, and names the verdicts that turn.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from ddp_helpers.words import shown

ARROW = "→"
ENOUGH = 0.75
"""The share of the rounds that a verdict needs."""
LEAST = 8
"""With fewer rounds three quarters are too often luck."""
CANT_TELL = "can't tell"


def says(
    claim: str,
    rounds: Sequence[bool],
    figures: str = "",
    *,
    yes: str = "yes",
    no: str = "no",
    each: str = "rounds",
) -> str:
    """Print whether the rounds bear the claim out; return `yes`, `no` or "can't tell".

    Args:
        claim: in words that stay true whatever is measured; no numbers, they would turn.
        rounds: for each one whether the claim held in it.
        figures: the measured numbers behind it.
        yes: the verdict if it held in three quarters of them; `no` if it failed in as many.
        each: what a round is, such as "steps".

    Raises:
        ValueError: fewer than 8 rounds.
    """
    if len(rounds) < LEAST:
        raise ValueError(f"{len(rounds)} {each}: expected {LEAST} or more, to tell luck from rule")
    held, of = sum(map(bool, rounds)), len(rounds)
    verdict = yes if held >= ENOUGH * of else no if of - held >= ENOUGH * of else CANT_TELL
    count = of - held if verdict == no else held
    word = f"{yes} " if verdict == CANT_TELL else ""
    print(f"{ARROW} {shown(f'{claim}: {verdict}, {word}in {count} of {of} {each}')}")
    if figures:
        print(f"  {shown(figures)}")
    return verdict


def compare(times: Mapping[str, Sequence[float]], before: str, after: str) -> str:
    """Print which of two ways is faster, from rounds in which both took their turn.

    Args:
        times: for each way its seconds, round by round.
        before, after: two of the ways.

    Returns:
        "faster" or "slower", which is said of `after`, or "can't tell".

    Raises:
        KeyError: no such way.
        ValueError: fewer than 8 rounds, or not as many of one as of the other.
    """
    pairs = list(zip(times[before], times[after], strict=True))
    if len(pairs) < LEAST:
        raise ValueError(f"{len(pairs)} rounds: expected {LEAST} or more, to tell luck from rule")
    old, new = (1e3 * statistics.median(each) for each in zip(*pairs, strict=True))
    gain = middle([one / other for one, other in pairs], "{:.2f}")
    return says(
        f"{shown(after)} {shown('against')} {shown(before)}",
        [one > other for one, other in pairs],
        f"{new:.1f} ms against {old:.1f} ms; round by round {gain} times as fast",
        yes="faster",
        no="slower",
    )


def middle(values: Sequence[float], form: str = "{:.1f}") -> str:
    """The median, and in brackets where the middle half lies: "7.8 (7.1 to 9.0)".

    Raises:
        ValueError: fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"{len(values)} values: expected 2 or more, to say how far they scatter")
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{form.format(median)} ({form.format(low)} to {form.format(high)})"
