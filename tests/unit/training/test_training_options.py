"""What train_one_epoch and fit can be asked for besides the plain loop, in one process."""

import itertools
import math
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from ddp_helpers.checkpoints.folder import CheckpointFolder
from ddp_helpers.checkpoints.random_state import (
    SeededSamples,
    capture_random_state,
    random_state_kept,
    restore_random_state,
    seed_everything,
)
from ddp_helpers.data import load_mnist_5k
from ddp_helpers.data.loaders import make_eval_loader, make_resumable_loader, make_train_loader
from ddp_helpers.model import MLP
from ddp_helpers.training import digits, evaluate, fit, train_mnist_5k, train_one_epoch
from ddp_helpers.training.early_stop import EarlyStop
from ddp_helpers.training.losses import CrossEntropy
from ddp_helpers.training.precision import MixedPrecision
from ddp_helpers.training.report import print_progress
from ddp_helpers.training.resume import settle_buckets
from ddp_helpers.training.schedule import linear_scaled_lr, warm_up

pytestmark = pytest.mark.usefixtures("one_thread")


def blobs(n=23):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    return TensorDataset(torch.randn(n, 4, generator=generator) + 4 * labels[:, None], labels)


def parts(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))
    return model, torch.optim.Adam(model.parameters(), lr=0.05)


# ---- precision


def test_bf16_runs_matrix_products_in_16_bits_and_keeps_the_weights():
    model, optimizer = parts()
    seen = []
    model[0].register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    loader = make_resumable_loader(blobs(), 8)
    for epoch in range(12):
        metrics = train_one_epoch(
            model, loader, optimizer, device="cpu", epoch=epoch, precision="bf16"
        )
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert metrics.loss < 0.4
    found = evaluate(model, make_eval_loader(blobs(), 8), device="cpu", precision="bf16")
    assert found.accuracy > 0.9


def test_precision_names_what_is_wrong():
    with pytest.raises(ValueError, match='precision="half": expected "fp32", "bf16" or "fp16"'):
        MixedPrecision("half", "cpu")
    with pytest.raises(ValueError, match='"fp16" on cpu: it is for GPUs; use "bf16"'):
        MixedPrecision("fp16", "cpu")


def scaled(scale):
    """fp16 with a scaler, on the CPU, where the class itself refuses it."""
    amp = MixedPrecision("fp32", "cpu")
    amp.scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=True)
    return amp


def test_the_scaler_is_undone_before_the_gradient_is_clipped():
    weights = []
    for precision in ("fp32", scaled(2.0**12)):
        model, optimizer = parts()[0], None
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        options = {"precision": precision, "max_grad_norm": 0.1}
        loader = make_resumable_loader(blobs(), 8)
        torch.manual_seed(1)
        train_one_epoch(model, loader, optimizer, device="cpu", epoch=0, **options)
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)


def test_a_step_that_overflows_is_left_out_and_the_schedule_waits():
    model, optimizer = parts()
    scheduler, amp = warm_up(optimizer, 10), scaled(2.0**127)  # the scaled loss is inf
    before = [parameter.clone() for parameter in model.parameters()]
    inputs, labels = blobs(8).tensors
    loader = DataLoader(TensorDataset(100 * inputs, labels), 8)
    options = {"precision": amp, "scheduler": scheduler}
    train_one_epoch(model, loader, optimizer, device="cpu", epoch=0, **options)
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))
    assert scheduler.last_epoch == 0
    assert amp.scaler.get_scale() == 2.0**126
    fresh = scaled(1.0)
    fresh.load_state_dict(amp.state_dict())
    assert fresh.scaler.get_scale() == 2.0**126


# ---- accumulation, clipping, losses


@pytest.mark.parametrize("make", [make_resumable_loader, None])
@pytest.mark.parametrize("clip", [None, 0.05])
def test_accumulated_steps_are_those_of_the_whole_batch(make, clip):
    weights, losses = [], []
    for accumulation in (1, 2, 3):
        torch.manual_seed(0)
        model = MLP(4, 8, 3).double()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
        inputs, labels = blobs().tensors
        data = TensorDataset(inputs.double(), labels)
        if make:
            loader = make(data, 12, accumulation_steps=accumulation)
        else:
            loader = DataLoader(data, 12 // accumulation)  # 23: the last batches are uneven
        metrics = train_one_epoch(
            model,
            loader,
            optimizer,
            device="cpu",
            epoch=0,
            accumulation_steps=accumulation,
            max_grad_norm=clip,
        )
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        losses.append(metrics.loss)
        assert metrics.samples == 23
    for other in weights[1:]:
        torch.testing.assert_close(other, weights[0], rtol=0, atol=1e-12)
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-12)


