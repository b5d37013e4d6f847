"""The cost model: formulas against loops written out, laws that always hold, published tables."""

import argparse
import dataclasses
import json
import re
import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ddp_helpers import cli
from ddp_helpers.cli import plan as plan_command
from ddp_helpers.scaling import (
    Link,
    Machine,
    Setup,
    Work,
    all_reduce_seconds,
    predict,
    step_seconds,
)
from ddp_helpers.scaling.fits import fit_batches, fit_link, robust_fit, spread
from ddp_helpers.scaling.formulas import (
    MIB,
    Linear,
    buckets,
    communication_end,
    double_tree,
    expected_slowest,
    halving_doubling,
    hierarchical,
    ring,
    tree,
)
from ddp_helpers.scaling.plots import plot_prediction
from ddp_helpers.scaling.published import AI_SUMMER, JUELICH, PUBLISHED
from ddp_helpers.scaling.rated import LINKS, rated, with_cards
from ddp_helpers.scaling.records import ALGORITHMS

FAST = Link("fast", 1e-5, 1e11, 0.2, 0.2)
SLOW = Link("slow", 5e-5, 1e9, 0.3, 0.3)
GPUS = Machine("gpus", FAST, SLOW, ranks_per_node=4, noise=0.02, price_per_hour=2.0)
LAPTOP = Machine("laptop", SLOW, cores=2, contention=1.2, communication_cpu=0.4, step_overhead=1e-4)
WORK = Work("model", 10_000_000, 1e-3, 1e-3, optimizer_seconds=2e-3, error=0.1)

algorithms = st.sampled_from(ALGORITHMS)
links = st.builds(
    Link,
    st.just("link"),
    st.floats(1e-7, 1e-2),
    st.floats(1e7, 1e12),
    st.floats(0, 0.9),
    st.floats(0, 0.9),
)
machines = st.builds(
    Machine,
    st.just("machine"),
    links,
    links,
    ranks_per_node=st.integers(1, 16),
    cores=st.none() | st.integers(1, 64),
    contention=st.floats(1, 3),
    background=st.floats(0, 20),
    communication_cpu=st.floats(0, 1),
    step_overhead=st.floats(0, 1e-2),
    byte_overhead=st.floats(0, 1e-9),
    noise=st.floats(0, 0.3),
    model_error=st.floats(0, 0.5),
    overlap_error=st.floats(0, 1),
)
works = st.builds(
    Work,
    st.just("work"),
    st.integers(1001, 10**10),
    st.floats(1e-7, 1e-1),
    st.floats(0, 1e-1),
    backward_share=st.floats(0.05, 0.95),
    optimizer_seconds=st.floats(0, 0.1),
    tensors=st.none() | st.integers(1, 1000),
    late_parameters=st.integers(0, 1000),
    data_seconds_per_sample=st.floats(0, 1e-2),
    data_workers=st.integers(0, 8),
    error=st.floats(0, 0.5),
)
setups = st.builds(
    Setup,
    ranks=st.integers(1, 50_000),
    batch_size_per_rank=st.integers(1, 1024),
    bucket_cap_mb=st.none() | st.floats(0.1, 500),
    accumulation_steps=st.integers(1, 16),
    gradient_dtype=st.sampled_from(["float32", "bfloat16"]),
    compression=st.floats(1, 100),
    algorithm=algorithms,
    hierarchical=st.booleans(),
    overlap=st.booleans(),
)


# ---- formulas


def played_ring(ranks, size, latency, bandwidth):
    """A ring all-reduce played round by round: each round, each rank sends one part."""
    rounds = 2 * (ranks - 1)
    return sum(latency + size / ranks / bandwidth for _ in range(rounds))


@pytest.mark.parametrize("ranks", [1, 2, 3, 8, 100])
def test_ring_costs_what_its_messages_cost(ranks):
    assert ring(ranks, 1e-5, 1e9)(4e6) == pytest.approx(played_ring(ranks, 4e6, 1e-5, 1e9))


