"""The picture of a run: rows, who waits for whom, and what is missing."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddp_helpers.evidence.records import ALL, RECV, SEND, Frame, RankError, RankResult, TimedCall
from ddp_helpers.plots.lanes import draw_run
from ddp_helpers.plots.scene import Box, Line, Words

PLACE = Frame("cell In[3]", 5, "train")


def call(name, began, done, *, kind=ALL, peer=None, group=(0, 1), place=0, waited=..., size=16):
    waited = began if waited is ... else waited
    return TimedCall(name, PLACE, kind, size, peer, group, place, began, waited, done)


def run(*lanes, **more):
    return [
        RankResult(rank, calls=tuple(calls), exit_code=0, **more.get(f"rank{rank}", {}))
        for rank, calls in enumerate(lanes)
    ]


def words(scene):
    return [shape.text for shape in scene.shapes if isinstance(shape, Words)]


def boxes(scene):
    return [shape for shape in scene.shapes if isinstance(shape, Box)]


def links(scene):
    """Lines from lane to lane; those between the lanes stand upright."""
    return [s for s in scene.shapes if isinstance(s, Line) and s.x != s.to_x and not s.dashed]


def test_who_comes_early_waits_and_its_block_reaches_to_the_last_ones_call():
    scene, told = draw_run(run([call("all_reduce", 1.0, 1.3)], [call("all_reduce", 1.25, 1.3)]))
    early, late = boxes(scene)
    assert early.y < late.y
    assert early.y + early.height == late.y + late.height
    assert "waits 250 ms" in words(scene)
    assert len(links(scene)) == 1
    assert told == "Rank 0: all_reduce; returned. Rank 1: all_reduce; returned."


def test_the_block_of_a_sender_that_went_on_does_not_reach_into_its_next_call():
    first = call("broadcast", 1.0, 1.001, peer=0), call("broadcast", 1.02, 1.021, peer=0)
    second = (
        call("broadcast", 1.01, 1.04, peer=1, place=1),
        call("broadcast", 1.03, 1.031, peer=1, place=1),
    )
    lanes = [[a, b] for a, b in zip(first, second, strict=True)]
    scene, _ = draw_run(run(*lanes))
    for x in {box.x for box in boxes(scene)}:
        above, below = sorted((b for b in boxes(scene) if b.x == x), key=lambda box: box.y)
        assert above.y + above.height <= below.y


def test_calls_at_the_same_time_stand_in_one_row():
    scene, _ = draw_run(run([call("barrier", 1.0, 1.01)], [call("barrier", 1.001, 1.01)]))
    one, other = boxes(scene)
    assert (one.y, one.height) == (other.y, other.height)
    assert not [text for text in words(scene) if text.startswith("waits")]


def test_calls_of_one_rank_never_share_a_row():
    calls = [call("all_reduce", 1.0 + i * 1e-5, 1.0 + i * 1e-5, place=i) for i in range(5)]
    scene, _ = draw_run(run(calls, calls))
    tops = sorted({box.y for box in boxes(scene)})
    assert len(tops) == 5
    assert min(b - a for a, b in itertools.pairwise(tops)) >= boxes(scene)[0].height


def overlapping(scene):
    pairs = itertools.combinations(boxes(scene), 2)
    return [
        (a, b) for a, b in pairs if a.x == b.x and a.y < b.y + b.height and b.y < a.y + a.height
    ]


def test_a_rank_that_has_sent_and_gone_on_waits_for_nobody():
    first = [call("broadcast", 1.0, 1.01, peer=0), call("broadcast", 1.1, 1.4, peer=1, place=1)]
    late = [call("broadcast", 1.3, 1.31, peer=0), call("broadcast", 1.35, 1.4, peer=1, place=1)]
    scene, _ = draw_run(run(first, late))
    assert len(boxes(scene)) == 4
    assert not overlapping(scene)
    assert [text for text in words(scene) if text.startswith("waits")] == ["waits 250 ms"]


@given(
    st.lists(
        st.lists(st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)), min_size=3, max_size=3),
        min_size=2,
        max_size=4,
    )
)
def test_blocks_never_lie_upon_each_other(ranks):
    lanes = []
    for rank in ranks:
        now, calls = 1.0, []
        for place, (pause, length) in enumerate(rank):
            began, now = now + pause, now + pause + length
            calls.append(
                call("broadcast", began, now, peer=place, group=tuple(range(4)), place=place)
            )
        lanes.append(calls)
    assert not overlapping(draw_run(run(*lanes))[0])


def test_the_call_that_is_missing_is_named_on_the_rank_that_did_not_make_it():
    scene, told = draw_run(run([call("all_reduce", 1.0, None)], []))
    assert "all_reduce is missing" in words(scene)
    (name,) = [s for s in scene.shapes if isinstance(s, Words) and "missing" in s.text]
    (lane,) = [s for s in scene.shapes if isinstance(s, Words) and s.text == "rank 1"]
    assert name.x == lane.x
    assert told.endswith("Missing: all_reduce of rank 1.")
    assert not links(scene)


@pytest.mark.parametrize(
    ("kind", "name", "lacks"), [(SEND, "send", "recv"), (RECV, "recv", "send")]
)
def test_of_a_message_the_other_end_is_missing(kind, name, lacks):
    _, told = draw_run(run([call(name, 1.0, None, kind=kind, peer=1)], []))
    assert told.endswith(f"Missing: {lacks} of rank 1.")


def test_a_message_meets_its_other_end_and_no_other_message():
    sends = [call("send", 1.0 + i, 1.1 + i, kind=SEND, peer=1, place=i) for i in range(2)]
    receives = [call("recv", 1.0 + i, 1.1 + i, kind=RECV, peer=0, place=i) for i in range(2)]
    scene, _ = draw_run(run(sends, receives))
    assert len(links(scene)) == 2
    assert "send to 1, 16 B" in words(scene)
    assert "recv from 0, 16 B" in words(scene)


@pytest.mark.parametrize("other", [("barrier", 0), ("all_reduce", 32)])
def test_calls_that_do_not_go_together_are_linked_by_a_dashed_red_line(other):
    name, size = other
    mine, theirs = call("all_reduce", 1.0, 1.1), call(name, 1.0, 1.1, size=size)
    scene, _ = draw_run(run([mine], [theirs]))
    lines = [s for s in scene.shapes if isinstance(s, Line) and s.x != s.to_x and s.dashed]
    assert [line.color for line in lines] == ["#D55E00"]


def test_an_asynchronous_call_and_the_wait_for_it_are_two_blocks():
    scene, _ = draw_run(run([call("all_reduce", 1.0, 1.5, waited=1.4)]))
    assert "wait for all_reduce" in words(scene)
    assert len(boxes(scene)) == 2


def test_an_asynchronous_call_that_nobody_waits_for_is_not_missed_elsewhere():
    _, told = draw_run(run([call("all_reduce", 1.0, None, waited=None)], []))
    assert "Missing" not in told


def test_the_end_of_each_rank_is_told():
    error = RankError("ValueError", "no", "", (Frame("cell In[3]", 7, "train"),))
    ranks = run([], [], [])
    ranks[0] = RankResult(0, exit_code=1, error=error)
    ranks[1] = RankResult(1, exit_code=-9, returned=False)
    ranks[2] = RankResult(2, exit_code=None, returned=False, stack=(PLACE,), error=error)
    _, told = draw_run(ranks)
    assert "Rank 0: no exchange; raised ValueError cell In[3], line 7." in told
    assert "Rank 1: no exchange; its process ended exit code -9." in told
    assert "Rank 2: no exchange; was ended at cell In[3], line 5." in told


def test_of_a_long_run_the_last_rows_are_drawn():
    calls = [call("all_reduce", float(i), i + 0.5, place=i) for i in range(200)]
    scene, _ = draw_run(run(calls, calls))
    assert scene.height < 1500
    assert "199 s" in words(scene)
    assert len(boxes(scene)) == 60


def test_no_text_leaves_its_lane():
    long = Frame("/a/very/long/" + "n" * 90 + ".py", 12345, "f")
    made = TimedCall(
        "all_gather_into_tensor_coalesced", long, ALL, 1 << 32, 0, (0, 1), 0, 1.0, 1.0, 2.0
    )
    scene, _ = draw_run(run(*[[made]] * 8))
    width = boxes(scene)[0].width
    inside = [s for s in scene.shapes if isinstance(s, Words) and s.anchor == "start"]
    assert inside
    assert max(len(s.text) for s in inside) * 6.8 <= width


def test_the_picture_is_an_svg_with_its_words():
    scene, told = draw_run(run([call("barrier", 1.0, 1.1)]))
    assert re.search(r'role="img" aria-label="Rank 0: barrier; returned."', scene.svg(told))
