"""What bounds a step, from written timelines; and which advice counts as proven."""

import pytest

from ddp_helpers import cli
from ddp_helpers.bench.plots import describe_bench, plot_bench
from ddp_helpers.bench.records import Change, Measured
from ddp_helpers.bench.verdict import SCATTER, TOO_GOOD, beyond_ranks, judge, not_to_judge
from ddp_helpers.cli import bench
from ddp_helpers.cli.bench import recommendation
from ddp_helpers.timeline.records import (
    BACKWARD,
    DATA,
    FORWARD,
    KINDS,
    Collective,
    RankTimeline,
    StepTimeline,
)


def ranks(backward, data=0, exposed=0, world_size=2):
    """Steps of 100 ns: backward, then loading, then all-reduce; the rest is Python."""
    calls = (Collective("all_reduce", backward + data, backward + data + exposed),)
    work = {BACKWARD: ((0, backward),), DATA: ((backward, backward + data),), FORWARD: ()}
    step = StepTimeline(0, 100, work, calls if exposed else ())
    return [RankTimeline(rank, world_size, (step,)) for rank in range(world_size)]


@pytest.mark.parametrize(
    ("parts", "kind", "words"),
    [
        ({"backward": 35, "exposed": 62}, "communication-bound", "62% of the step is all-reduce"),
        ({"backward": 40, "data": 50, "exposed": 10}, "data-bound", "50% of the step waits"),
        ({"backward": 40, "exposed": 10}, "overhead-bound", "50% of the step is Python"),
        ({"backward": 90, "exposed": 5}, "compute-bound", "90% of the step is forward"),
        ({"backward": 30, "data": 25, "exposed": 45}, "communication-bound", "45%"),
        ({"backward": 30, "data": 42, "exposed": 28}, "data-bound", "42%"),
    ],
)
def test_the_biggest_part_beside_compute_is_named(parts, kind, words):
    verdict = judge(ranks(**parts), cores=8)
    assert verdict.kind == kind
    assert words in verdict.text
    assert verdict.advice


def test_the_verdict_knows_the_cores():
    assert "no more cores" in judge(ranks(95), cores=2).text
    assert "no more cores" not in judge(ranks(95), cores=8).text
    assert "use all cores" in judge(ranks(40, data=50), cores=2).text


def test_a_late_rank_is_mentioned():
    early, late = ranks(10, exposed=80)[0], ranks(80, exposed=10)[1]
    assert "waits for the last one" in judge([early, late], cores=8).text
    assert "waits for the last one" not in judge(ranks(20, exposed=70), cores=8).text


def test_a_speed_up_above_the_ranks_gets_a_word():
    assert beyond_ranks({1: [100], 2: [199, 200], 4: [400]}) == ""
    word = beyond_ranks({1: [100], 2: [150], 4: [420]})
    assert word.startswith("note: faster than the ranks can make it (4.20 on 4): the runs on 1")
    assert "2.10 on 4" in beyond_ranks({2: [100], 4: [210]})


def test_rounds_that_scatter_get_no_verdict():
    assert not_to_judge({1: [100, 100 * (1 + SCATTER)], 2: [180]}) == ""
    text = not_to_judge({1: [100, 90, 131], 2: [180]})
    assert text.startswith("the rounds on 1 rank scatter too much: 90.0 to 131.0 samples/s")
    assert "on 2 ranks" in not_to_judge({1: [100], 2: [100, 200]})
    assert not_to_judge({1: [100], 2: [100 * 2 * TOO_GOOD]}) == ""
    assert not_to_judge({1: [100], 2: [562]}) == (
        "5.62 times as fast on 2 ranks as on 1 is no speed-up of 2 ranks"
    )


def test_the_command_gives_no_verdict_where_there_is_none(monkeypatch, capsys, tmp_path):
    """The rounds of a machine under load, as they were once measured: 562 % on two ranks."""
    rounds = {1: [50.0, 55.0, 60.0], 2: [562.0, 600.0, 618.0]}
    timelines = ranks(90)

    def measured(options, n, *_, profile=False):
        rate = rounds[n].pop(0)
        return [Measured(r, 8 * n / rate, 8, timelines[0]) for r in range(n)]

    monkeypatch.setattr(bench, "_measure", measured)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def main(): pass\n")
    assert cli.main(["bench", "mine.py:main", "--out", "scaling.png"]) == 0
    text = capsys.readouterr().out
    assert "10.91 on 2" in text
    assert "no verdict: 10.91 times as fast on 2 ranks as on 1" in text
    assert "tried on" not in text


def test_only_what_won_every_round_is_recommended():
    bigger, view = Change(batch_factor=4), Change(gradient_as_bucket_view=True)
    text = recommendation([100, 110, 90], {bigger: [190, 200, 210], view: [500, 500, 80]})
    assert text == "try: a batch 4 times as big on each rank: 2.00 times as fast here"
    assert "none of it" in recommendation([100, 100], {bigger: [300, 99]})
    assert "none of it" in recommendation([100], {})


def test_the_figure_shows_speed_and_shares():
    shares = {n: dict.fromkeys(KINDS, 1 / len(KINDS)) for n in (1, 2)}
    fig = plot_bench({1: [100, 120], 2: [150]}, shares, title="mine")
    ideal, measured = fig.axes[0].lines[:2]
    assert list(ideal.get_ydata()) == [110, 220]
    assert list(measured.get_ydata()) == [110, 150]
    assert sum(patch.get_height() for patch in fig.axes[1].patches) == pytest.approx(200)
    assert "2 ranks: 150 samples/s, 17% of a step" in describe_bench({2: [150]}, {2: shares[2]})
    with pytest.raises(ValueError, match="expected the same"):
        plot_bench({1: [1]}, {2: shares[2]}, title="mine")
