"""Causes that show in how much too long or too short gradients are: a divisor that is wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ddp_helpers.verifier.compare import GRADIENTS, distance, size_of
from ddp_helpers.verifier.evidence import SHOWN, Cause, Evidence, near, some, times
from ddp_helpers.verifier.records import Backward, RankRecord, Step


def fixed_divisor(here: Evidence) -> Cause | None:
    """A sum divided by what the script takes for the rank's batch size; one process has another."""
    theirs, ours = here.theirs[0], here.ours
    scales = [*here.scales(theirs), *here.scales(ours)]
    if not here.sums or not scales or not near(min(scales), max(scales)):
        return None
    own_targets, all_targets = (
        sum(c.count for b in step.backwards for c in b.losses) for step in (theirs, ours)
    )
    for what, own, whole in (
        ("samples", float(theirs.rows), float(ours.rows)),
        ("targets", own_targets, all_targets),
    ):
        if own and own != whole and near(scales[0], 1 / own):
            return Cause(
                "fixed divisor",
                f"the sum of the losses is divided by {own:g}, the {what} of one rank's step, on "
                f"one process too, whose step has {whole:g}",
                "give the run on one rank its own batch size: alone={...}, or on the command line "
                f'--alone "--batch-size {ours.rows}"; or divide by the size of the batch itself',
                compared=False,
            )
    return None


def one_factor(here: Evidence) -> Cause | None:
    factor = here.parting.factor
    if factor is None or here.parting.stage != GRADIENTS or near(factor, 1.0, 0.01):
        return None
    names = here.parting.names
    who = "all gradients are" if here.all_part else f"only {some(names)} have gradients"
    told = f"{who} {times(factor)}"
    loss, raw, n = here.loss_factor(), here.raw_factor(), here.n
    few, many = near(factor, 1 / n, 0.01), near(factor, n, 0.01)
    if not here.all_part:
        return Cause(
            "some gradients scaled",
            f"{told}; the others agree",
            "look for what treats these parameters apart: a hook, a comm hook, an all_reduce of "
            "your own, or DDP told to ignore them",
        )
    if near(raw, 1.0, 0.01):
        way_out = "DDP averages already: after backward() the gradients are the mean over the ranks"
        what = "divided by world_size once more" if few else "scaled"
        what = "added up over the ranks once more, without a division" if many else what
        return Cause(
            "averaged twice" if few or many else "gradients scaled",
            f"{told}: they agree after backward(), and are {what} before optimizer.step()",
            way_out,
        )
    if few and near(loss, 1 / n, 0.01) and not here.sums and _scaled_by(here, 1 / n):
        return Cause(
            "averaged twice",
            f"{told}, and so is the loss: it is divided by world_size before backward(), and DDP "
            "divides by it again",
            "leave that division out: DDP takes the mean over the ranks",
        )
    if few and near(loss, 1 / n, 0.01):
        return Cause(
            "sum, not mean",
            f"{told}: the loss is a sum over the batch, and DDP takes the mean over the ranks, so "
            f"the step is the sum over one of {n} ranks",
            'use the mean (reduction="mean"), or divide the sum by the global count and multiply '
            "it by world_size",
        )
    if many and near(loss, n, 0.01):
        return Cause(
            "multiplied by world_size",
            f"{told}, and so is the loss: it is multiplied by world_size, which only a sum divided "
            "by the global count needs",
            "leave the factor out where the loss is a mean over the rank's own batch",
        )
    if few and near(loss, 1.0, 0.01):
        return Cause(
            "averaged twice",
            f"{told}, and the loss has the right size: it, or the gradient on its way, is averaged "
            "over the ranks by hand, and DDP averages again",
            "give backward() this rank's own mean loss; all_reduce a detached copy to print it",
        )
    if many and near(loss, 1.0, 0.01):
        return Cause(
            "added up, not averaged",
            f"{told}, and the loss has the right size: the gradients are added up over the ranks "
            "and not divided by world_size",
            "divide by world_size after an all_reduce or in a comm hook of your own, or leave the "
            "average to DDP",
        )
    said = "" if loss is None else f"; the loss is {loss:.3g} times one process's"
    return Cause(
        "gradients scaled",
        f"{told}{said}",
        "look for a factor of world_size, of the rank or of the batch size in the loss, in hooks "
        "and in comm hooks",
    )


def _scaled_by(here: Evidence, factor: float) -> bool:
    theirs, ours = here.scales(here.theirs[0]), here.scales(here.ours)
    return bool(theirs and ours) and near(theirs[0] / ours[0], factor, 0.01)


def mean_of_means(here: Evidence) -> Cause | None:
    """Each rank's mean counts alike, though the ranks have unequal counts."""
    for theirs, ours in here.pairs():
        losses = [b.loss for b in theirs if b.loss is not None]
        if len(losses) < here.n or ours.loss is None:
            continue
        for what, counts in _counts(theirs):
            if min(counts) == max(counts) or not sum(counts):
                continue
            whole = sum(c * v for c, v in zip(counts, losses, strict=True)) / sum(counts)
            plain = sum(losses) / here.n
            closer = abs(whole - ours.loss) <= 0.05 * abs(plain - ours.loss)
            if closer and near(whole, ours.loss):
                told = ", ".join(f"{count:g}" for count in counts[:SHOWN])
                return Cause(
                    "mean of means",
                    f"each rank takes the mean over its own {told} {what}, and DDP gives each "
                    f"mean the same weight: one process weighs all {sum(counts):g} alike (loss "
                    f"{ours.loss:.4g}, the ranks' mean is {plain:.4g})",
                    "sum the loss, divide by the count of all ranks (all_reduce it), and multiply "
                    "by world_size, which DDP divides by",
                )
    return None


def _counts(theirs: Sequence[Backward]) -> Iterator[tuple[str, list[float]]]:
    yield "targets", [sum(c.count for c in b.losses) for b in theirs]
    yield "samples", [float(b.rows) for b in theirs]


def undivided(record: RankRecord) -> tuple[int, int] | None:
    """A step, from 0, whose k batches' mean losses are added up; and k. None if there is none."""
    for number, step in enumerate(record.steps):
        pieces = step.backwards
        if len(pieces) < 2 or len({b.batch for b in pieces}) < len(pieces):
            continue
        means = [c for b in pieces for c in b.losses]
        plain = len(means) == len(pieces) and all(c.reduction == "mean" for c in means)
        if not plain or not all(c.value for c in means):
            continue
        scales = [
            b.loss / c.value for b, c in zip(pieces, means, strict=True) if b.loss and c.value
        ]
        if len(scales) == len(pieces) and all(near(s, 1.0) for s in scales) and _as_left(step):
            return number, len(pieces)
    return None


def _as_left(step: Step) -> bool:
    """Nothing was done to the gradients after backward()."""
    return all(
        distance(g, step.after_backward[name]) <= 1e-6 * size_of(g)
        for name, g in step.gradients.items()
        if name in step.after_backward
    )
