"""The arithmetic behind the explorables, against torch itself; and what they leave behind."""

import base64
import html
import io
import re
import time
import xml.etree.ElementTree as ET

import nbformat
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nbconvert import HTMLExporter
from torch.utils.data import DistributedSampler

from ddp_helpers import faults, widgets
from ddp_helpers.environment.report import Check, EnvironmentReport
from ddp_helpers.evidence.records import LaunchResult, RankResult
from ddp_helpers.plots.scene import Box, Line, Scene, ticks
from ddp_helpers.scaling.records import Link, Machine, Work
from ddp_helpers.widgets import (
    accumulation,
    fault_lab,
    ladder,
    machine_room,
    memory,
    monitor,
    one_step,
    overlap,
    planner,
    player,
    ring,
    sampler,
)
from ddp_helpers.widgets.base import WIDGET_VIEW, Explorable, Live, Picture

settings.register_profile("slow machines", deadline=None)
settings.load_profile("slow machines")


RESULTS = {
    "planner": planner.Measured(
        Machine("here", Link("loopback", 1e-4, 1e9)), Work("cnn", 10**5, 1e-3), {1: 0.1, 2: 0.2}, 64
    )
}
"""What takes long to measure, and is measured in a browser's test."""


@pytest.fixture(params=widgets.NAMES)
def explorable(request):
    shown = widgets.explore(request.param)
    shown.result = RESULTS.get(request.param, shown.result)
    return shown


def test_each_leaves_a_picture_and_words_for_readers_without_a_kernel(explorable):
    bundle = explorable._repr_mimebundle_()
    assert bundle[WIDGET_VIEW]["model_id"] == explorable.widget.model_id
    words = bundle["text/plain"]
    assert len(words) > 30
    if not hasattr(explorable, "button"):  # otherwise the ranks have run for them
        assert words == explorable.picture().words
    assert f'src="data:image/png;base64,{bundle["image/png"]}"' in bundle["text/html"]
    alt = re.search(r'alt="([^"]*)"', bundle["text/html"])[1]
    assert html.unescape(alt) == words
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")


def test_each_control_has_a_label_and_each_picture_is_wellformed(explorable):
    for control in explorable.controls.values():
        assert control.description
    picture = explorable.picture()
    root = ET.fromstring(picture.scene.svg(picture.words))
    assert root.get("aria-label") == picture.words
    width = float(root.get("viewBox").split()[2])
    for text in root.iter("{http://www.w3.org/2000/svg}text"):
        assert -5 <= float(text.get("x")) <= width + 5


def test_nbconvert_shows_the_picture_and_the_words_once():
    """Of a notebook as JupyterLab saves it: the widget is named, but its kernel is gone."""
    bundle = widgets.explore("ring")._repr_mimebundle_()
    output = nbformat.v4.new_output("execute_result", bundle, execution_count=1)
    cell = nbformat.v4.new_code_cell("widgets.explore('ring')", outputs=[output])
    page, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    words = html.escape(bundle["text/plain"])
    assert page.count(f"<p>{words}</p>") == 1
    assert page.count(bundle["image/png"]) == 1
    assert f'alt="{words}"' in page
    assert bundle[WIDGET_VIEW]["model_id"] not in page


def test_a_wrong_name_or_start_is_told():
    with pytest.raises(ValueError, match="no explorable 'smpler': expected one of .*sampler"):
        widgets.explore("smpler")
    with pytest.raises(TypeError, match="sampler has no control 'world'; it has: samples"):
        widgets.explore("sampler", world=3)


def test_values_that_do_not_go_together_keep_the_picture_and_say_why():
    shown = widgets.explore("sampler", samples=2, ranks=4)
    before = shown.view.value
    shown.controls["drop_last"].value = True
    assert "Not possible: drop_last with 2 samples for 4 ranks" in shown.status.value
    assert shown.view.value == before


def test_what_a_run_raises_is_shown_and_the_button_works_again():
    def fails():
        raise RuntimeError("no ranks <today>")

    scene = lambda result: Picture(Scene(10, 10), "some words")
    shown = Live(Explorable("a title", {}, scene, run=fails))
    shown.button.click()
    assert "RuntimeError: no ranks &lt;today&gt;" in shown.status.value
    assert not shown.button.disabled
    shown.on_ranks = lambda: 7
    shown.button.click()
    assert shown.result == 7
    assert "some words" in shown.status.value


def test_both_drawings_of_a_scene_hold_all_its_shapes():
    scene = Scene(200, 100)
    scene.box(10, 20, 30, 40, fill="#ff0000", hatch=True)
    scene.line(0, 0, 50, 50, arrow=True)
    scene.text(100, 50, "a < b", anchor="end")
    svg = ET.fromstring(scene.svg('say "a < b"'))
    assert svg.get("aria-label") == 'say "a < b"'
    kinds = [child.tag.rpartition("}")[2] for child in svg]
    assert kinds == ["title", "defs", "rect", "rect", "line", "polygon", "text"]
    fig = scene.figure()
    file = io.BytesIO()
    fig.savefig(file, format="png")
    ax = fig.axes[0]
    assert len(ax.patches) == 3
    assert len(ax.lines) == 1
    assert [text.get_text() for text in ax.texts] == ["a < b"]


