"""The training loop in one process; tests/distributed has the ranks."""

import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ddp_helpers.checkpoints.file import load_checkpoint
from ddp_helpers.data import load_mnist_5k, make_eval_loader, make_train_loader
from ddp_helpers.model import MLP
from ddp_helpers.training import EpochRecord, digits, evaluate, fit, train_mnist_5k, train_one_epoch

pytestmark = pytest.mark.usefixtures("one_thread")


def blobs(n=60, seed=0):
    """Three classes that a small model tells apart."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    return TensorDataset(torch.randn(n, 4, generator=generator) + 4 * labels[:, None], labels)


def parts(seed=0, lr=0.05):
    torch.manual_seed(seed)
    model = MLP(4, 16, 3)
    return model, torch.optim.Adam(model.parameters(), lr=lr)


def test_train_one_epoch_does_what_the_plain_loop_does():
    model, optimizer = parts()
    twin, twin_optimizer = parts()
    loader = make_train_loader(blobs(), 8, seed=3)
    metrics = train_one_epoch(model, loader, optimizer, device="cpu", epoch=2)

    loader.sampler.set_epoch(2)
    losses = []
    for inputs, labels in loader:
        twin_optimizer.zero_grad()
        loss = nn.functional.cross_entropy(twin(inputs), labels)
        loss.backward()
        twin_optimizer.step()
        losses += [loss.item()] * len(labels)
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert metrics.loss == pytest.approx(sum(losses) / 60)
    assert metrics.samples == 60
    assert metrics.samples_per_second == pytest.approx(60 / metrics.seconds)


def test_each_epoch_has_an_order_of_its_own():
    seen = []

    class Spy(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(1, 3)

        def forward(self, inputs):
            seen.append(tuple(inputs.flatten().tolist()))
            return self.layer(inputs)

    model = Spy()
    data = TensorDataset(torch.arange(12.0)[:, None], torch.arange(12) % 3)
    loader = make_train_loader(data, 12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    for epoch in (0, 1, 0):
        train_one_epoch(model, loader, optimizer, device="cpu", epoch=epoch)
    assert seen[0] != seen[1]
    assert seen[0] == seen[2]


def test_progress_is_told_each_step():
    model, optimizer = parts()
    steps = []
    loader = make_train_loader(blobs(), 25)
    train_one_epoch(
        model, loader, optimizer, device="cpu", epoch=0, progress=lambda *step: steps.append(step)
    )
    assert [(step, of) for step, of, _ in steps] == [(1, 3), (2, 3), (3, 3)]
    assert all(loss.ndim == 0 and not loss.requires_grad for *_, loss in steps)


def test_evaluate_is_a_mean_over_samples_whatever_the_batches():
    model, _ = parts()
    data = blobs(31)
    logits = model(data.tensors[0])
    loss = nn.functional.cross_entropy(logits, data.tensors[1]).item()
    correct = (logits.argmax(1) == data.tensors[1]).sum().item()
    for batch in (1, 4, 7, 31, 100):
        metrics = evaluate(model, make_eval_loader(data, batch), device="cpu")
        assert metrics.loss == pytest.approx(loss, abs=1e-6)
        assert (metrics.correct, metrics.samples) == (correct, 31)
        assert metrics.accuracy == correct / 31


def test_evaluate_leaves_each_part_in_its_mode_and_builds_no_graph():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    model.train()
    model[1].eval()  # a frozen layer
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first = evaluate(model, make_eval_loader(blobs(), 7), device="cpu")
    assert [part.training for part in model] == [True, False, True, True]
    assert first == evaluate(model, make_eval_loader(blobs(), 7), device="cpu")  # no dropout
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_nothing_to_evaluate_and_nothing_to_train_on_are_errors():
    model, optimizer = parts()
    nothing = DataLoader(TensorDataset(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)))
    with pytest.raises(ValueError, match="nothing to evaluate"):
        evaluate(model, nothing, device="cpu")
    with pytest.raises(ValueError, match="no batch"):
        train_one_epoch(model, nothing, optimizer, device="cpu", epoch=0)


def test_fit_learns_records_and_reports():
    model, optimizer = parts()
    seen = []
    records = fit(
        model,
        make_train_loader(blobs(), 10),
        make_eval_loader(blobs(30, seed=1), 10),
        optimizer,
        epochs=5,
        device="cpu",
        on_epoch=seen.append,
    )
    assert seen == records
    assert [record.epoch for record in records] == [0, 1, 2, 3, 4]
    assert records[-1].train_loss < records[0].train_loss
    assert records[-1].test_accuracy > 0.8
    assert all(record.world_size == 1 and record.seconds > 0 for record in records)
    assert pickle.loads(pickle.dumps(records)) == records
    with pytest.raises(AttributeError):
        records[0].epoch = 7


@pytest.mark.parametrize(("epochs", "start"), [(0, 0), (3, 4), (3, -1)])
def test_fit_names_wrong_epochs(epochs, start):
    model, optimizer = parts()
    loader = make_eval_loader(blobs(), 10)
    with pytest.raises(ValueError, match=f"epochs={epochs}, start_epoch={start}"):
        fit(model, loader, loader, optimizer, epochs=epochs, start_epoch=start, device="cpu")


def test_a_resumed_fit_ends_with_the_same_weights(tmp_path):
    def run(path, epochs, start_epoch=0):
        model, optimizer = parts()
        if start_epoch:
            saved = load_checkpoint(path)
            model.load_state_dict(saved["model"])
            optimizer.load_state_dict(saved["optimizer"])
            assert saved["epoch"] == start_epoch
        records = fit(
            model,
            make_train_loader(blobs(), 8),
            make_eval_loader(blobs(30, seed=1), 10),
            optimizer,
            epochs=epochs,
            device="cpu",
            start_epoch=start_epoch,
            checkpoint_path=path,
        )
        return records, load_checkpoint(path)["model"]

    whole, expected = run(tmp_path / "whole.pt", epochs=4)
    run(tmp_path / "parts.pt", epochs=2)
    rest, found = run(tmp_path / "parts.pt", epochs=4, start_epoch=2)
    assert [record.epoch for record in rest] == [2, 3]
    assert [record.test_loss for record in rest] == [record.test_loss for record in whole[2:]]
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_train_mnist_5k_prints_a_line_an_epoch_and_resumes(tmp_path, capsys, monkeypatch):
    def a_tenth(train=True):
        return TensorDataset(*[part[::10] for part in load_mnist_5k(train).tensors])

    monkeypatch.setattr(digits, "load_mnist_5k", a_tenth)
    path = tmp_path / "mnist.pt"
    first = train_mnist_5k(epochs=1, global_batch_size=40, checkpoint_path=path)
    assert isinstance(first[0], EpochRecord)
    line = capsys.readouterr().out
    assert line.startswith("epoch 1/1")
    assert "(1 rank)" in line
    assert f"{first[0].test_accuracy:.1%}" in line
    torch.rand(7)  # chance outside must not matter
    assert train_mnist_5k(epochs=1, global_batch_size=40)[0].test_loss == first[0].test_loss
    capsys.readouterr()
    again = train_mnist_5k(epochs=2, global_batch_size=40, checkpoint_path=path, resume=True)
    assert [record.epoch for record in again] == [1]
    assert again[0].train_loss < first[0].train_loss
    assert capsys.readouterr().out.startswith("epoch 2/2")


@pytest.mark.parametrize("size", [0, -4, 2.5, "64", True])
def test_train_mnist_5k_names_a_wrong_batch_size(size):
    with pytest.raises(ValueError, match="global_batch_size="):
        train_mnist_5k(epochs=1, global_batch_size=size)
