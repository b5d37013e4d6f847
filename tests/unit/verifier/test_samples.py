"""Samples and batches of any nesting."""

from typing import NamedTuple

import torch

from ddp_helpers.verifier.samples import different_part, hashable, in_order, join, rows_of


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


def test_join_keeps_the_form():
    one, other = (Pair(torch.full((n, 2), float(n)), torch.arange(n)) for n in (2, 3))
    joined = join([one, other])
    assert type(joined) is Pair
    assert joined.x.shape == (5, 2)
    assert joined.y.tolist() == [0, 1, 0, 1, 2]
    assert join([{"a": [one.x]}, {"a": [other.x]}])["a"][0].shape == (5, 2)
    assert join(["train", "train"]) == "train"


def test_rows_and_keys():
    assert rows_of({"x": torch.zeros(7, 2)}) == 7
    assert rows_of(["no tensor"]) == 1
    assert hashable([torch.tensor(3), (1, 2)]) == (3, (1, 2))
    assert in_order([(0, 2), (0, 1)]) == ["(0, 1)", "(0, 2)"]


def test_a_label_that_is_another_one_on_another_rank():
    x = torch.randn(4)
    same, other = (x, 1), (x.clone(), 2)
    assert different_part(other, same, same) == "2 in place of 1 as its part 2"
    assert different_part(same, same, same) == ""


def test_another_shard_and_random_samples_are_no_difference():
    here, shard = (torch.ones(4), 1), (torch.zeros(4), 2)
    assert different_part(shard, here, here) == ""
    noisy = [(torch.randn(4), torch.ones(4)) for _ in range(3)]  # a clean target, drawn inputs
    assert different_part(*noisy) == ""
    assert different_part((torch.ones(4),), here, here) == ""