@given(st.floats(1e-6, 1e9))
def test_an_axis_has_a_few_round_ticks(top):
    found = ticks(top)
    assert 3 <= len(found) <= 8
    assert found[0] == 0
    assert found[-1] <= top * (1 + 1e-9) < found[-1] + 1.001 * found[1]


DEALS = given(
    samples=st.integers(1, 60),
    ranks=st.integers(1, 9),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    epoch=st.integers(0, 20),
)


@DEALS
def test_the_deal_is_that_of_torch(samples, ranks, shuffle, drop_last, epoch):
    if drop_last and samples < ranks:
        return
    indices = sampler.order(samples, shuffle=shuffle, epoch=epoch)
    dealt = sampler.deal(indices, ranks, drop_last=drop_last)
    data = torch.utils.data.TensorDataset(torch.zeros(samples))
    for rank in range(ranks):
        theirs = DistributedSampler(data, ranks, rank, shuffle=shuffle, drop_last=drop_last)
        theirs.set_epoch(epoch)
        assert list(dealt.shares[rank]) == list(theirs)


@DEALS
def test_padding_is_what_comes_after_the_whole_dataset(samples, ranks, shuffle, drop_last, epoch):
    if drop_last and samples < ranks:
        return
    indices = sampler.order(samples, shuffle=shuffle, epoch=epoch)
    dealt = sampler.deal(indices, ranks, drop_last=drop_last)
    real = [
        index
        for rank, share in enumerate(dealt.shares)
        for turn, index in enumerate(share)
        if not dealt.is_padding(rank, turn)
    ]
    assert sorted([*real, *dealt.left_out]) == list(range(samples))
    assert sum(map(len, dealt.shares)) == len(real) + dealt.padding


def test_without_set_epoch_the_words_say_that_the_order_repeats():
    shown = widgets.explore("sampler", epoch=2)
    assert "Another order than in epoch 1" in shown.picture().words
    shown.controls["set_epoch"].value = False
    assert "The same order as in epoch 1" in shown.status.value
    assert "gets 6 samples" in shown.status.value


@given(st.integers(2, 8))
def test_both_ways_end_with_every_rank_having_the_whole_sum(ranks):
    for schedule in (ring.ring_schedule(ranks), ring.naive_schedule(ranks)):
        held = ring.held_after(schedule, ranks, len(schedule))
        assert all(whose == frozenset(range(ranks)) for row in held for whose in row)
        assert len(schedule) == 2 * (ranks - 1)
        start = ring.held_after(schedule, ranks, 0)
        assert start == [[frozenset({rank})] * ranks for rank in range(ranks)]


@given(st.integers(2, 8), st.floats(1, 1000))
def test_the_ring_passes_an_nth_of_what_goes_through_one_rank(ranks, mib):
    steps = 2 * (ranks - 1)
    cost = ring.waited_for(ring.ring_schedule(ranks), ranks, steps, mib)
    assert cost == pytest.approx(2 * (ranks - 1) / ranks * mib)  # Patarasuk and Yuan
    other = ring.waited_for(ring.naive_schedule(ranks), ranks, steps, mib)
    assert other == pytest.approx(ranks * cost)


@given(st.integers(2, 8))
def test_in_the_ring_each_rank_sends_one_chunk_a_step_to_its_neighbour(ranks):
    for step in ring.ring_schedule(ranks):
        assert [send.source for send in step] == list(range(ranks))
        assert [send.target for send in step] == [(rank + 1) % ranks for rank in range(ranks)]
        assert all(len(send.chunks) == 1 for send in step)


def test_the_ring_plays_to_its_end_and_then_from_the_start_and_pauses(monkeypatch):
    monkeypatch.setattr(player, "SECONDS", 0.01)
    shown = widgets.explore("ring", ranks=3, step=2)
    slider, button = shown.controls["step"], shown.player.button
    seen = []
    slider.observe(lambda change: seen.append(change["new"]), "value")
    plays(button)
    assert seen == [3, 4]
    plays(button)
    assert seen == [3, 4, 0, 1, 2, 3, 4]
    monkeypatch.setattr(player, "SECONDS", 60)
    button.click()
    wait_until(lambda: button.description == "Pause")
    plays(button)  # the next press ends it at once
    assert seen[-1] == 0


def plays(button):
    button.click()
    wait_until(lambda: button.description == "Play the steps")


def wait_until(true, seconds=10.0):
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit
        time.sleep(0.005)