def test_trees_have_as_many_levels_as_doubling_needs():
    assert tree(8, 1.0, 1.0)(0) == 6  # up 3 levels and down 3
    assert tree(9, 1.0, 1.0)(0) == 8
    assert halving_doubling(8, 1.0, 1.0)(0) == 6
    assert double_tree(8, 1.0, 1.0)(0) == 6
    assert double_tree(np.array([1, 8, 1000]), 0.0, 1.0)(8.0).tolist() == [0, 16, 16]  # in pieces
    assert halving_doubling(8, 0.0, 1.0)(8.0) == pytest.approx(2 * 7)
    assert halving_doubling(9, 1.0, 1.0)(0) == 8  # two more to hand over and back


def test_few_bytes_like_a_tree_and_many_a_ring():
    def seconds(size):
        names = ("ring", "tree", "double_tree", "halving_doubling", "best", "nccl")
        setups = {name: Setup(ranks=64, algorithm=name) for name in names}
        return {name: all_reduce_seconds(LAPTOP, each, size).value for name, each in setups.items()}

    few, many = seconds(1e2), seconds(1e9)
    assert few["tree"] < few["ring"]
    assert many["ring"] < many["tree"]
    for each in (few, many):
        assert each["best"] == min(each.values())
        assert each["nccl"] == min(each["ring"], each["double_tree"])


def test_what_is_ready_last_is_sent_after_the_backward():
    machine = Machine("x", Link("x", 0.0, 1e9), overlap_error=1.0)
    late = dataclasses.replace(WORK, error=0.0, late_parameters=2_500_000)
    plain = predict(machine, dataclasses.replace(late, late_parameters=0), Setup(ranks=2))
    setup = Setup(ranks=2, batch_size_per_rank=320, bucket_cap_mb=0.05)
    found = predict(machine, late, setup)
    assert found.exposed == pytest.approx(2.5e6 * 4 / 1e9, rel=0.01)  # the rest is hidden
    assert found.communication == pytest.approx(plain.communication)
    # at the bad end of the range nothing is
    all_of_it = found.compute + found.communication
    assert found.step.high == pytest.approx(all_of_it)
    assert found.step.low == found.step.value
    apart = predict(machine, late, dataclasses.replace(setup, overlap=False))
    assert apart.step.value == pytest.approx(all_of_it)


def test_rated_links_and_cards():
    assert LINKS["nvlink2"].bandwidth == pytest.approx(0.8 * 150e9)
    assert with_cards(LINKS["infiniband"], 8).bandwidth == pytest.approx(8 * 0.8 * 25e9)
    assert with_cards(LINKS["ethernet10"], 1) == LINKS["ethernet10"]
    assert rated("x", 1e-5, 1e9).source == "rated"


def test_hierarchical_sends_the_message_once_over_the_network():
    cost = hierarchical("ring", np.array([32]), 8, (0.0, 1e12), (0.0, 1e9))
    assert cost(1e9)[0] == pytest.approx(2 * 3 / 4 + 2 * 7 / 8 / 1000)
    one_node = hierarchical("ring", np.array([8]), 8, (1e-5, 1e10), (1.0, 1.0))
    assert one_node(1e6)[0] == pytest.approx(ring(8, 1e-5, 1e10)(1e6))


def test_buckets_of_torch_and_of_the_user():
    number, first, others = buckets(100 * MIB, None, None)
    assert (number, first) == (5, MIB)  # 1 MiB, then 99 in four of at most 25
    assert others == pytest.approx(99 * MIB / 4)
    number, first, others = buckets(100 * MIB, np.array([10.0, 1000.0]), None)
    assert number.tolist() == [10, 1]
    assert first.tolist() == [10 * MIB, 100 * MIB]
    assert buckets(100 * MIB, 1, tensors=3)[0] == 3
    assert buckets(400, None, None)[0] == 1


