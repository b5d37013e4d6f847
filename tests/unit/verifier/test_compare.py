"""What counts as equal, from records made by hand."""

import pytest
import torch

from ddp_helpers.verifier.compare import GRADIENTS, UPDATES, WEIGHTS, compare, turning_matters
from ddp_helpers.verifier.records import RankRecord, Sampled, Step

EPS = torch.finfo(torch.float32).eps


def noted(values):
    values = torch.as_tensor(values, dtype=torch.float32)
    return Sampled(values, float(values.norm()), values.numel())


def step(gradients, lr=0.1, weights=None):
    weights = weights or {name: torch.ones(len(g)) for name, g in gradients.items()}
    return Step(
        optimizer=0,
        backwards=[],
        weights={name: noted(w) for name, w in weights.items()},
        after_backward={},
        gradients={name: noted(g) for name, g in gradients.items()},
        options=[{"lr": lr}],
        clipped=[],
        updated={n: noted(weights[n] - lr * torch.as_tensor(g)) for n, g in gradients.items()},
    )


def record(*steps, rank=0):
    return RankRecord(rank, steps=list(steps), eps=EPS, coarse="float32")


def drawn(seed=0):
    draws = torch.Generator().manual_seed(seed)
    return {name: torch.randn(50, generator=draws) for name in ("a", "b")}


def moved(gradients, by):
    return {name: g * (1 + by * (-1) ** torch.arange(len(g))) for name, g in gradients.items()}


def compared(theirs, ours=None, rounding=1e-6, **options):
    ours = ours or drawn()
    one, perturbed = record(step(ours)), record(step(moved(ours, rounding)))
    ranks = [record(step(theirs, **options), rank=rank) for rank in range(2)]
    return compare(ranks, one, perturbed)


def test_what_rounding_does_is_equal_and_more_is_not():
    assert compared(moved(drawn(), 4e-6)).parting is None
    parting = compared(moved(drawn(), 1e-4)).parting
    assert (parting.step, parting.stage, parting.names) == (0, GRADIENTS, ["a", "b"])
    assert parting.factor is None or parting.factor == pytest.approx(1, abs=1e-3)
    assert compared(moved(drawn(), 1e-4), rounding=1e-4).parting is None  # as much as was seen


@pytest.mark.parametrize("factor", [0.5, 2.0, 1.001])
def test_one_factor(factor):
    parting = compared({name: factor * g for name, g in drawn().items()}).parting
    assert parting.factor == pytest.approx(factor, rel=1e-5)


def test_a_factor_of_one_parameter_only_and_two_factors():
    one = drawn()
    parting = compared(one | {"b": 3 * one["b"]}).parting
    assert (parting.names, parting.factor) == (["b"], pytest.approx(3, rel=1e-5))
    parting = compared({"a": 2 * one["a"], "b": 3 * one["b"]}).parting
    assert parting.factor is None


def test_a_gradient_that_is_all_rounding_is_no_parting():
    ours = drawn() | {"bias": torch.tensor([1e-9, -2e-9])}
    theirs = ours | {"bias": torch.tensor([-3e-9, 5e-9])}
    # and an optimizer that makes a full step of it
    assert compared(theirs, ours).parting is None


def test_a_missing_gradient_parts():
    theirs = drawn()
    del theirs["b"]
    parting = compared(theirs).parting
    assert (parting.stage, parting.names) == (GRADIENTS, ["b"])


def test_updates_part_where_gradients_agree():
    parting = compared(drawn(), lr=0.2).parting
    assert (parting.stage, parting.names) == (UPDATES, ["a", "b"])
    assert parting.factor == pytest.approx(2, rel=1e-3)


def test_ranks_that_do_not_agree():
    ours = drawn()
    one, perturbed = record(step(ours)), record(step(moved(ours, 1e-6)))
    other = record(step(ours | {"b": -ours["b"]}), rank=1)
    parting = compare([record(step(ours)), other], one, perturbed).parting
    assert (parting.stage, parting.ranks_differ, parting.names) == (GRADIENTS, True, ["b"])

    weights = {name: torch.ones(50) for name in ours}
    far = record(step(ours, weights=weights | {"a": torch.full((50,), 1.1)}), rank=1)
    parting = compare([record(step(ours)), far], one, perturbed).parting
    assert (parting.stage, parting.names) == (WEIGHTS, ["a"])


def test_the_first_step_that_parts_is_named():
    ours = [drawn(seed) for seed in range(3)]
    one = record(*map(step, ours))
    perturbed = record(*(step(moved(g, 1e-6)) for g in ours))
    theirs = [*ours[:2], {name: 2 * g for name, g in ours[2].items()}]
    found = compare([record(*map(step, theirs))] * 2, one, perturbed)
    assert (found.steps, found.parting.step) == (3, 2)


def test_nothing_is_said_after_what_is_not_finite():
    ours = [drawn(), {name: g * float("nan") for name, g in drawn().items()}]
    runs = [record(*map(step, ours)) for _ in range(4)]
    found = compare(runs[:2], *runs[2:])
    assert (found.steps, found.parting) == (1, None)
    finite = record(step(drawn()), step(drawn()))
    assert compare(runs[:2], finite, finite).parting.step == 1


def test_an_order_that_matters_is_no_rounding():
    one = record(step(drawn()))
    assert not turning_matters(one, record(step(moved(drawn(), 1e-5))))
    assert turning_matters(one, record(step(moved(drawn(), 0.1))))