def test_accumulation_must_be_that_of_the_loader():
    model, optimizer = parts()
    loader = make_resumable_loader(blobs(), 8, accumulation_steps=2)
    with pytest.raises(ValueError, match="accumulation_steps=1, but the loader was made for 2"):
        train_one_epoch(model, loader, optimizer, device="cpu", epoch=0)
    for wrong in (0, 1.5, True):
        with pytest.raises(ValueError, match=f"accumulation_steps={wrong}"):
            train_one_epoch(
                model, loader, optimizer, device="cpu", epoch=0, accumulation_steps=wrong
            )


def test_tokens_without_a_loss_are_neither_summed_nor_counted():
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(4, 6, 5, generator=generator)
    labels = torch.randint(0, 5, (4, 6), generator=generator)
    labels[0], labels[2, 3:] = -1, -1
    loss, kept = CrossEntropy(ignore_index=-1), labels != -1
    expected = F.cross_entropy(outputs[kept], labels[kept], reduction="sum")
    torch.testing.assert_close(loss.sum(outputs, labels), expected)
    assert loss.count(labels) == kept.sum() == 15
    assert loss.correct(outputs, labels) == (outputs.argmax(-1) == labels)[kept].sum()
    assert CrossEntropy().count(labels) == 24
    assert CrossEntropy().counts_samples(labels[:, 0])
    assert not CrossEntropy().counts_samples(labels)  # ranks may pad to different lengths
    assert not loss.counts_samples(labels[:, 0])


def test_a_batch_without_any_token_changes_nothing_and_is_no_nan():
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = model.weight.clone()
    data = TensorDataset(torch.randn(8, 5, 4), torch.full((8, 5), -100))
    metrics = train_one_epoch(
        model, DataLoader(data, 4), optimizer, device="cpu", epoch=0, loss=CrossEntropy(-100)
    )
    assert torch.equal(model.weight, before)
    assert (metrics.loss, metrics.samples) == (0.0, 0)


@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")
def test_a_compiled_model_trains_and_is_saved_by_its_own_names(tmp_path):
    model, _ = parts()
    plain, _ = parts()
    for used in (torch.compile(model, backend="eager"), plain):
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(used.parameters(), lr=0.1)
        fit(
            used,
            make_resumable_loader(blobs(), 8),
            make_eval_loader(blobs(), 8),
            optimizer,
            epochs=1,
            device="cpu",
            checkpoints=CheckpointFolder(tmp_path / type(used).__name__),
        )
    state = CheckpointFolder(tmp_path / "OptimizedModule").load_newest()[1]["model"]
    assert list(state) == list(plain.state_dict())
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-6)


# ---- learning rate


def test_linear_scaling_is_that_of_goyal_et_al():
    assert linear_scaled_lr(0.1, 8192) == pytest.approx(3.2)  # their section 2.1, 8,192 images
    assert linear_scaled_lr(0.1, 256) == 0.1
    with pytest.raises(ValueError, match="base_lr=0"):
        linear_scaled_lr(0, 256)
    with pytest.raises(ValueError, match="base_batch_size=0"):
        linear_scaled_lr(0.1, 256, 0)