@given(
    backward=st.floats(1e-4, 1),
    number=st.integers(1, 60),
    first=st.floats(1, 1e6),
    others=st.floats(1, 1e8),
    fixed=st.floats(0, 1e-2),
    bandwidth=st.floats(1e7, 1e12),
)
def test_overlap_is_what_a_queue_of_buckets_gives(
    backward, number, first, others, fixed, bandwidth
):
    """The closed formula against a loop: a bucket starts when it is ready and the link is free."""
    first = min(first, others) if number > 1 else first
    sizes = [first] + [others] * (number - 1)
    free = ready = 0.0
    for size in sizes:
        ready += backward * size / sum(sizes)
        free = max(free, ready) + fixed + size / bandwidth
    cost = Linear(np.asarray(fixed), np.asarray(1 / bandwidth))
    rest = others if number > 1 else 0.0
    found = communication_end(np.asarray(backward), np.asarray(float(number)), first, rest, cost)
    assert found == pytest.approx(free, rel=1e-6)


@pytest.mark.parametrize("ranks", [1, 2, 10, 100, 1000])
def test_the_slowest_of_many_is_as_late_as_drawn_ones(ranks):
    drawn = np.random.default_rng(0).standard_normal((4000, ranks)).max(axis=1).mean()
    assert expected_slowest(ranks) == pytest.approx(drawn, abs=0.05)


def test_errors_of_a_link_become_the_range_of_a_message():
    for size, off in ((0.0, 0.2), (1e15, 0.4)):
        machine = Machine("x", Link("x", 1e-5, 1e9, latency_error=0.2, bandwidth_error=0.4))
        found = all_reduce_seconds(machine, Setup(ranks=4), size)
        assert found.low == pytest.approx((1 - off) * found.value, rel=1e-6)
        assert found.high == pytest.approx((1 + off) * found.value, rel=1e-6)


# ---- laws


@settings(max_examples=300)
@given(machine=machines, work=works, setup=setups)
def test_laws_of_a_prediction(machine, work, setup):
    found = predict(machine, work, setup)
    for each in (found.step, found.samples_per_second, found.efficiency):
        assert np.isfinite([each.low, each.value, each.high]).all()
        assert 0 < each.low <= each.value * (1 + 1e-9) <= each.high * (1 + 1e-9) * (1 + 1e-9)
    assert found.efficiency.high <= 1
    assert found.step.value >= max(found.compute, found.exposed, found.straggler) * (1 - 1e-9)
    assert 0 <= found.latency <= found.communication * (1 + 1e-9)
    parts = found.compute + found.exposed + found.straggler + found.overhead + found.data
    assert found.step.value == pytest.approx(parts)
    if setup.ranks == 1:
        assert found.communication == found.exposed == found.overhead == found.straggler == 0
        assert found.efficiency.value == 1


@given(machine=machines, work=works, setup=setups, more=st.integers(1, 10**9))
def test_more_parameters_never_take_less_time(machine, work, setup, more):
    bigger = dataclasses.replace(work, parameters=work.parameters + more)
    setup = dataclasses.replace(setup, overlap=False)
    least = predict(machine, work, setup).step.value * (1 - 1e-9)
    assert predict(machine, bigger, setup).step.value >= least


@given(machine=machines, ranks=st.integers(1, 1000), size=st.floats(0, 1e9), more=st.floats(0, 1e9))
def test_bigger_messages_never_take_less_time(machine, ranks, size, more):
    setup = Setup(ranks=ranks)
    found = all_reduce_seconds(machine, setup, np.array([size, size + more])).value
    assert found[1] >= found[0] >= 0
    if ranks == 1:
        assert found[1] == 0


@given(machine=machines, work=works, setup=setups, times=st.floats(1, 100))
def test_a_faster_link_and_overlap_never_harm(machine, work, setup, times):
    links = {
        name: dataclasses.replace(link, bandwidth=link.bandwidth * times)
        for name, link in (("link", machine.link), ("network", machine.network))
    }
    most = predict(machine, work, setup).step.value * (1 + 1e-9)
    assert predict(dataclasses.replace(machine, **links), work, setup).step.value <= most
    apart = predict(machine, work, dataclasses.replace(setup, overlap=False))
    if machine.cores is None:
        assert apart.step.value * (1 + 1e-9) >= predict(machine, work, setup).step.value


