"""Measuring for the cost model, with real ranks. How close it is, the benchmark says."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from ddp_helpers import cli
from ddp_helpers.model import SmallCNN, count_parameters
from ddp_helpers.scaling import Machine, Setup, machine_costs, predict
from ddp_helpers.scaling.machine_costs import measure_machine
from ddp_helpers.scaling.work_costs import (
    make_probe,
    make_probe_batch,
    measure_loading,
    measure_step,
    measure_work,
)


def test_a_measured_machine_and_model_give_a_prediction():
    machine = measure_machine(rounds=1, price_per_hour=2.0)
    assert 0 < machine.link.latency < 1
    assert machine.link.bandwidth > 1e6
    assert machine.price_per_hour == 2.0
    assert "2 ranks" in machine.link.source
    work = measure_work(SmallCNN, make_probe_batch, steps=5, rounds=1)
    assert work.parameters == count_parameters(SmallCNN())
    assert work.tensors == 8
    assert 0 < work.backward_share < 1
    found = predict(machine, work, Setup(ranks=4))
    assert found.step.value > predict(machine, work, Setup(ranks=1)).step.value > 0


def test_a_step_of_ddp_is_measured_by_its_parts():
    setup = Setup(ranks=2, batch_size_per_rank=4, accumulation_steps=2, bucket_cap_mb=1)
    times = measure_step(SmallCNN, make_probe_batch, setup, steps=6)
    assert len(times.step) == len(times.forward) == 6
    assert min(*times.forward, *times.backward, *times.optimizer) > 0
    assert times.step[0] == times.forward[0] + times.backward[0] + times.optimizer[0]
    halves = measure_step(SmallCNN, make_probe_batch, Setup(ranks=2, gradient_dtype="float16"))
    assert min(halves.step) > 0


def test_loading_is_measured_for_each_sample():
    data = TensorDataset(torch.zeros(64, 10), torch.zeros(64))
    assert 0 < measure_loading(lambda: DataLoader(data, batch_size=8)) < 0.1
    with pytest.raises(ValueError, match="num_workers=1: expected 0"):
        measure_loading(lambda: DataLoader(data, batch_size=8, num_workers=1))
    with pytest.raises(ValueError, match="fewer than two batches"):
        measure_loading(lambda: DataLoader(data, batch_size=64))


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: measure_machine(rounds=0), "rounds=0: expected at least 1"),
        (lambda: measure_work(SmallCNN, make_probe_batch, batch_sizes=()), "batch_sizes"),
        (
            lambda: measure_step(
                SmallCNN, make_probe_batch, Setup(ranks=torch.arange(1, 3).numpy())
            ),
            "numbers, not arrays",
        ),
        (lambda: measure_step(SmallCNN, make_probe_batch, Setup(compression=2)), "can be run here"),
    ],
)
def test_what_cant_be_measured_is_named(call, text):
    with pytest.raises(ValueError, match=text):
        call()


def test_plan_measures_and_saves_a_profile(tmp_path, capsys):
    path = tmp_path / "profile.json"
    words = ["plan", "--measure", "--rounds", "1", "--profile", str(path)]
    assert cli.main([*words, "--model", "SmallCNN", "--ranks", "1,2,4"]) == 0
    text = capsys.readouterr().out
    assert "SmallCNN, 107,706 parameters" in text
    assert Machine.load(path).link.bandwidth > 0


def test_the_probe_has_the_width_it_is_given():
    assert make_probe(16)(make_probe_batch(3)[0]).shape == (3, 10)


@pytest.mark.parametrize(("needed", "made"), [(1, 1), (3, 3), (99, 4)])
def test_a_busy_spell_is_measured_through(monkeypatch, needed, made):
    rounds = []
    monkeypatch.setattr(machine_costs, "measure_round", lambda: rounds.append(1) or len(rounds))

    def fit(found, name, *, price_per_hour):
        if len(found) < needed:
            raise ValueError("times do not grow with the message")
        return "a machine"

    monkeypatch.setattr(machine_costs, "machine_from", fit)
    if needed > made:
        with pytest.raises(ValueError, match="do not grow"):
            measure_machine(rounds=1)
    else:
        assert measure_machine(rounds=1) == "a machine"
    assert len(rounds) == made