ROOM = machine_room.Room(cores=8, memory=4.0, shm=0.0625)


def test_a_plan_that_fits_and_three_that_do_not():
    def crowded(*plan):
        return [need.name for need in machine_room.needs(ROOM, *plan) if not need.fits]

    assert crowded(4, 0, 0, 16) == []
    assert crowded(4, 3, 0, 16) == ["CPU threads"]
    assert crowded(13, 0, 0, 16) == ["CPU threads", "memory"]  # at least one thread each
    assert crowded(2, 1, 1, 17) == ["/dev/shm"]
    assert crowded(2, 1, 1, 16) == []  # 2 ranks, 1 worker, 2 batches of 16 MiB are 64 MiB


def test_the_machine_room_shows_only_rows_that_do_not_pass():
    checks = (Check("good", "pass", "fine"), Check("bad", "warn", "so so", "do that"))
    known = (EnvironmentReport(checks), ROOM)
    both = machine_room.draw(2, 0, 0, 16, "all rows", known)
    assert "good" in both.detail
    few = machine_room.draw(2, 0, 0, 16, "not pass", known)
    assert "good" not in few.detail
    assert "do that" in few.detail
    assert few.words.startswith(
        "This machine: 1 pass, 1 warn, 0 fail. 2 ranks want CPU threads: 8 of 8"
    )


@pytest.mark.parametrize("way", accumulation.WAYS)
def test_the_last_micro_batch_of_a_step_always_talks(way):
    spoken = accumulation.talks(3, 4, way)
    assert len(spoken) == 12
    assert all(spoken[3::4])
    assert sum(spoken) == (3 if way == accumulation.WAYS[1] else 12)


@pytest.mark.parametrize("pair", ladder.RUNGS, ids="-".join)
def test_both_columns_of_a_rung_are_the_files_as_they_are(pair):
    found = ladder.rows(*pair)
    for at, name in enumerate(pair):
        lines = [(row.old, row.new)[at] for row in found]
        numbers = [(row.number, row.new_number)[at] for row in found]
        text = (ladder.FOLDER / f"{name}.py").read_text().splitlines()
        assert [line for line in lines if line is not None] == text
        assert [n for n in numbers if n is not None] == list(range(1, len(text) + 1))
    same, new, gone = ladder.counts(*pair)
    assert same + new == len((ladder.FOLDER / f"{pair[1]}.py").read_text().splitlines())
    assert same > max(new, gone)  # a small step


def test_each_rung_follows_an_earlier_one():
    known = {"single_process"}
    for before, after in ladder.RUNGS:
        assert before in known
        known.add(after)
    assert {"data_parallel", "ddp_spawn", "ddp_torchrun", "ddp_resume"} <= known


def test_a_shortened_table_has_every_changed_line():
    few = ladder.table("data_parallel", "ddp_spawn", whole=False)
    whole = ladder.table("data_parallel", "ddp_spawn", whole=True)
    assert few.count("<tr>") < whole.count("<tr>")
    assert few.count(ladder.NEW) == whole.count(ladder.NEW) > 20


@pytest.mark.parametrize("name", faults.names())
def test_the_suspects_hold_the_right_one_and_the_code_does_not_tell(name):
    found = fault_lab.suspects(name)
    assert len(set(found)) == 4
    assert faults.load(name).FAULT.title in found
    code = fault_lab.code(name)
    assert "# FAULT" not in code
    assert "def faulty" in code
    assert "def fixed" not in code


def test_the_right_suspect_is_not_always_at_the_same_place():
    places = {
        fault_lab.suspects(name).index(faults.load(name).FAULT.title) for name in faults.names()
    }
    assert places == {0, 1, 2, 3}


def test_a_diagnosis_is_judged_only_after_the_run():
    title = faults.load("uneven_batches").FAULT.title
    at = ("hangs", "uneven_batches", "faulty")
    assert "Not run yet" in fault_lab.draw(*at, title, None).words
    ranks = (RankResult(0, exit_code=-9, seconds=2.0), RankResult(1, exit_code=None, seconds=1.5))
    seen = faults.Seen("the report", (), "printed\n", LaunchResult(ranks))
    told = fault_lab.draw(*at, title, seen)
    assert "rank 0 was killed or left early after 2.0 s; rank 1 was ended by" in told.words
    assert "Right: Uneven batches" in told.words
    assert "the report" in told.detail
    wrong = fault_lab.draw(*at, "Something else", seen)
    assert "Not that one" in wrong.words
    assert "the report" not in wrong.detail


def test_the_throughput_is_that_of_the_last_two_seconds():
    one = monitor.OfRank()
    for at in range(11):
        one.tell(100 + at, step=10 * min(at, 6) + 50 * max(0, at - 6), total=300, loss=1.0)
    assert one.steps_per_second() == pytest.approx(50)
    assert monitor.OfRank().steps_per_second() == 0.0


