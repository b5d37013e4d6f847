"""A verdict needs three quarters of the rounds; else the line says that it can't tell."""

import pytest

from ddp_helpers.evidence.claims import compare, middle, says


@pytest.mark.parametrize(
    ("held", "verdict"),
    [(16, "yes"), (12, "yes"), (11, "can't tell"), (5, "can't tell"), (4, "no"), (0, "no")],
)
def test_a_verdict_needs_12_of_16_rounds(held, verdict, capsys):
    assert says("it helps", [True] * held + [False] * (16 - held), "3 ms") == verdict
    line, figures = capsys.readouterr().out.splitlines()
    count = f"no, in {16 - held}" if verdict == "no" else f"{verdict}, in {held}"
    count = f"can't tell, yes in {held}" if verdict == "can't tell" else count
    assert line == f"→ it helps: {count} of 16 rounds"
    assert figures == "  3 ms"


def test_the_same_rounds_are_compared(capsys):
    # both slow down in the last four: a median of each alone would not see who was faster
    old = [0.010] * 12 + [0.050] * 4
    new = [0.008] * 12 + [0.040] * 4
    assert compare({"a": old, "b": new}, "a", "b") == "faster"
    assert compare({"a": old, "b": new}, "b", "a") == "slower"
    first, figures, second, _ = capsys.readouterr().out.splitlines()
    assert first == "→ b against a: faster, in 16 of 16 rounds"
    assert figures == "  8.0 ms against 10.0 ms; round by round 1.25 (1.25 to 1.25) times as fast"
    assert second == "→ a against b: slower, in 16 of 16 rounds"


def test_where_rounds_scatter_there_is_no_verdict():
    old, new = [0.010] * 16, [0.001] * 9 + [0.011] * 7  # a much better median, and half the rounds
    assert compare({"a": old, "b": new}, "a", "b") == "can't tell"


def test_too_few_rounds_and_odd_ones_are_refused():
    with pytest.raises(ValueError, match="7 steps: expected 8 or more"):
        says("it helps", [True] * 7, each="steps")
    with pytest.raises(ValueError, match="3 rounds"):
        compare({"a": [1.0] * 3, "b": [1.0] * 3}, "a", "b")
    with pytest.raises(ValueError, match="shorter"):
        compare({"a": [1.0] * 9, "b": [1.0] * 8}, "a", "b")
    with pytest.raises(ValueError, match="1 values"):
        middle([1.0])


def test_middle_names_the_middle_half():
    assert middle([1, 2, 3, 4, 100]) == "3.0 (2.0 to 4.0)"
    assert middle([0.1, 0.2, 0.3], "{:.0%}") == "20% (15% to 25%)"