def test_four_ranks_on_two_cores_take_twice_as_long_at_least():
    one, two, four = predict(LAPTOP, WORK, Setup(ranks=np.array([1, 2, 4]))).compute
    assert two == pytest.approx(1.2 * one)
    assert four == pytest.approx(2 * two)


def test_on_a_busy_machine_more_ranks_get_more_of_it():
    busy = dataclasses.replace(LAPTOP, background=8.0, contention=1.0)
    one, two, four = predict(busy, WORK, Setup(ranks=np.array([1, 2, 4]))).compute
    assert two / one == pytest.approx(10 / 9)  # nine wanted a core before, ten do now
    assert four / one == pytest.approx(12 / 9)


def test_accumulation_and_short_gradients_save_communication():
    plain, accumulated, short = (
        predict(GPUS, WORK, Setup(ranks=16, **options))
        for options in ({}, {"accumulation_steps": 4}, {"gradient_dtype": "bfloat16"})
    )
    assert accumulated.samples_per_second.value > plain.samples_per_second.value
    assert accumulated.communication == pytest.approx(plain.communication)
    assert short.communication < 0.6 * plain.communication


def test_what_bounds_a_run():
    slow_data = dataclasses.replace(WORK, data_seconds_per_sample=0.1)
    assert predict(GPUS, WORK, Setup(ranks=2, batch_size_per_rank=512)).bound == "compute"
    assert predict(GPUS, WORK, Setup(ranks=16, batch_size_per_rank=1)).bound == "communication"
    assert predict(GPUS, WORK, Setup(ranks=9000, batch_size_per_rank=1)).bound == "latency"
    assert predict(GPUS, slow_data, Setup(ranks=2)).bound == "data"
    noisy = dataclasses.replace(GPUS, noise=0.5)
    assert predict(noisy, WORK, Setup(ranks=64, batch_size_per_rank=4096)).bound == "straggler"


def test_workers_hide_loading_until_they_are_too_few():
    slow = dataclasses.replace(WORK, data_seconds_per_sample=4e-3)
    data = [
        predict(GPUS, dataclasses.replace(slow, data_workers=n), Setup(ranks=1)).data
        for n in (0, 2, 8)
    ]
    assert data[0] == pytest.approx(32 * 4e-3)
    assert 0 < data[1] < data[0]
    assert data[2] == 0


def test_arrays_give_the_same_as_one_at_a_time():
    ranks, sizes = np.array([[1], [3], [64]]), np.array([1, 32])
    many = predict(GPUS, WORK, Setup(ranks=ranks, batch_size_per_rank=sizes))
    grid = step_seconds(GPUS, WORK, Setup(ranks=ranks, batch_size_per_rank=sizes))
    assert many.bound.shape == grid.shape == (3, 2)
    for at, n in enumerate(ranks[:, 0]):
        for column, size in enumerate(sizes):
            one = predict(GPUS, WORK, Setup(ranks=int(n), batch_size_per_rank=int(size)))
            assert many.step.high[at, column] == pytest.approx(one.step.high)
            assert many.efficiency.low[at, column] == pytest.approx(one.efficiency.low)
            assert grid[at, column] == pytest.approx(one.step.value)


def test_slices_of_a_big_grid_fit_together():
    setup = Setup(ranks=np.arange(1, 401)[:, None], batch_size_per_rank=np.arange(1, 101))
    assert np.array_equal(step_seconds(GPUS, WORK, setup), predict(GPUS, WORK, setup).step.value)


def test_epochs_and_cost():
    found = predict(GPUS, WORK, Setup(ranks=8, batch_size_per_rank=32))
    epoch = found.epoch_seconds(1000)  # four steps of 256, the last not full
    assert epoch.value == pytest.approx(4 * found.step.value)
    assert found.cost(1000, epochs=3).value == pytest.approx(3 * epoch.value * 8 * 2.0 / 3600)
    with pytest.raises(ValueError, match="samples=0"):
        found.epoch_seconds(0)


# ---- published tables


@pytest.mark.parametrize("ranks", AI_SUMMER.published)
def test_each_published_time_of_a_short_run_comes_out(ranks):
    assert AI_SUMMER.predicted()[ranks] == pytest.approx(AI_SUMMER.published[ranks], rel=0.15)