def test_a_long_run_keeps_its_first_and_last_step_and_few_points():
    one = monitor.OfRank()
    for step in range(1, 5001):
        one.tell(step / 100, step, 5000, 1 / step)
    assert one.losses[0][0] == 1
    assert one.losses[-1][0] == 5000
    assert len(one.losses) <= 2 * monitor.MOST_POINTS
    steps = [step for step, _ in one.losses]
    assert steps == sorted(steps)


def test_what_a_worker_does_at_a_moment():
    step = one_step.Step(
        (
            one_step.Part("rank 0", "forward", 0, 4),
            one_step.Part("rank 0", "backward", 4, 10),
            one_step.Part("rank 0", "average", 6, 10),
            one_step.Part("rank 1", "forward", 1, 4),
        ),
        10.0,
    )
    assert one_step.at_the_moment(step, 0.5) == {"rank 0": "forward", "rank 1": "waits"}
    assert one_step.at_the_moment(step, 7) == {"rank 0": "backward and average", "rank 1": "waits"}
    assert one_step.at_the_moment(step, 11) == {"rank 0": "is done", "rank 1": "is done"}


def test_the_size_of_the_gradients_is_that_of_torch():
    net = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(3)))
    size = sum(parameter.numel() for parameter in net.parameters()) * 4 / 2**20
    assert overlap.gradients_mib(3, 64) == pytest.approx(size)


def test_the_planner_draws_what_the_model_says():
    ranks, told = planner.plan("PCs, 1 Gbit/s", 25.6, 1.5, 64, 1, "float32", 16)
    picture = planner.draw("PCs, 1 Gbit/s", 25.6, 1.5, 64, 1, "float32", 16, None)
    assert f"{told.samples_per_second.value[-1]:,.0f} samples/s" in picture.words
    assert f"efficiency of {told.efficiency.value[-1]:.0%}" in picture.words
    assert list(ranks) == list(range(1, 17))
    curve = [s for s in picture.scene.shapes if isinstance(s, Line) and s.width == 2.5]
    assert len(curve) == 15
    ideal = (planner.TOP + planner.HIGH - curve[-1].to_y) / planner.HIGH
    assert ideal == pytest.approx(told.efficiency.value[-1], abs=0.01)


def memory_of(**changes):
    start = {"model": "6.7 billion", "way": "DDP", "ranks": 8, "precision": "autocast"}
    start |= {"optimizer": "adam", "batch": 2, "micro": 1, "checkpointing": False}
    return start | {"tensor": 1, "stages": 1} | changes


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"way": "ZeRO-1"},
        {"way": "FSDP", "precision": "mixed", "checkpointing": True},
        {"way": "FSDP, not resharded", "optimizer": "sgd", "ranks": 512},
        {"tensor": 8, "stages": 4, "micro": 8},
        {"batch": 1, "checkpointing": True, "precision": "bfloat16", "model": "0.12 billion"},
    ],
)
def test_the_memory_bar_is_as_long_as_what_a_rank_holds(changes):
    given = memory_of(**changes)
    _, _, held = memory.hold(**given)
    picture = memory.draw(**given)
    assert f"a rank holds {float(held.total.value) / 1e9:,.3g} GB" in picture.words
    bar = [s for s in picture.scene.shapes if isinstance(s, Box) and s.y == memory.TOP]
    *parts, rest = bar
    drawn = sum(part.width for part in parts)
    whole = drawn + rest.width
    assert drawn / whole == pytest.approx(held.total.value / held.total.high, abs=0.01)
    time = [s for s in picture.scene.shapes if isinstance(s, Box) and s.height == 22]
    assert sum(part.width for part in time) == pytest.approx(memory.WIDE)


def test_holding_less_fits_more_and_costs_time():
    plain, sharded, again = (
        memory.draw(**memory_of(**changes)).words
        for changes in (
            {},
            {"way": "FSDP", "precision": "mixed"},
            {"way": "FSDP", "precision": "mixed", "checkpointing": True},
        )
    )
    assert "It surely fits on none of the four." in plain
    assert "It fits on: H100, H200. It may fit on: A100 40 GB." in sharded
    assert "It fits on: RTX 4090, A100 40 GB, H100, H200." in again
    seconds = [float(re.search(r"takes ([\d.]+) s,", words)[1]) for words in (sharded, again)]
    assert seconds[1] == pytest.approx(4 / 3 * seconds[0], rel=0.05)


def test_a_way_that_there_is_not_keeps_the_picture_and_says_why():
    shown = widgets.explore("memory", way="FSDP", precision="mixed")
    before = shown.view.value
    shown.controls["way"].value = "DDP"
    assert "Not possible: precision mixed with DDP: it is" in shown.status.value
    assert shown.view.value == before
