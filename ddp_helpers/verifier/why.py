"""From where n ranks and one process part to the cause, as far as the evidence goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ddp_helpers.verifier.compare import GRADIENTS, UPDATES, WEIGHTS, Parting, distance, size_of
from ddp_helpers.verifier.evidence import SHOWN, Cause, Evidence, near, some, times
from ddp_helpers.verifier.records import Backward, RankRecord, Step

ORDER = Cause(
    "order in a batch",
    "what one process computes depends on the order of the samples in a batch, and several ranks "
    "put them together in another order",
    "look for what is done to the first or last sample of a batch, or to neighbours (mixup, "
    "negatives of the same batch)",
    compared=False,
)


def explain(ranks: Sequence[RankRecord], one: RankRecord, parting: Parting) -> Cause | None:
    """The cause that the evidence names, or None."""
    here = Evidence(ranks, one, parting)
    for look in (
        _other_samples,
        _other_frozen,
        _weights_moved,
        _changed_late,
        _not_reduced,
        _other_parameters,
        _options,
        _fixed_divisor,
        _clipped,
        _mean_of_means,
        _factor,
        _cut,
        _drawn,
        _hooked,
    ):
        if (found := look(here)) is not None:
            return found
    return None


# ---- causes, the surest first


def _other_samples(here: Evidence) -> Cause | None:
    at = here.one.other_samples_at
    if not at or here.parting.step + 1 < at:
        return None
    return Cause(
        "samples",
        "the ranks do not hold the same data: " + "; ".join(here.one.other_samples),
        "prepare the data the same way on every rank: shuffle and split with a generator of its "
        "own and a fixed seed (torch.Generator().manual_seed(0))",
    )


def _other_frozen(here: Evidence) -> Cause | None:
    first = here.ranks[0].frozen
    names = [
        name
        for name, norm in first.items()
        if any(not near(r.frozen.get(name, norm), norm, 1e-5) for r in here.ranks[1:])
    ]
    if not names:
        return None
    return Cause(
        "other frozen weights",
        f"the ranks use different weights in {some(names)}, which nobody trains: DDP copies only "
        "what is inside the model that it wraps",
        "load or initialize them the same way on every rank, or dist.broadcast() them from rank 0",
    )


def _other_parameters(here: Evidence) -> Cause | None:
    if here.parting.stage != GRADIENTS or here.parting.ranks_differ:
        return None
    theirs, ours = here.theirs[0].gradients, here.ours.gradients
    names = [name for name in here.parting.names if (name in theirs) != (name in ours)]
    if not names:
        return None
    who = f"{here.n} ranks" if names[0] in theirs else "one process"
    return Cause(
        "other parameters used",
        f"{some(names)} get a gradient on {who} only: the rank, or the number of ranks, decides "
        "what is computed",
        "choose layers, tasks and losses by the step or by the data, not by the rank",
        compared=False,
    )


def _hooked(here: Evidence) -> Cause | None:
    hooks = here.ranks[0].hooks
    if not hooks:
        return None
    return Cause(
        "comm hook",
        f"the comm hook {hooks[0]} changes what is sent: the gradients are not the plain mean",
        "a compressing hook does so on purpose; compare without it to see everything else",
    )


def _weights_moved(here: Evidence) -> Cause | None:
    if here.parting.stage != WEIGHTS:
        return None
    names, first = here.parting.names, here.parting.step == 0
    if not here.parting.ranks_differ:
        return Cause(
            "changed between steps",
            f"after optimizer step {here.parting.step} and before the next one, {some(names)} "
            f"change by something else, and not alike on {here.n} ranks and in one process",
            "look for code that writes to weights by rank or world_size: an average of weights, a "
            "clamp, a checkpoint that is loaded",
        )
    outside = [name for name in names if name in here.ranks[0].outside]
    if first and not outside:
        return Cause(
            "changed after the wrap",
            f"before the first step the ranks have different weights in {some(names)}: DDP copies "
            "rank 0's weights only once, when it wraps the model, and they were changed after that",
            "load, initialize or convert the weights before DistributedDataParallel(model)",
        )
    where = "of no DDP model" if outside else "although DDP averages the gradients"
    return Cause(
        "weights drift",
        f"before step {here.parting.step + 1} the ranks have different weights in {some(names)}, "
        f"{where}",
        "wrap every trained module in DDP, and change weights the same way on every rank",
    )


def _changed_late(here: Evidence) -> Cause | None:
    """The gradients were alike after backward(), and each rank did something to its own."""
    if not here.parting.ranks_differ or here.parting.stage != GRADIENTS:
        return None
    names = here.parting.names
    after = [step.after_backward for step in here.theirs]
    if any(name not in each for name in names for each in after):
        return None
    if any(
        distance(each[name], after[0][name]) > 1e-6 * size_of(after[0][name])
        for name in names
        for each in after[1:]
    ):
        return None
    return Cause(
        "changed after the average",
        f"after backward() the ranks' gradients of {some(names)} are alike, and each rank changes "
        "its own before optimizer.step()",
        "change averaged gradients by numbers that all ranks share: clip by the norm of all "
        "gradients, and all_reduce whatever else decides",
    )


def _not_reduced(here: Evidence) -> Cause | None:
    if not here.parting.ranks_differ or here.parting.stage != GRADIENTS:
        return None
    names = here.parting.names
    every = len(names) == len(here.theirs[0].gradients)
    way_out = "call the wrapped model, ddp(x), not ddp.module(x)"
    if not any(r.wrapped for r in here.ranks):
        why = "no model is wrapped in DistributedDataParallel, so no gradient is averaged"
        way_out = "ddp = DistributedDataParallel(model), and train ddp"
    elif every and here.ranks[0].hooks:
        why = f"no gradient is averaged, and the comm hook {here.ranks[0].hooks[0]} decides that"
        way_out = "a hook may average later on purpose (local SGD); compare without it"
    elif every:
        why = "no gradient is averaged: each rank steps with its own"
        way_out += "; and the last backward before optimizer.step() must not be in no_sync()"
    else:
        why = f"the ranks' gradients of {some(names)} are not averaged, the others are"
        outside = [name for name in names if name in here.ranks[0].outside]
        if outside:
            why += ": they belong to a module that is not inside the DDP model"
            way_out = "make it a part of the module that DDP wraps, and call it in its forward()"
        else:
            way_out = (
                "DDP averages what its own forward() used: call these layers in there, and do not "
                "replace layers after the wrap"
            )
    return Cause("not averaged", why, way_out)


def _options(here: Evidence) -> Cause | None:
    """Only where the gradients agree and the updates do not."""
    if here.parting.stage != UPDATES:
        return None
    pairs = zip(here.theirs[0].options, here.ours.options, strict=False)
    told = [
        f"{name} is {theirs[name]:g} on {here.n} ranks and {ours[name]:g} on one process"
        for theirs, ours in pairs
        for name in theirs
        if name in ours and not near(theirs[name], ours[name], 1e-9)
    ]
    if not told:
        return Cause(
            "changed in the step",
            "the gradients agree and so do the optimizer's settings, yet the weights move "
            "otherwise: something else changes them, or the optimizer keeps another state",
            "look for code that writes to weights or to optimizer.state by rank or world_size",
        )
    name = told[0].split()[0]
    way_out = "give it the same value for the same global batch, whatever the number of ranks"
    if name == "lr":
        way_out = (
            "a rate may grow with the global batch, not with the number of ranks as such: the same "
            "batch needs the same lr. A schedule should count len(loader) or optimizer steps; one "
            "that counts samples by a batch size wants the global one on one rank: alone={...}, or "
            '--alone "--batch-size ..."'
        )
    kind = "learning rate" if name == "lr" else "optimizer's settings"
    return Cause(kind, f"the gradients agree, the step does not: {told[0]}", way_out)


def _fixed_divisor(here: Evidence) -> Cause | None:
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


def _clipped(here: Evidence) -> Cause | None:
    lists = [step.clipped for step in here.theirs]
    if not lists[0] or len({len(norms) for norms in lists}) > 1:
        return None
    for norms in zip(*lists, strict=True):
        if max(norms) - min(norms) > 1e-3 * max(norms):
            told = ", ".join(f"{norm:.3g}" for norm in norms[:SHOWN])
            return Cause(
                "clipped too early",
                "gradients are clipped before they are averaged: at that moment their length is "
                f"{told} on the ranks, each rank's own",
                "clip once, after the backward that averages and before optimizer.step()",
            )
    return None


def _factor(here: Evidence) -> Cause | None:
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


def _mean_of_means(here: Evidence) -> Cause | None:
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


def _cut(here: Evidence) -> Cause | None:
    names = here.ranks[0].cut
    if not names:
        return None
    return Cause(
        "no gradient through a collective",
        f"dist.{names[0]}() got a tensor that a gradient should flow through: it carries values "
        "only, so what the loss says about the other ranks' part is lost",
        f"torch.distributed.nn.functional.{names[0]} carries the gradient; where only its value "
        "is wanted, detach() it",
    )


def _drawn(here: Evidence) -> Cause | None:
    where = here.ranks[0].draws or here.one.draws
    if not where:
        return None
    return Cause(
        "random draws",
        f"random numbers are drawn between a batch and optimizer.step() ({', '.join(where)}): "
        "n ranks and one process can't draw the same ones for each sample",
        "switch that off for this comparison (noise, mixup, drop path), or draw it in the dataset, "
        "where a sample keeps what it got",
        compared=False,
    )


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