def test_what_the_model_does_not_explain_is_no_fixed_time():
    found = JUELICH.predicted()
    more = [(JUELICH.published[n] - found[n]) / 60 for n in JUELICH.published if n > 1]
    assert more == pytest.approx([3.6, 3.3, 2.4, 1.5, 2.1], abs=0.06)
    assert all(f"{minutes:.1f}" in JUELICH.explain() for minutes in more)
    assert "the table can't tell" in JUELICH.explain()


def test_published_numbers_are_those_of_the_sources():
    minutes = [seconds / 60 for seconds in JUELICH.published.values()]
    assert list(JUELICH.published) == [1, 4, 16, 32, 64, 128]
    assert minutes == pytest.approx([342.2, 89.27, 24.8, 13.18, 6.94, 4.805], abs=0.005)
    assert AI_SUMMER.published == {1: 13.08, 2: 9.79, 4: 6.11}


@pytest.mark.parametrize("run", PUBLISHED, ids=lambda run: run.name)
def test_only_the_ends_are_fitted(run):
    middle = sorted(run.published)[1]
    others = dataclasses.replace(run, published=run.published | {middle: 1.0})
    assert others.fitted() == run.fitted()
    work, constant = run.fitted()
    assert dataclasses.replace(work, seconds_per_sample=1.0) == dataclasses.replace(
        run.work, seconds_per_sample=1.0
    )
    assert (constant > 0) == run.starts
    text = run.explain()
    assert f"fitted, to the first {'and the last ' if run.starts else ''}time only" in text
    assert all(assumption in text for assumption in run.assumed)


# ---- fits


def test_a_link_is_found_again_in_spite_of_outliers():
    random = np.random.default_rng(0)
    points = []
    for size in (2**12, 2**16, 2**20, 2**22):
        for ranks in (2, 4):
            for at in range(10):
                seconds = ring(ranks, 2e-4, 1e9)(size) * random.normal(1, 0.02)
                points.append((ranks, size, seconds * (5 if at == 0 else 1)))
    link = fit_link("found", points)
    assert link.latency == pytest.approx(2e-4, rel=0.05)
    assert link.bandwidth == pytest.approx(1e9, rel=0.05)
    assert 0 < link.latency_error < 0.1
    machine = Machine("found", link)
    for ranks, size, seconds in points[1:10]:  # what was measured is what is predicted
        found = all_reduce_seconds(machine, Setup(ranks=ranks), size).value
        assert found == pytest.approx(seconds, rel=0.1)


def test_noisier_measurements_give_wider_ranges():
    def error(noise):
        random = np.random.default_rng(1)
        sizes = [2**k for k in range(12, 23)] * 5
        return fit_link(
            "x", [(2, s, ring(2, 2e-4, 1e9)(s) * random.lognormal(0, noise)) for s in sizes]
        ).bandwidth_error

    assert error(0.01) < error(0.1) < error(0.5)


def test_batches_give_a_part_for_each_batch_and_each_sample():
    per_batch, per_sample, error = fit_batches({8: [0.018, 0.018, 0.9], 32: [0.042]})
    assert (per_batch, per_sample) == pytest.approx((0.01, 0.001), rel=0.01)
    assert error < 0.01
    assert fit_batches({16: [0.16]})[:2] == pytest.approx((0.0, 0.01))
    # a line that would cut below 0 is not one: the part for a batch is 0 then
    assert fit_batches({10: [0.09], 20: [0.21]})[0] == 0


def test_a_rest_near_nothing_does_not_decide_a_fit():
    columns = np.array([[1.0], [1.0], [1.0]])
    rests, steps = np.array([-1e-6, 0.010, 0.011]), np.array([0.05, 0.05, 0.05])
    assert robust_fit(columns, rests, steps)[0] == pytest.approx(0.010, rel=0.05)


def test_spread_does_not_see_outliers():
    times = np.random.default_rng(0).normal(1, 0.05, 4000)
    disturbed = np.where(np.arange(4000) % 10 < 2, times * 5, times)
    assert spread(times) == pytest.approx(0.05, rel=0.15)
    assert spread(disturbed) < 0.1 < statistics.stdev(disturbed)


