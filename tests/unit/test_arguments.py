"""arguments.py: what is refused, and that the error names the value and what was expected."""

import math

import pytest

from ddp_helpers.arguments import check_least, check_positive, check_ranks, check_whole


@pytest.mark.parametrize("wrong", [2, -3, 3.0, "3", True, None])
def test_a_number_that_is_not_whole_or_too_small_is_named(wrong):
    check_whole("keep", 3, least=3)
    with pytest.raises(ValueError, match=f"^keep={wrong!r}: expected a whole number, at least 3$"):
        check_whole("keep", wrong, least=3)


def test_true_is_no_one():
    for check in (check_whole, check_least):
        with pytest.raises(ValueError, match="^keep=True: expected"):
            check("keep", True, least=1)


@pytest.mark.parametrize("wrong", [0.5, -1, math.nan])
def test_a_number_below_the_least_is_named(wrong):
    check_least("parameters", 1, 1)
    check_least("parameters", 25.6e6, 1)
    with pytest.raises(ValueError, match=f"^parameters={wrong!r}: expected at least 1$"):
        check_least("parameters", wrong, 1)


@pytest.mark.parametrize("wrong", [0, -0.1, math.nan])
def test_what_is_not_above_zero_is_named_with_its_unit(wrong):
    check_positive("timeout", 1e-3, "seconds")
    with pytest.raises(ValueError, match=f"^timeout={wrong!r}: expected more than 0 seconds$"):
        check_positive("timeout", wrong, "seconds")
    with pytest.raises(ValueError, match=f"^lr={wrong!r}: expected more than 0$"):
        check_positive("lr", wrong)


@pytest.mark.parametrize("rank", [-1, 4, 1.0, True, None])
def test_a_rank_outside_its_world_is_named(rank):
    check_ranks(0, 4)
    check_ranks(3, 4)
    with pytest.raises(ValueError, match=f"^rank={rank!r} with world_size=4: expected 0 to 3$"):
        check_ranks(rank, 4)
    with pytest.raises(ValueError, match="^world_size=0: expected a whole number, at least 1$"):
        check_ranks(0, 0)
