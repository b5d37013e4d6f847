"""Where n ranks and one process part by more than rounding.

How much rounding makes is measured, not assumed: one process trains once more with its weights
moved by a rounding and its batches turned round. What lies within a few times of what that changes
is equal.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ddp_helpers.verifier.records import RankRecord, Sampled, Step

TIMES = 8.0  # of what rounding was seen to change
ROUNDINGS = 8.0  # and some of the arithmetic's own: the second run may hit the same rounding
FAINT = 0.1  # of the mean size of a gradient; one below it can be all rounding
ALIKE = 1e-2  # of factors that count as one

SAMPLES, WEIGHTS, GRADIENTS, UPDATES = "samples", "weights", "gradients", "updates"


@dataclass
class Parting:
    """The first step and stage that part."""

    step: int
    """From 0."""
    stage: str
    names: list[str]
    """Parameters that part, in the model's order."""
    ranks_differ: bool = False
    """The ranks themselves do not agree."""
    factors: dict[str, float] = field(default_factory=dict)
    """Of the parameters for which one number makes both equal."""
    distance: float = 0.0
    """Of the first parameter, in parts of its size."""
    tolerance: float = 0.0

    @property
    def factor(self) -> float | None:
        """The one factor of all that part, if there is one."""
        if len(self.factors) < len(self.names) or not self.names:
            return None
        middle = statistics.median(self.factors.values())
        alike = all(abs(f - middle) <= ALIKE * abs(middle) for f in self.factors.values())
        return middle if alike else None


@dataclass
class Comparison:
    """What was compared, and where it parts."""

    steps: int
    parting: Parting | None
    largest: float = 0.0
    """Distance of gradients that count as equal, in parts of their size."""
    rounding: float = 0.0
    """The largest that rounding alone made there."""


def compare(ranks: Sequence[RankRecord], one: RankRecord, perturbed: RankRecord) -> Comparison:
    """Step by step: do the ranks agree; then their gradients, then their updates, with one process.

    Args:
        ranks: the records of the n ranks, in order.
        one, perturbed: of one process, and of the same with everything moved by a rounding.
    """
    steps = min(len(r.steps) for r in (*ranks, one, perturbed))
    done = Comparison(steps, None)
    sure: dict[str, Tensor] = {}
    left: dict[str, list[Sampled]] = {}
    eps = max(r.eps for r in (*ranks, one))
    for number in range(steps):
        theirs = [r.steps[number] for r in ranks]
        ours, moved = one.steps[number], perturbed.steps[number]
        if not (_finite(theirs[0]) or _finite(ours)):
            done.steps = number  # nothing can be said of what follows
            return done
        done.parting = (
            _ranks_part(number, theirs, eps, WEIGHTS)
            or _between(number, [theirs[0], ours, moved], left)
            or _ranks_part(number, theirs, eps, GRADIENTS)
            or _gradients(number, theirs[0], ours, moved, eps, done)
            or _updates(number, theirs[0], ours, moved, eps, sure)
        )
        if done.parting is not None:
            return done
        for name in ours.updated:
            runs = [s.updated.get(name) for s in (theirs[0], ours, moved)]
            left[name] = [each for each in runs if each is not None]
    return done


def _finite(step: Step) -> bool:
    return all(math.isfinite(g.norm) for g in step.gradients.values())


def turning_matters(one: RankRecord, perturbed: RankRecord) -> bool:
    """True if the first step shows far more than rounding: the order within a batch counts."""
    ours, moved = one.steps[0].gradients, perturbed.steps[0].gradients
    total = math.sqrt(sum(g.norm**2 for g in ours.values()))
    far = math.sqrt(sum(distance(g, moved[n]) ** 2 for n, g in ours.items() if n in moved))
    return far > max(1e-3, 32 * max(one.eps, perturbed.eps)) * total


def _ranks_part(number: int, steps: Sequence[Step], eps: float, stage: str) -> Parting | None:
    """DDP gives all ranks the same numbers, to the bit or nearly."""
    first = _of(steps[0], stage)
    for other in steps[1:]:
        theirs = _of(other, stage)
        names = [
            name
            for name, value in first.items()
            if name in theirs and _far(value, theirs[name], max(1e-5, 16 * eps))
        ]
        names += [name for name in first if name not in theirs]
        if names:
            return Parting(number, stage, names, ranks_differ=True)
    return None


