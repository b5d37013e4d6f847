"""From where n ranks and one process part to the cause, as far as the evidence goes."""

from __future__ import annotations

from collections.abc import Sequence

from ddp_helpers.verifier.compare import GRADIENTS, UPDATES, WEIGHTS, Parting, distance, size_of
from ddp_helpers.verifier.evidence import SHOWN, Cause, Evidence, near, some
from ddp_helpers.verifier.factors import fixed_divisor, mean_of_means, one_factor
from ddp_helpers.verifier.records import RankRecord

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
        fixed_divisor,
        _clipped,
        mean_of_means,
        one_factor,
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