@pytest.mark.parametrize(
    ("points", "text"),
    [
        ([(2, 1024, 1e-3)], "two message sizes"),
        ([(1, 1024, 1e-3), (1, 2048, 1e-3)], "at least 2"),
        ([(2, 1024, 0.0), (2, 2048, 1e-3)], "above 0 s"),
        ([(2, 1024, 1.0), (2, 2**20, 1e-3)], "do not grow"),
    ],
)
def test_bad_points_are_named(points, text):
    with pytest.raises(ValueError, match=text):
        fit_link("x", points)


# ---- bad input


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Link("x", -1.0, 1e9), "latency=-1.0: expected a finite number, at least 0"),
        (lambda: Link("x", 1e-5, 0.0), "bandwidth=0.0: expected a finite number, above 0"),
        (lambda: Link("x", 1e-5, 1e9, 1.5), "latency_error=1.5.*below 1"),
        (lambda: Machine("x", FAST, ranks_per_node=4), "without a network"),
        (lambda: Machine("x", FAST, cores=0), "cores=0"),
        (lambda: Machine("x", FAST, contention=0.5), "contention=0.5: expected at least 1"),
        (lambda: Machine("x", FAST, noise=float("nan")), "noise=nan"),
        (lambda: Work("x", 0, 1e-3), "parameters=0"),
        (lambda: Work("x", 10, 0.0), "computing takes time"),
        (lambda: Work("x", 10, 1.0, late_parameters=10), "late_parameters=10: expected"),
        (lambda: Machine("x", FAST, overlap_error=2.0), "overlap_error=2.0: expected a share"),
        (lambda: Work("x", 10, 1e-3, backward_share=1.0), "backward_share=1.0"),
        (lambda: Setup(ranks=0), "ranks=0: expected whole numbers, at least 1"),
        (lambda: Setup(ranks=2.5), "ranks=2.5"),
        (lambda: Setup(ranks=np.array([1, -3])), "ranks="),
        (lambda: Setup(bucket_cap_mb=0), "bucket_cap_mb=0.0"),
        (lambda: Setup(gradient_dtype="int8"), "gradient_dtype='int8': expected one of float32"),
        (lambda: Setup(algorithm="star"), "algorithm='star': expected one of ring"),
        (lambda: Setup(compression=0.5), "compression=0.5"),
        (lambda: all_reduce_seconds(GPUS, Setup(), -1), "size=-1"),
    ],
)
def test_bad_input_is_named(make, text):
    with pytest.raises(ValueError, match=text):
        make()


# ---- profile and command


def test_a_profile_comes_back_as_it_was(tmp_path):
    for machine in (GPUS, LAPTOP):
        assert Machine.load(machine.save(tmp_path / "sub" / "profile.json")) == machine
    path = tmp_path / "other.json"
    for text in ("{", "[]", "{}", json.dumps({"name": "x", "link": {"wrong": 1}})):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"other.json is no machine profile.*--measure"):
            Machine.load(path)


def test_plan_prints_a_line_for_each_number_of_ranks(capsys, tmp_path):
    figure, profile = tmp_path / "plan.png", tmp_path / "profile.json"
    GPUS.save(profile)
    words = ["plan", "--profile", str(profile), "--ranks", "1:64", "--parameters", "25.6e6"]
    words += ["--ms-per-sample", "1.6", "--price", "2", "--figure", str(figure)]
    words += ["--samples", "1000000"]
    assert cli.main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    table = [line.split() for line in lines if line.strip().startswith(("1 ", "16 ", "64 "))]
    assert [line[0] for line in table] == ["1", "16", "64"]
    work = Work("yours", 25_600_000, 1.6e-3, error=0.1)
    expected = predict(GPUS, work, Setup(ranks=64))
    assert float(table[2][1]) == pytest.approx(1e3 * expected.step.value, rel=0.01)
    assert table[2][-1] == expected.bound
    assert float(table[2][-2]) == pytest.approx(expected.cost(1_000_000).value, rel=0.01)
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_plan_shows_the_published_tables(capsys):
    assert cli.main(["plan", "--published"]) == 0
    text = capsys.readouterr().out
    assert "342.20" in text
    assert "assumed:" in text
    assert "rows: median error" in text


