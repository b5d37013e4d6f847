"""Judgements on numbers, shares and leaks that need no ranks."""

import math
from array import array

import pytest
import torch
from torch import nn

from ddp_helpers.sanitizer.checks.leaks import LeakRecord, Part, RootRecord, leaks
from ddp_helpers.sanitizer.checks.numbers import far_rank, is_finite
from ddp_helpers.sanitizer.checks.unchanged import _why
from ddp_helpers.sanitizer.compare.samples import encode_indices
from ddp_helpers.sanitizer.talk.codec import decode, encode

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("norms", "expected"),
    [
        ({0: (1.0, 1.0), 1: (200.0, 1.0)}, 1),
        ({0: (1.0, 1.0), 1: (90.0, 1.0)}, None),
        ({0: (300.0,), 1: (2.0,), 2: (1.0,)}, 0),
        ({0: (300.0,), 1: (200.0,), 2: (1.0,)}, None),  # two of three
        ({0: (5.0,), 1: (0.0,)}, None),  # nothing to learn on rank 1
        ({0: (500.0,), 1: (0.0,), 2: (1.0,)}, 0),
        ({0: (INF,), 1: (1.0,)}, None),
        ({0: (-1.0, 500.0), 1: (-1.0, 1.0)}, 0),  # one was not seen
    ],
)
def test_a_rank_that_is_far_from_the_others(norms, expected):
    assert far_rank(norms) == expected


def test_losses_that_are_finite():
    assert is_finite([torch.tensor(1.0), torch.tensor([2.0])])
    assert is_finite([torch.tensor([1.0, NAN])])  # no loss: a gradient is given for each element
    assert not is_finite([torch.tensor(1.0), torch.tensor(NAN)])
    assert not is_finite([torch.tensor([-INF])])


@pytest.mark.parametrize(
    ("rate", "grad", "words"),
    [
        (0.0, torch.ones(2), "the learning rate is 0"),
        (0.1, None, "none of its parameters had a gradient, though backward passes came"),
        (0.1, torch.zeros(2), "all gradients were 0"),
        (1e-9, torch.ones(2), "a learning rate of 1e-09, the steps are lost in the rounding"),
    ],
)
def test_why_a_step_changes_nothing(rate, grad, words):
    parameter = nn.Parameter(torch.ones(2))
    parameter.grad = grad
    assert words in _why(torch.optim.SGD([parameter], lr=rate), [parameter])[1]


def test_an_optimizer_without_a_rate():
    parameter = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    parameter.grad = torch.ones(2, dtype=torch.bfloat16)
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    del optimizer.param_groups[0]["lr"]
    words = "with a learning rate of unknown, the steps are lost in the rounding of bfloat16"
    assert _why(optimizer, [parameter])[1] == words


# ---- leaks

PLACE = ("train.py", 7, "main")


def part(indices, passes=1, place=None):
    return Part(passes, encode_indices(array("q", indices), 100), place)


def record(trained, evaluated, root="data/100"):
    return LeakRecord((RootRecord(root, tuple(trained), tuple(evaluated)),))


def test_samples_that_another_rank_has_trained_on():
    records = {
        0: record([part(range(60))], [part(range(60, 80), 1, PLACE)]),
        1: record([part(range(70, 90))], [part(range(10, 20), 1)]),
    }
    # 20 of rank 0's and 10 of rank 1's; of these, 10 and 10 were trained on elsewhere
    assert leaks(records) == [(30, 20, [0, 1], PLACE)]
    travelled = {rank: decode(encode(each), LeakRecord) for rank, each in records.items()}
    assert leaks(travelled) == leaks(records)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (record([part(range(20, 30))], []), "other samples"),
        (record([part(range(20))], [], root="other/100"), "another dataset"),
        (record([part(range(20), passes=3)], []), "trained on only later"),
        (LeakRecord(), "nothing known"),
    ],
)
def test_no_leak(other, why):
    mine = record([part(range(50, 60))], [part(range(20), passes=2)])
    assert leaks({0: mine, 1: other}) == [], why
    assert leaks({0: mine}) == []
