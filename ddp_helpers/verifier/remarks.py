"""What a verdict says besides: notes on a comparison, and a parting that nothing explains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ddp_helpers.verifier.records import Plan, RankRecord
from ddp_helpers.verifier.same_batches import same_samples

if TYPE_CHECKING:
    from ddp_helpers.verifier.compare import Comparison, Parting

UNEXPLAINED = (
    "look for what depends on the batch as a whole: a loss over pairs or negatives, a statistic, a "
    "normalization, a divisor; --float64 tells rounding from the rest"
)


def unexplained(one: RankRecord, parting: Parting) -> str:
    """Where it parts and by how much, in place of a cause."""
    from ddp_helpers.verifier.evidence import some

    whole = len(one.steps[parting.step].gradients)
    return (
        f"{len(parting.names)} of {whole} parameters part ({some(parting.names)}), the first "
        f"by {parting.distance:.2g} of its size, where rounding makes "
        f"{parting.tolerance:.2g}; no single factor makes them equal"
    )


def notes_of(plan: Plan, ranks: Sequence[RankRecord], found: Comparison) -> list[str]:
    """What a reader should know of this comparison, whatever it found."""
    first, notes = ranks[0], []
    if found.parting is None:
        notes.append(
            f"gradients agree to {found.largest:.1g} of their size; rounding alone made "
            f"{found.rounding:.1g} ({first.coarse})"
        )
    if first.dropout:
        more = f" and {len(first.dropout) - 1} more" if len(first.dropout) > 1 else ""
        notes.append(
            f"dropout is off from outside, as each rank draws its own: "
            f"{sorted(first.dropout)[0]}{more}"
        )
    if first.own_batches:
        notes.append("a batch sampler of your own deals the batches")
    if first.last_batch:
        notes.append(
            f"the epoch's last batch, number {first.last_batch}, is smaller or filled up and "
            "was not reached: give more --steps, or less data"
        )
    if found.steps < plan.steps:
        notes.append(f"the function made {found.steps} steps, {plan.steps} were asked for")
    if same_samples(ranks):
        notes.append(
            "every rank got the same samples: is a DistributedSampler missing? "
            "python -m ddp_helpers sanitize looks into that"
        )
    if first.eps > 1e-3:
        notes.append(
            f"{first.coarse} rounds by {first.eps:.1g}, which hides small differences: "
            "--float64 shows them"
        )
    return notes
