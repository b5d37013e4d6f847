"""The figure of `bench`: speed against ranks, and what a step consists of."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from ddp_helpers.plots.colors import BLUE, GREY
from ddp_helpers.plots.style import STYLE, new_pair, settle
from ddp_helpers.timeline.plots import LOOKS
from ddp_helpers.timeline.records import KINDS


@matplotlib.rc_context(STYLE)
def plot_bench(
    rates: Mapping[int, Sequence[float]],
    shares: Mapping[int, Mapping[str, float]],
    *,
    title: str,
    note: str | None = None,
) -> Figure:
    """Samples a second and shares of a step, by number of ranks.

    Args:
        rates: for each number of ranks, samples a second in each round.
        shares: for each number of ranks, what `mean_shares` says.

    Raises:
        ValueError: other numbers of ranks in one than in the other, or none.
    """
    if not rates or list(rates) != list(shares):
        raise ValueError(f"rates of {[*rates]} ranks, shares of {[*shares]}: expected the same")
    fig, left, right = new_pair(9.6, 3.8, f"Scaling of {title}", note)
    ranks, places = list(rates), range(len(rates))
    medians = [statistics.median(values) for values in rates.values()]
    ideal = [medians[0] * n / ranks[0] for n in ranks]
    left.plot(ranks, ideal, "--", color=GREY, label="each rank as fast as the first")
    left.plot(ranks, medians, "o-", color=BLUE, label="measured, median")
    for n, values in rates.items():
        left.plot([n] * len(values), values, ".", color=GREY)
    left.set(xlabel="ranks", ylabel="samples/s, all ranks", ylim=(0, None), xticks=ranks)
    left.legend()
    below = [0.0] * len(ranks)
    for kind in KINDS:
        heights = [100 * shares[n][kind] for n in ranks]
        right.bar(places, heights, 0.6, bottom=below, **LOOKS[kind])
        below = [base + height for base, height in zip(below, heights, strict=True)]
    right.set(xlabel="ranks", ylabel="share of a step (%)", ylim=(0, 100))
    right.set_xticks(list(places), [str(n) for n in ranks])
    handles = [Patch(label=kind, **LOOKS[kind]) for kind in reversed(KINDS)]
    right.legend(handles=handles, loc="center left", bbox_to_anchor=(1, 0.5))
    return settle(fig)


def describe_bench(
    rates: Mapping[int, Sequence[float]], shares: Mapping[int, Mapping[str, float]]
) -> str:
    """The same in words."""
    parts = (
        f"{n} ranks: {statistics.median(rates[n]):.0f} samples/s, "
        f"{shares[n]['exposed all-reduce']:.0%} of a step is exposed all-reduce"
        for n in rates
    )
    return "Samples a second by number of ranks, and shares of a step. " + "; ".join(parts) + "."
