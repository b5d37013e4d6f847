"""Causes, from records made by hand."""

import pytest
import torch

from ddp_helpers.verifier.compare import GRADIENTS, Parting
from ddp_helpers.verifier.factors import undivided
from ddp_helpers.verifier.records import Backward, LossCall, RankRecord, Sampled, Step
from ddp_helpers.verifier.why import explain


def noted(*values):
    values = torch.tensor(values)
    return Sampled(values, float(values.norm()), values.numel())


def backward(loss, rows=4, count=4.0, reduction="mean", value=None, batch=1):
    call = LossCall(reduction, count, loss if value is None else value)
    return Backward(loss, rows, [call], batch)


def step(*backwards, gradient=1.0, raw=None, lr=0.1, clipped=()):
    gradients = {"w": noted(gradient, 2 * gradient)}
    raw = gradient if raw is None else raw
    return Step(
        optimizer=0,
        backwards=list(backwards),
        weights={},
        after_backward={"w": noted(raw, 2 * raw)},
        gradients=gradients,
        options=[{"lr": lr}],
        clipped=list(clipped),
        rows=sum(b.rows for b in backwards),
    )


def cause(theirs, ours, factor=None, stage=GRADIENTS, **evidence):
    ranks = [RankRecord(rank, steps=[each], **evidence) for rank, each in enumerate(theirs)]
    parting = Parting(0, stage, ["w"], factors={} if factor is None else {"w": factor})
    found = explain(ranks, RankRecord(0, steps=[ours]), parting)
    return found.name if found else None


def test_a_factor_is_explained_by_the_loss():
    ours = step(backward(2.0, rows=8))
    half = [step(backward(1.0, reduction="sum"), gradient=0.5)] * 2
    assert cause(half, ours, 0.5) == "sum, not mean"
    divided = [step(backward(1.0, value=2.0), gradient=0.5)] * 2
    assert cause(divided, ours, 0.5) == "averaged twice"
    double = [step(backward(4.0, value=2.0), gradient=2.0)] * 2
    assert cause(double, ours, 2.0) == "multiplied by world_size"
    assert cause([step(backward(2.0), gradient=0.7)] * 2, ours, 0.7) == "gradients scaled"


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_a_factor_between_backward_and_step(factor):
    theirs = [step(backward(2.0), gradient=factor, raw=1.0)] * 2
    assert cause(theirs, step(backward(2.0, rows=8)), factor) == "averaged twice"


def test_counts_that_are_unequal_explain_only_what_they_fit():
    theirs = [step(backward(1.0, count=2.0)), step(backward(3.0, count=6.0))]
    assert cause(theirs, step(backward(2.5, rows=8, count=8.0))) == "mean of means"
    assert cause(theirs, step(backward(2.2, rows=8, count=8.0))) is None
    even = [step(backward(1.0)), step(backward(3.0))]
    assert cause(even, step(backward(2.5, rows=8, count=8.0))) is None


def test_a_sum_divided_by_what_was_given():
    theirs = [step(backward(1.0, reduction="sum", value=4.0))] * 2
    ours = step(backward(2.0, reduction="sum", value=8.0, rows=8, count=8.0))
    assert cause(theirs, ours, 0.5) == "fixed divisor"


def test_clipping_is_early_only_where_lengths_differ():
    ours = step(backward(2.0, rows=8), clipped=[3.0])
    assert (
        cause([step(backward(2.0), clipped=[c]) for c in (3.0, 4.0)], ours) == "clipped too early"
    )
    assert cause([step(backward(2.0), clipped=[3.0])] * 2, ours) is None


def test_weak_evidence_comes_last():
    ours, theirs = step(backward(2.0, rows=8)), [step(backward(2.0))] * 2
    assert cause(theirs, ours, draws=["in Noise"]) == "random draws"
    assert cause(theirs, ours, hooks=["powerSGD_hook"]) == "comm hook"
    half = [step(backward(1.0, reduction="sum"), gradient=0.5)] * 2
    assert cause(half, ours, 0.5, draws=["in Noise"]) == "sum, not mean"


def accumulated(*scales, batches=(1, 2), after=1.0):
    pieces = [backward(s, value=1.0, batch=b) for s, b in zip(scales, batches, strict=True)]
    return RankRecord(0, steps=[step(*pieces, gradient=after, raw=1.0)])


def test_mean_losses_that_are_added_up():
    assert undivided(accumulated(1.0, 1.0)) == (0, 2)
    assert undivided(accumulated(0.5, 0.5)) is None
    assert undivided(accumulated(1.0, 1.0, batches=(1, 1))) is None  # two losses of one batch
    assert undivided(accumulated(1.0, 1.0, after=0.5)) is None  # divided later