def _between(number: int, runs: list[Step], left: dict[str, list[Sampled]]) -> Parting | None:
    """Weights that somebody changes between two optimizer steps, otherwise than in one process."""
    found = Parting(number, WEIGHTS, [])
    for name, before in left.items():
        after = [step.weights[name] for step in runs if name in step.weights]
        if len(before) < len(runs) or len(after) < len(runs):
            continue
        theirs, ours, moved = (
            a.values.double() - b.values.double() for a, b in zip(after, before, strict=True)
        )
        size = max(float(theirs.norm()), float(ours.norm()))
        far = float((theirs - ours).norm())
        if far > TIMES * float((ours - moved).norm()) + 1e-3 * size:
            found.names.append(name)
    return found if found.names else None


def _of(step: Step, stage: str) -> dict[str, Sampled]:
    return step.weights if stage == WEIGHTS else step.gradients


def _far(one: Sampled, other: Sampled, share: float) -> bool:
    size = float(one.values.double().norm())
    return distance(one, other) > share * size or not math.isfinite(size)


def distance(one: Sampled, other: Sampled) -> float:
    """Length of the difference, of the elements that were noted."""
    return float((one.values.double() - other.values.double()).norm())


def size_of(one: Sampled) -> float:
    """Length of the elements that were noted."""
    return float(one.values.double().norm())


def _gradients(
    number: int, theirs: Step, ours: Step, moved: Step, eps: float, done: Comparison
) -> Parting | None:
    total = math.sqrt(sum(g.norm**2 for g in ours.gradients.values()))
    count = sum(g.numel for g in ours.gradients.values()) or 1
    found = Parting(number, GRADIENTS, [])
    for name in _all_names(theirs.gradients, ours.gradients):
        g, h, m = (s.gradients.get(name) for s in (theirs, ours, moved))
        if g is None or h is None or m is None:
            if (g is None) != (h is None):
                found.names.append(name)
            continue
        usual = total * math.sqrt(h.values.numel() / count)
        noise, far = distance(h, m), distance(g, h)
        limit = TIMES * noise + ROUNDINGS * eps * max(size_of(h), usual)
        if far > limit or not math.isfinite(far):
            if not found.names:
                found.distance = far / (size_of(h) or 1.0)
                found.tolerance = limit / (size_of(h) or 1.0)
            found.names.append(name)
            _keep_factor(found, name, g.values, h.values, limit)
        elif size_of(h) > FAINT * usual:
            done.largest = max(done.largest, far / size_of(h))
            done.rounding = max(done.rounding, noise / size_of(h))
    return found if found.names else None


def _all_names(one: dict, other: dict) -> list[str]:
    return [*one, *(name for name in other if name not in one)]


def _keep_factor(found: Parting, name: str, theirs: Tensor, ours: Tensor, limit: float) -> None:
    g, h = theirs.double(), ours.double()
    square = float(h @ h)
    if not square:
        return
    factor = float(g @ h) / square
    rest = float((g - factor * h).norm())
    if rest <= max(limit * max(1.0, abs(factor)), 1e-3 * float(g.norm())):
        found.factors[name] = factor


def _updates(
    number: int, theirs: Step, ours: Step, moved: Step, eps: float, sure: dict[str, Tensor]
) -> Parting | None:
    """What the optimizer did to the weights, where rounding does not decide it.

    Adam makes a step of full length from a gradient that is all rounding; such elements are left
    out, of all later steps as well.
    """
    certain = max(1e-3, 8 * eps)
    found = Parting(number, UPDATES, [])
    for name, before in ours.weights.items():
        if name not in theirs.updated or name not in moved.updated:
            continue
        found_gradients = [step.gradients.get(name) for step in (theirs, ours, moved)]
        values = [g.values.double() for g in found_gradients if g is not None]
        if len(values) == 3:
            g, a, b = values
            agree = torch.maximum((a - b).abs(), (a - g).abs()) <= certain * a.abs()
            sure[name] = agree & sure.get(name, torch.ones_like(agree))
        kept = sure.get(name, torch.ones(before.values.numel(), dtype=torch.bool))
        if not kept.any():
            continue
        mine, h2, m2 = (_update(step, name)[kept] for step in (theirs, ours, moved))
        own = torch.finfo(before.values.dtype).eps * float(before.values[kept].double().norm())
        limit = TIMES * float((h2 - m2).norm()) + 4 * certain * float(h2.norm()) + 4 * own
        far = float((mine - h2).norm())
        if far > limit or not math.isfinite(far):
            found.distance = found.distance or far / (float(h2.norm()) or 1.0)
            found.tolerance = found.tolerance or limit / (float(h2.norm()) or 1.0)
            found.names.append(name)
            _keep_factor(found, name, mine, h2, limit)
    return found if found.names else None


def _update(step: Step, name: str) -> Tensor:
    return step.updated[name].values.double() - step.weights[name].values.double()