def rates(scheduler, optimizer, steps):
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_warm_up_rises_in_a_line_and_falls_in_a_cosine():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    found = rates(warm_up(optimizer, 4, total_steps=12, final_factor=0.1), optimizer, 14)
    assert found[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert found[8] == pytest.approx(2 * (0.1 + 0.9 / 2))
    assert found[12:] == pytest.approx([0.2, 0.2])
    assert all(b <= a for a, b in itertools.pairwise(found[3:]))
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    gradual = rates(warm_up(optimizer, 2, start_factor=0.25), optimizer, 4)
    assert gradual == pytest.approx([1.25, 2.0, 2.0, 2.0])


@pytest.mark.parametrize(
    ("steps", "options", "text"),
    [
        (-1, {}, "warmup_steps=-1"),
        (4, {"total_steps": 4}, "total_steps=4: expected a whole number, at least 5"),
        (4, {"start_factor": 1.5}, r"start_factor=1\.5: expected a number from 0 to 1"),
        (4, {"final_factor": math.nan}, "final_factor=nan"),
    ],
)
def test_warm_up_names_what_is_wrong(steps, options, text):
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    with pytest.raises(ValueError, match=text):
        warm_up(optimizer, steps, **options)


# ---- early stop, progress


def test_early_stop_waits_for_a_better_loss():
    stop = EarlyStop(patience=2, min_delta=0.1)
    told = [stop.update(loss) for loss in (1.0, 0.8, 0.75, 0.5, 0.45, math.nan)]
    assert told == [False, False, False, False, False, True]
    fresh = EarlyStop(patience=2, min_delta=0.1)
    fresh.load_state_dict(stop.state_dict())
    assert fresh.done
    for wrong in ({"patience": 0}, {"patience": 1, "min_delta": -1}):
        with pytest.raises(ValueError, match="expected"):
            EarlyStop(**wrong)


def test_fit_stops_early_and_a_resumed_one_stays_stopped(tmp_path):
    def run():
        model, _ = parts()
        return fit(
            model,
            make_resumable_loader(blobs(), 8),
            make_eval_loader(blobs(), 8),
            torch.optim.SGD(model.parameters(), lr=0.0),  # the loss never falls
            epochs=9,
            device="cpu",
            early_stop=EarlyStop(patience=2),
            checkpoints=CheckpointFolder(tmp_path),
        )

    assert [record.epoch for record in run()] == [0, 1, 2]
    assert [record.epoch for record in run()] == [0, 1, 2]


def test_progress_is_printed_each_few_steps_and_at_the_end(capsys):
    model, optimizer = parts()
    loader = make_resumable_loader(blobs(), 4)
    train_one_epoch(
        model, loader, optimizer, device="cpu", epoch=0, progress=print_progress(every=4)
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["step 4/6", "step 6/6"]
    with pytest.raises(ValueError, match="every=0"):
        print_progress(every=0)


# ---- random states


def draw():
    return torch.rand(3).tolist(), random.random(), np.random.rand(), random.gauss(0, 1)


def test_random_state_goes_on_where_it_was_captured(tmp_path):
    seed_everything(1, 2)
    np.random.randn(), random.gauss(0, 1)  # both keep a second value back
    state = capture_random_state()
    torch.save(state, tmp_path / "state.pt")
    expected = [draw(), np.random.randn(), random.gauss(0, 1)]
    seed_everything(5)
    restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [draw(), np.random.randn(), random.gauss(0, 1)] == expected
    with random_state_kept():
        draw()
    after = draw()
    restore_random_state(state)
    draw(), np.random.randn(), random.gauss(0, 1)
    assert draw() == after


def test_keys_draw_differently_and_repeatably():
    drawn = []
    for key in [(0, 1), (1, 0), (0, 1, 0), (0, 1)]:
        seed_everything(*key)
        drawn.append(draw())
    assert drawn[0] == drawn[3]
    assert len({str(each) for each in drawn}) == 3


class Coin:
    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.rand(2) + random.random()


def test_seeded_samples_depend_on_seed_epoch_and_index_alone():
    samples = SeededSamples(Coin(), seed=1)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first = [samples[i].tolist() for i in range(6)]
    assert torch.equal(torch.rand(1), expected)  # nothing was drawn outside
    assert [samples[i].tolist() for i in reversed(range(6))] == first[::-1]
    assert len({str(value) for value in first}) == 6
    samples.set_epoch(1)
    assert samples[0].tolist() != first[0]
    assert SeededSamples(Coin(), seed=2)[0].tolist() != first[0]


def test_workers_hear_of_the_epoch(no_process_left):
    samples = SeededSamples(Coin())
    loader = make_resumable_loader(samples, 6, num_workers=1)
    for epoch in (0, 3):
        samples.set_epoch(epoch)
        loader.batch_sampler.set_epoch(epoch)
        (batch,) = loader
        order = next(iter(loader.batch_sampler))
        assert torch.equal(batch, torch.stack([samples[index] for index in order]))
    del loader


# ---- resume, in one process


class Interrupted(Exception):
    pass


def resumable_run(folder, stop_at=None, save_every=2, epochs=3):
    """Losses by (epoch, step), weights and records; raises in the step `stop_at`."""
    model, optimizer = parts()
    seen, loader = {}, make_resumable_loader(blobs(), 4, accumulation_steps=2)

    def note(step, _, loss):
        sampler = loader.batch_sampler
        if sampler.epoch * sampler.steps + step == stop_at:
            raise Interrupted
        seen[sampler.epoch, step] = loss.item()

    torch.manual_seed(2)
    try:
        records = fit(
            model,
            loader,
            make_eval_loader(blobs(), 8),
            optimizer,
            epochs=epochs,
            device="cpu",
            progress=note,
            accumulation_steps=2,
            scheduler=warm_up(optimizer, 3),
            checkpoints=CheckpointFolder(folder, keep=2),
            save_every=save_every,
        )
    except Interrupted:
        return seen, None, None
    kept = [(record.train_loss, record.test_loss) for record in records]
    return seen, model.state_dict(), kept


@settings(
    max_examples=15,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(stops=st.lists(st.integers(1, 18), max_size=3), save_every=st.integers(1, 9))
def test_stopped_at_any_steps_it_ends_with_the_same_bits(tmp_path_factory, stops, save_every):
    whole = resumable_run(tmp_path_factory.mktemp("whole"), save_every=save_every)
    folder, seen = tmp_path_factory.mktemp("parts"), {}
    for stop in sorted(stops):
        seen |= resumable_run(folder, stop, save_every)[0]
    rest, weights, records = resumable_run(folder, None, save_every)
    assert seen | rest == whole[0]
    assert records == whole[2]
    assert all(torch.equal(value, whole[1][name]) for name, value in weights.items())


def test_a_finished_run_is_not_trained_again(tmp_path, capsys):
    first = resumable_run(tmp_path)
    capsys.readouterr()
    seen, weights, records = resumable_run(tmp_path)
    assert seen == {}
    assert records == first[2]
    assert all(torch.equal(value, first[1][name]) for name, value in weights.items())
    assert "epoch 4, step 0" in capsys.readouterr().out
    assert len(resumable_run(tmp_path, epochs=4)[0]) == 6  # more epochs were asked for


def test_what_can_not_be_resumed_is_named(tmp_path):
    model, optimizer = parts()
    test_loader, folder = make_eval_loader(blobs(), 8), CheckpointFolder(tmp_path)
    options = {"epochs": 1, "device": "cpu"}

    def train(loader, **more):
        return fit(model, loader, test_loader, optimizer, **options, **more)

    with pytest.raises(ValueError, match="has a DistributedSampler: make it with make_resum"):
        train(make_train_loader(blobs(), 8), checkpoints=folder)
    with pytest.raises(ValueError, match="save_every=3: pass checkpoints="):
        train(make_resumable_loader(blobs(), 8), save_every=3)
    sampler = make_resumable_loader(blobs(), 8).batch_sampler
    with pytest.raises(ValueError, match="has no generator"):
        train(DataLoader(blobs(), batch_sampler=sampler), checkpoints=folder)
    train(make_resumable_loader(blobs(), 8), checkpoints=folder)
    with pytest.raises(ValueError, match="holds model.*but this run has early_stop, model"):
        train(make_resumable_loader(blobs(), 8), checkpoints=folder, early_stop=EarlyStop(2))
    with pytest.raises(ValueError, match="the saved run had global_batch_size=8"):
        train(make_resumable_loader(blobs(), 4), checkpoints=folder)


def test_settling_the_buckets_of_a_bare_model_does_nothing():
    model, _ = parts()
    loader = make_resumable_loader(blobs(), 8)
    settle_buckets(model, loader, CrossEntropy(), MixedPrecision("fp32", "cpu"), "cpu")
    assert all(parameter.grad is None for parameter in model.parameters())


def test_train_mnist_5k_goes_on_in_mid_epoch(tmp_path, monkeypatch, capsys):
    def a_tenth(train=True):
        return TensorDataset(*[part[::10] for part in load_mnist_5k(train).tensors])

    monkeypatch.setattr(digits, "load_mnist_5k", a_tenth)
    options = {"global_batch_size": 40, "accumulation_steps": 2, "save_every": 7}
    whole = train_mnist_5k(epochs=2, checkpoints=CheckpointFolder(tmp_path / "a"), **options)
    folder = CheckpointFolder(tmp_path / "b", keep=9)
    train_mnist_5k(epochs=1, checkpoints=folder, **options)
    folder.paths()[0].unlink()  # what is left is the save after step 7
    capsys.readouterr()
    again = train_mnist_5k(epochs=2, checkpoints=folder, **options)
    assert "epoch 1, step 7" in capsys.readouterr().out
    losses = [[(r.train_loss, r.test_loss) for r in records] for records in (whole, again)]
    assert losses[0] == losses[1]


def test_importing_the_loop_starts_nothing():
    code = "import ddp_helpers.training, torch; assert not torch.cuda.is_initialized()"
    subprocess.run([sys.executable, "-c", code], check=True)
