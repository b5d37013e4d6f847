"""Timelines from written events: interval arithmetic, overlap, shares, gloo's and nccl's names."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddp_helpers.timeline import (
    mean_shares,
    overlap,
    record_timeline,
    step_overlaps,
    typical_step,
    waiting_for_the_last,
)
from ddp_helpers.timeline import plots as timeline_plots
from ddp_helpers.timeline.intervals import difference, intersection, length, union
from ddp_helpers.timeline.profiler_events import Event, steps_of
from ddp_helpers.timeline.records import (
    BACKWARD,
    DATA,
    EXPOSED,
    FORWARD,
    KINDS,
    OPTIMIZER,
    OTHER,
    Collective,
    RankTimeline,
    StepTimeline,
)

NODE = "autograd::engine::evaluate_function: AddmmBackward0"
SETS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12)


def grid(intervals):
    """The same set as single nanoseconds."""
    return {moment for start, stop in intervals for moment in range(start, stop)}


@given(SETS, SETS)
def test_sets_of_intervals_are_sets_of_moments(one, other):
    assert grid(union(one, other)) == grid(one) | grid(other)
    assert grid(intersection(one, other)) == grid(one) & grid(other)
    assert grid(difference(one, other)) == grid(one) - grid(other)
    assert length(one) == len(grid(one))


@given(SETS, SETS)
def test_results_are_sorted_and_touch_nowhere(one, other):
    for result in (union(one, other), intersection(one, other), difference(one, other)):
        flat = [moment for pair in result for moment in pair]
        assert flat == sorted(set(flat))


def step(work, calls, start=0, stop=100):
    calls = tuple(Collective("all_reduce", *call) for call in calls)
    return StepTimeline(start, stop, {k: tuple(v) for k, v in work.items()}, calls)


@given(SETS, SETS, SETS, SETS)
def test_parts_fill_the_step_without_overlap(backward, forward, data, calls):
    calls = [call for call in calls if call[0] <= call[1]]
    parts = step({BACKWARD: backward, FORWARD: forward, DATA: data}, calls, 10, 50).parts()
    assert list(parts) == list(KINDS)
    moments = [moment for part in parts.values() for moment in grid(part)]
    assert sorted(moments) == list(range(10, 50))
    assert grid(parts[BACKWARD]) == grid(backward) & set(range(10, 50))
    assert grid(parts[EXPOSED]) == (grid(calls) & set(range(10, 50))) - grid(backward + forward)


@given(SETS, st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted), min_size=1))
def test_overlap_is_the_hidden_share_of_the_all_reduces(backward, calls):
    ranks = [RankTimeline(0, 1, (step({BACKWARD: backward}, map(tuple, calls)),))]
    whole = grid(calls)
    expected = len(whole & grid(backward)) / len(whole) if whole else None
    assert overlap(ranks) == ranks[0].overlap == expected


def test_overlap_weighs_ranks_by_their_all_reduce_time():
    hidden = RankTimeline(0, 2, (step({BACKWARD: [(0, 50)]}, [(10, 20)]),))
    exposed = RankTimeline(1, 2, (step({BACKWARD: [(0, 50)]}, [(60, 90)]),))
    assert overlap([hidden, exposed]) == pytest.approx(0.25)
    assert overlap([RankTimeline(0, 1, (step({}, []),))]) is None
    assert mean_shares([hidden, exposed])[EXPOSED] == pytest.approx(0.15)


def test_a_broadcast_is_exposed_but_no_all_reduce():
    calls = (Collective("broadcast", 0, 40),)
    rank = RankTimeline(0, 2, (StepTimeline(0, 100, {}, calls),))
    assert rank.shares()[EXPOSED] == pytest.approx(0.4)
    assert rank.overlap is None


def test_waiting_for_the_last_rank():
    early = RankTimeline(0, 2, (step({}, [(10, 50)]),))
    late = RankTimeline(1, 2, (step({}, [(30, 50)]),))
    assert waiting_for_the_last([early, late]) == pytest.approx(20 / 60)
    # a call that is not waited for may end in the next step: then the two are no pair
    odd = [RankTimeline(rank, 2, (step({}, calls),)) for rank, calls in enumerate(([(0, 9)], []))]
    assert waiting_for_the_last(odd) == 0.0
    both = [
        RankTimeline(r, 2, (*a.steps, *b.steps))
        for r, (a, b) in enumerate(zip((early, late), odd, strict=True))
    ]
    assert waiting_for_the_last(both) == pytest.approx(20 / 60)
    with pytest.raises(ValueError, match="shorter"):
        waiting_for_the_last([early, RankTimeline(1, 2, ())])


def on_cpu():
    return [
        Event("ProfilerStep#2", 0, 100),
        Event("enumerate(DataLoader)#_SingleProcessDataLoaderIter.__next__", 0, 10),
        Event("aten::stack", 2, 8),
        Event("DistributedDataParallel.forward", 10, 32, annotation=True),
        Event("aten::linear", 12, 30),
        Event("aten::addmm", 13, 29),
        Event(NODE, 35, 50),
        Event("c10d::allreduce_", 48, 49),
        Event("gloo:all_reduce", 49, 70, thread=2, size=400),
        Event(NODE, 50, 60),
        Event("gloo:all_reduce", 60, 80, thread=3, size=800),
        Event("torch.distributed.ddp.reducer::copy_bucket_to_grad", 80, 82),
        Event("Optimizer.step#SGD.step", 85, 95, annotation=True),
        Event("aten::add_", 86, 94),
    ]


def test_events_of_gloo():
    (one,) = steps_of(on_cpu())
    assert [(call.size, call.start_ns, call.stop_ns) for call in one.all_reduces] == [
        (400, 49, 70),
        (800, 60, 80),
    ]
    assert one.work[FORWARD] == ((12, 30),)
    assert one.work[BACKWARD] == ((35, 60), (80, 82))
    rank = RankTimeline(0, 2, (one,))
    parts = {kind: round(100 * share) for kind, share in rank.shares().items()}
    assert parts == {FORWARD: 18, BACKWARD: 27, EXPOSED: 20, OPTIMIZER: 10, DATA: 10, OTHER: 15}
    assert rank.overlap == pytest.approx(11 / 31)


def on_gpu():
    """The CPU launches early, the GPU works later, nccl on a stream of its own."""
    kernel = {"on_gpu": True, "thread": 0}
    return [
        Event("ProfilerStep#2", 0, 200),
        Event("aten::addmm", 5, 10, number=1),
        Event(NODE, 12, 20),
        Event("aten::mm", 13, 18, number=2),
        Event("nccl:all_reduce", 18, 19, number=3, size=4000, annotation=True),
        Event("Optimizer.step#SGD.step", 22, 30, annotation=True),
        Event("aten::add_", 23, 28, number=4),
        Event("sgemm_forward", 20, 60, launched_by=1, **kernel),
        Event("sgemm_backward", 60, 120, launched_by=2, **kernel),
        Event("nccl:all_reduce", 100, 150, annotation=True, **kernel),
        Event("ncclDevKernel_AllReduce_Sum_f32_RING_LL(x)", 100, 150, launched_by=3, **kernel),
        Event("elementwise_kernel", 150, 160, launched_by=4, **kernel),
        Event("Memcpy HtoD (Pinned -> Device)", 10, 15, launched_by=9, **kernel),
    ]


def test_events_of_nccl_belong_to_what_launched_them():
    (one,) = steps_of(on_gpu())
    assert one.all_reduces == (Collective("all_reduce", 100, 150, 4000),)
    assert one.work[FORWARD] == ((20, 60),)
    assert one.work[BACKWARD] == ((60, 120),)
    assert one.work[OPTIMIZER] == ((150, 160),)
    assert one.work[DATA] == ((10, 15),)
    assert overlap([RankTimeline(0, 2, (one,))]) == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("kernel", "name"),
    [
        ("ncclKernel_AllReduce_RING_LL_Sum_float(x)", "all_reduce"),
        ("ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL(x)", "reduce_scatter"),
        ("ncclDevKernel_SendRecv(x)", "send_recv"),
        ("ncclDevKernel_Broadcast_RING_LL(x)", "broadcast"),
    ],
)
def test_names_of_nccl_kernels(kernel, name):
    mark = Event("ProfilerStep#2", 0, 10)
    (one,) = steps_of([mark, Event(kernel, 1, 5, on_gpu=True)])
    assert [call.name for call in one.collectives] == [name]


def test_no_step_is_an_error():
    with pytest.raises(ValueError, match=r"timeline.step\(\)"):
        steps_of([Event("aten::add", 0, 1)])


@pytest.mark.usefixtures("one_thread")
def test_a_real_loop_of_one_process():
    model = torch.nn.Linear(64, 64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with record_timeline(steps=2) as timeline:
        for _ in range(9):
            optimizer.zero_grad()
            model(torch.randn(32, 64)).sum().backward()
            optimizer.step()
            timeline.step()
    result = timeline.result()
    assert len(result.steps) == 2
    assert result.world_size == 1
    assert result.overlap is None
    assert all(result.seconds()[kind] > 0 for kind in (FORWARD, BACKWARD, OPTIMIZER))
    assert sum(result.shares().values()) == pytest.approx(1)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="skip=1"):
        record_timeline(skip=1)
    with record_timeline(steps=2) as timeline:
        timeline.step()
    with pytest.raises(ValueError, match=r"1 steps were done, expected 4"):
        timeline.result()
    with pytest.raises(ValueError, match="one a rank"):
        mean_shares([])
    for plot in (timeline_plots.plot_overlap, timeline_plots.plot_shares):
        with pytest.raises(ValueError, match="plot"):
            plot({})


def test_the_profilers_own_lines_are_dropped_and_others_kept(capfd):
    import os

    from ddp_helpers.timeline.record import without_notes_of_kineto

    with without_notes_of_kineto():
        os.write(2, b"USDT:2026 profiler_start\nout of memory\n")
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "out of memory\nafter\n"


def test_figures_show_hidden_and_exposed_parts():
    (one,) = steps_of(on_cpu())
    ranks = [RankTimeline(rank, 2, (one,)) for rank in (0, 1)]
    fig = timeline_plots.plot_overlap(ranks)
    hidden = [p for p in fig.axes[0].patches if p.get_facecolor()[:3] == (0, 158 / 255, 115 / 255)]
    assert sum(patch.get_width() for patch in hidden) == pytest.approx(2 * (11 + 0 + 2) / 1e6, 1)
    assert [text.get_text() for text in fig.axes[0].get_yticklabels()][2] == "rank 1  compute"
    assert "35% of it hidden" in timeline_plots.describe_overlap(ranks)

    fig = timeline_plots.plot_shares({"2 ranks": ranks})
    assert sum(patch.get_width() for patch in fig.axes[0].patches) == pytest.approx(100)
    assert "backward 27%" in timeline_plots.describe_shares({"2 ranks": ranks})


def test_the_step_that_is_drawn_is_one_like_the_others():
    full, half, none = (step({BACKWARD: [(0, end)]}, [(0, 40)]) for end in (40, 20, 0))
    ranks = [RankTimeline(rank, 2, (none, half, full, half, none)) for rank in (0, 1)]
    assert step_overlaps(ranks) == [0, 0.5, 1, 0.5, 0]
    assert overlap(ranks) == pytest.approx(0.4)
    assert typical_step(ranks) == 1  # not the last, which shows no overlap
    assert "makes 1 all-reduces" in timeline_plots.describe_overlap(ranks)
    alone = [RankTimeline(0, 1, (step({}, []),))]
    assert step_overlaps(alone) == [None]
    assert typical_step(alone) == -1


def test_the_seconds_of_a_step_are_those_of_its_parts():
    one = step({BACKWARD: [(0, 30)]}, [(20, 50)])
    seconds = one.part_seconds()
    assert sum(seconds.values()) == pytest.approx(one.seconds)
    assert seconds[EXPOSED] == pytest.approx(20e-9)


def test_a_sweep_joins_the_medians():
    seconds = [[0.1, 0.2, 0.3], [0.4]]
    fig = timeline_plots.plot_sweep(["1", "25"], seconds, [0.5, 0.1], xlabel="MiB", title="t")
    left, right = fig.axes
    assert list(left.lines[-1].get_ydata()) == pytest.approx([200, 400])
    assert list(right.lines[-1].get_ydata()) == pytest.approx([50, 10])
    with pytest.raises(ValueError, match="equally many"):
        timeline_plots.plot_sweep(["1"], seconds, [0.5, 0.1], xlabel="MiB", title="t")
