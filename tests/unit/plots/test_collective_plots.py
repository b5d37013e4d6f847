"""Figures of collectives show the numbers that they are given."""

import matplotlib.pyplot as plt
import pytest
from matplotlib.patches import Rectangle

from ddp_helpers.plots.collectives import MIXED, plot_collectives, plot_cost


def boxes(ax):
    return [patch for patch in ax.patches if isinstance(patch, Rectangle)]


def test_each_number_has_a_box_and_a_sum_has_stripes():
    before = [[10, 11], [20, 21]]
    demos = {
        "broadcast": (before, [[10, 11], [10, 11]]),
        "all_reduce": (before, [[30, 32], [30, 32]]),
        "scatter": ([[10, 11], []], [[10], [11]]),
    }
    fig = plot_collectives(demos, title="on 2 ranks")
    assert [ax.get_title() for ax in fig.axes] == list(demos)
    texts = [sorted(t.get_text() for t in ax.texts if t.get_text()) for ax in fig.axes]
    assert texts[0] == sorted(["10", "11", "20", "21", "10", "11", "10", "11"])
    assert texts[2] == sorted(["10", "11", "10", "11"])
    striped = [[box.get_hatch() == MIXED["hatch"] for box in boxes(ax)] for ax in fig.axes]
    assert [sum(found) for found in striped] == [0, 4, 0]
    colours = [box.get_facecolor() for box in boxes(fig.axes[0])]
    rank_0, rank_1 = colours[0], colours[4]
    assert rank_0 != rank_1
    assert colours.count(rank_0) == 6  # two before on rank 0, and four after
    plt.close(fig)


def test_the_cost_line_joins_medians_in_milliseconds():
    fig = plot_cost([1024, 2**20], [[0.001, 0.002, 0.009], [0.01]], title="all_reduce, 2 ranks")
    (ax,) = fig.axes
    assert list(ax.lines[-1].get_ydata()) == [2.0, 10.0]
    assert ax.get_xlabel() == "size of the tensor"
    assert ax.get_ylabel() == "time of one call (ms)"
    assert ax.xaxis.get_major_formatter()(2**20, 0) == "1 MiB"
    plt.close(fig)


@pytest.mark.parametrize(
    ("sizes", "seconds", "text"),
    [
        ([], [], "0 sizes"),
        ([1], [], "1 sizes"),
        ([1], [[0.0]], "above 0"),
        ([0], [[1.0]], "size 0"),
    ],
)
def test_bad_costs_are_named(sizes, seconds, text):
    with pytest.raises(ValueError, match=text):
        plot_cost(sizes, seconds, title="x")


def test_bad_collectives_are_named():
    with pytest.raises(ValueError, match="no collective"):
        plot_collectives({}, title="x")
    with pytest.raises(ValueError, match="gather: 2 ranks before and 1 after"):
        plot_collectives({"gather": ([[1], [2]], [[1, 2]])}, title="x")