def test_plan_takes_what_a_library_sends(capsys):
    words = "plan --link nvlink2 --network infiniband --ranks-per-node 8 --ranks 16"
    words += " --parameters 110e6 --ms-per-sample 8 --batch-size 32"

    def step(more):
        assert cli.main([*words.split(), *more.split()]) == 0
        text = capsys.readouterr().out
        assert "assumed:" in text
        row = next(line for line in text.splitlines() if line.startswith("     16"))
        return float(row.split()[1])

    plain, one, few = step(""), step("--cards 1"), step("--cards 1 --buckets 1")
    assert plain < one < few  # a card for each GPU; one for all of them; and nothing hidden
    assert step("--cards 1 --no-overlap") == pytest.approx(few, rel=0.03)  # more messages
    assert step("--cards 1 --buckets 1 --gradients float16") < few
    assert step("--cards 1 --late 23e6") > one
    assert step("--library horovod") > plain
    assert step("--noise 0") < plain


def test_a_card_for_each_gpu_is_the_planners_example(capsys):
    words = "plan --link nvlink3 --network infiniband --ranks-per-node 8 --ranks 64"
    words += " --parameters 350e6 --ms-per-sample 1.5 --batch-size 32"
    good = []
    for cards in ("", " --cards 1"):
        cli.main([*(words + cards).split()])
        text = capsys.readouterr().out
        good.append(int(re.search(r"^ +64 .*?(\d+)%", text, re.MULTILINE)[1]))
    assert good[0] > 2 * good[1]


SOME = ["--link", "nvlink", "--parameters", "1e6", "--ms-per-sample", "1"]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ([], "which machine"),
        (["--link", "nvlink"], "which model"),
        ([*SOME, "--buckets", "2", "--bucket-cap-mb", "3"], "--buckets and --bucket-cap-mb say"),
        ([*SOME, "--buckets", "0"], "--buckets=0: expected at least 1"),
        ([*SOME, "--network", "infiniband", "--cards", "0"], "--cards=0: expected at least 1"),
        (["--link", "nvlink", "--ranks-per-node", "8", "--ranks", "2"], "without a network"),
        (["--profile", "missing.json"], "missing.json"),
    ],
)
def test_plan_says_what_is_missing(words, text, capsys):
    assert cli.main(["plan", *words]) == 2
    assert text in capsys.readouterr().err


def test_words_of_the_command():
    assert plan_command.whole_numbers("1:100") == [1, 2, 4, 8, 16, 32, 64, 100]
    assert plan_command.link_named("25:10") == Link("25:10 us link", 1e-5, 25e9)
    for wrong in ("", "a", "1;2"):
        with pytest.raises(argparse.ArgumentTypeError, match="expected whole numbers"):
            plan_command.whole_numbers(wrong)
    with pytest.raises(argparse.ArgumentTypeError, match="expected one of ethernet1, .*nvlink3"):
        plan_command.link_named("wire")


def test_measured_steps_are_crosses_in_both_pictures():
    ranks = np.array([1, 2, 4])
    told = predict(GPUS, WORK, Setup(ranks))
    measured = {n: 1.5 * step for n, step in zip(ranks, told.step.value, strict=True)}
    measured[1] = float(told.step.value[0])
    fig = plot_prediction(told, measured=measured, measured_label="published")
    left, right = (
        next(line for line in ax.lines if line.get_label() == "published") for ax in fig.axes[:2]
    )
    assert list(left.get_ydata()) == pytest.approx([n * 32 / measured[n] for n in ranks])
    share = [100 * measured[1] / measured[n] for n in ranks]
    assert list(right.get_ydata()) == pytest.approx(share)
    alone = plot_prediction(told, measured={2: 0.1})  # efficiency against what?
    assert [line.get_label() for line in alone.axes[1].lines].count("measured") == 0
