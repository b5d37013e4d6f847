"""Losses, metrics and batches in every form that `fit` takes, and each wrong one by name."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, SequentialLR, StepLR
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset, TensorDataset

from ddp_helpers.checkpoints.file import CheckpointError, load_checkpoint
from ddp_helpers.checkpoints.folder import CheckpointFolder
from ddp_helpers.data.loaders import make_eval_loader, make_resumable_loader, make_train_loader
from ddp_helpers.plots import plot_training
from ddp_helpers.training import evaluate, finite, fit, train_one_epoch
from ddp_helpers.training.best import check_rule, is_best
from ddp_helpers.training.early_stop import EarlyStop
from ddp_helpers.training.objective import as_objective
from ddp_helpers.training.records import EpochRecord
from ddp_helpers.training.report import print_epoch
from ddp_helpers.training.schedule import warm_up

pytestmark = pytest.mark.usefixtures("one_thread")


def numbers(n=12):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 4, generator=generator)
    return x, x.sum(1, keepdim=True)


def make_model():
    torch.manual_seed(1)
    return nn.Linear(4, 1)


def train(loss, batches=None, model=None, **options):
    model = model or make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [numbers()] if batches is None else batches
    return train_one_epoch(model, batches, optimizer, device="cpu", epoch=0, loss=loss, **options)


def line_of(error, function, *args, **options):
    with pytest.raises(error) as caught:
        function(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- regression


def test_a_regression_is_recorded_printed_and_drawn_without_an_accuracy(capsys):
    model = make_model()
    data = TensorDataset(*numbers(40))
    loader, tests = make_train_loader(data, 8), make_eval_loader(data, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    records = fit(model, loader, tests, optimizer, epochs=3, device="cpu", loss=nn.MSELoss())
    assert records[-1].test_loss < records[0].test_loss
    assert records[-1].test_loss == pytest.approx(F.mse_loss(model(data[:][0]), data[:][1]).item())
    assert {record.test_accuracy for record in records} == {None}
    print_epoch(records[-1], 3)
    told = capsys.readouterr().out
    assert "accuracy" not in told
    assert f"test loss {records[-1].test_loss:.3f}" in told
    (axes,) = plot_training(records).axes
    assert "accuracy" not in axes.get_ylabel()
    assert "cross-entropy" not in axes.get_ylabel()
    texts = plot_training({"a": records, "b": records}).axes[0].get_legend().get_texts()
    assert [text.get_text() for text in texts][2:] == ["a (1 rank)", "b (1 rank)"]


def test_metrics_are_recorded_and_printed(capsys):
    model, data = make_model(), TensorDataset(*numbers(10))

    def metrics(model, batch):
        x, y = batch
        return {"mae": ((model(x) - y).abs().sum(), len(x)), "share": (1.0, 4)}

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loaders = make_train_loader(data, 5), make_eval_loader(data, 4)
    options = {"epochs": 1, "device": "cpu", "loss": nn.MSELoss(), "metrics": metrics}
    (record,) = fit(model, *loaders, optimizer, **options)
    assert record.metrics == {
        "mae": pytest.approx((model(data[:][0]) - data[:][1]).abs().mean().item()),
        "share": 3 / 12,
    }
    print_epoch(record, 1)
    assert f"mae {record.metrics['mae']:.3f}  share 0.250  " in capsys.readouterr().out


# ---- wrong forms


BATCH = numbers()


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (
            lambda model, batch: F.mse_loss(model(batch[0]), batch[1]),
            r"loss returned a tensor of shape \(\): expected a pair \(sum, count\), the sum over "
            r"this batch and what the sum over all ranks is to be divided by, such as len\(batch\)",
        ),
        (lambda model, batch: 0.5, r"returned the float 0\.5: expected a pair"),
        (lambda model, batch: None, "loss returned None: expected a pair"),
        (
            lambda model, batch: (model(batch[0]).sum().item(), 4),
            r"returned the float .* as its sum: expected a tensor, .* not with \.item\(\)",
        ),
        (
            lambda model, batch: (model(batch[0]), 4),
            r"loss returned a tensor of shape \(12, 1\) as its sum: .* sum with \.sum\(\)",
        ),
        (lambda model, batch: (model(batch[0]).sum(), "4"), "returned a str as its count"),
        (lambda model, batch: (model(batch[0]).sum(), -4), "the count -4: expected a number, at"),
        (lambda model, batch: (model(batch[0]).sum(), math.nan), "returned the count nan"),
        (
            lambda model, batch: (model(batch[0]).detach().sum(), 4),
            r"the loss has no gradient: .*leave out \.detach\(\), \.item\(\) and no_grad\(\)",
        ),
        (lambda outputs, targets: 0.5, r"loss=<lambda> of \(outputs, targets\) returned the float"),
        (
            lambda net, data: (net.sum(), 4),
            r"of \(outputs, targets\) returned a tuple of 2: .* takes \(model, batch\), by these",
        ),
        ("mse", "loss='mse': expected CrossEntropy"),
        (nn.MSELoss, r"loss=MSELoss: it is the class; give one: MSELoss\(\)"),
        (
            nn.MSELoss(reduction="sum"),
            r'loss=MSELoss\(reduction="sum"\): fit divides .*use reduction="mean", or a function',
        ),
    ],
)
def test_a_wrong_loss_is_one_line_that_says_what_was_found(loss, text):
    with pytest.raises(ValueError, match=text) as caught:
        train(loss)
    assert "\n" not in str(caught.value)


def test_a_loss_whose_parameters_have_other_names_is_told_how_it_was_called():
    with pytest.raises(TypeError) as caught:
        train(lambda net, data: (net(data[0]).sum(), 4))
    (note,) = caught.value.__notes__
    assert note.startswith("loss=<lambda> was called as f(outputs, targets); one that does the")
    assert note.endswith("(model, batch)")
    for taken in (
        lambda model, data: (model(data[0]).sum(), 4),
        lambda net, batch: (net(batch[0]).sum(), 4),
    ):
        assert train(taken).samples == 4


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        ({"x": BATCH[0], "y": BATCH[1]}, "a batch of the loader is a dict of 'x', 'y', but this"),
        ((*BATCH, BATCH[0]), r"is a tuple of 3, but this loss expects \(inputs, targets\): for "),
        (BATCH[0], r"is a tensor of shape \(12, 4\), but .*give loss=f with f\(model, batch\)"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"loss": nn.MSELoss()}])
def test_a_batch_that_is_no_pair_is_named_with_the_way_out(batch, text, options):
    with pytest.raises(ValueError, match=text):
        train_one_epoch(
            make_model(),
            [batch],
            torch.optim.SGD(make_model().parameters(), lr=0.1),
            device="cpu",
            epoch=0,
            **options,
        )


def test_a_batch_with_nothing_to_move_and_a_model_with_nothing_to_train():
    text = line_of(ValueError, train, lambda model, batch: (model(batch).sum(), 1), ["text"])
    assert text.startswith("a batch of the loader is a str, with no tensor in it: expected tensors")
    frozen = make_model().requires_grad_(False)
    model = nn.Sequential(frozen, nn.Identity())
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    options = {"device": "cpu", "epoch": 0, "loss": nn.MSELoss()}
    text = line_of(ValueError, train_one_epoch, model, [BATCH], optimizer, **options)
    assert "let some weight be trained" in text


@pytest.mark.parametrize("zero", [0, torch.tensor(0.0)])
def test_a_step_that_counts_nothing_is_an_error(zero):
    text = line_of(FloatingPointError, train, lambda model, batch: (model(batch[0]).sum(), zero))
    assert text.startswith(
        "rank 0, epoch 1, step 1: the count is 0 on all ranks together: expected"
    )
    assert "count what its sum is divided by" in text


@pytest.mark.parametrize(
    ("metrics", "text"),
    [
        (lambda model, batch: 3.0, r"metrics returned the float 3\.0: expected a dict such as"),
        (lambda model, batch: [("a", 1)], "metrics returned a list of 1: expected a dict"),
        (lambda model, batch: {"a": 1.0}, r'metrics\["a"\] returned the float 1\.0: expected a p'),
        (lambda model, batch: {"a": (1.0, 0)}, r'metrics\["a"\] counted 0 on all ranks together'),
        (lambda model, batch: {"a": (BATCH[0], 1)}, r'metrics\["a"\] returned a tensor of shape'),
    ],
)
def test_wrong_metrics_are_named(metrics, text):
    with pytest.raises(ValueError, match=text) as caught:
        evaluate(make_model(), [BATCH], device="cpu", loss=nn.MSELoss(), metrics=metrics)
    assert "\n" not in str(caught.value)


def test_loaders_that_can_not_be_right_are_named():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    text = line_of(ValueError, train, nn.MSELoss(), DataLoader(Stream()))
    assert "the training loader has no length" in text
    data = TensorDataset(*numbers(7))
    padded = DataLoader(data, 4, sampler=DistributedSampler(data, 2, 0))
    text = line_of(ValueError, evaluate, make_model(), padded, device="cpu", loss=nn.MSELoss())
    assert "DistributedSampler repeats 1 of 7 samples" in text
    assert "make_eval_loader" in text
    even = DataLoader(data, 4, sampler=DistributedSampler(data, 7, 0))
    assert evaluate(make_model(), even, device="cpu", loss=nn.MSELoss()).samples == 1


def test_own_collate_functions_are_used_everywhere():
    data = [(torch.ones(length, 4), float(length)) for length in (1, 2, 3, 4, 5)]

    def padded(samples):
        xs, ys = zip(*samples, strict=True)
        return {"x": nn.utils.rnn.pad_sequence(xs, batch_first=True), "y": torch.tensor(ys)}

    for loader in (
        make_train_loader(data, 2, collate_fn=padded),
        make_eval_loader(data, 2, collate_fn=padded),
        make_resumable_loader(data, 2, collate_fn=padded),
    ):
        assert sum(len(batch["y"]) for batch in loader) == 5
        assert {tuple(batch) for batch in loader} == {("x", "y")}
    last = [make_resumable_loader(data[:1], 2, rank=1, world_size=2, collate_fn=padded)]
    ((batch,),) = last
    assert batch["x"].shape == (0, 1, 4)


def test_a_regression_without_a_loss_is_told_which():
    with pytest.raises(ValueError, match=r"labels of type torch\.float32.*loss=nn\.MSELoss\(\)"):
        train_one_epoch(
            make_model(),
            [BATCH],
            torch.optim.SGD(make_model().parameters(), lr=0.1),
            device="cpu",
            epoch=0,
        )


def test_an_objective_stays_itself():
    once = as_objective(nn.MSELoss())
    assert as_objective(once) is once
    given = nn.MSELoss()
    as_objective(given)
    assert given.reduction == "mean"  # the caller's own is left alone


# ---- not finite


def test_a_long_epoch_is_looked_at_on_its_way(monkeypatch):
    seen = []

    def loss(model, batch):
        seen.append(batch)
        value = model(batch[0]).sum()
        return value * (math.nan if len(seen) == 3 else 1), 4

    monkeypatch.setattr(finite, "_LOOK_EVERY", 5)
    text = line_of(FloatingPointError, train, loss, [BATCH] * 40)
    assert text.startswith("rank 0, epoch 1, step 3: the loss is nan: expected a finite number")
    assert len(seen) == 5


def test_a_test_loss_that_is_not_finite_stops_before_anything_is_saved(tmp_path):
    model = make_model()
    data = TensorDataset(*numbers())
    spoilt = TensorDataset(numbers()[0], numbers()[1] * math.inf)
    arguments = model, make_resumable_loader(data, 4), make_eval_loader(spoilt, 4)
    options = {"epochs": 1, "device": "cpu", "loss": nn.MSELoss()}
    folder = CheckpointFolder(tmp_path / "folder")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    places = {"checkpoints": folder, "checkpoint_path": tmp_path / "one.pt"}
    text = line_of(FloatingPointError, fit, *arguments, optimizer, **options, **places)
    assert text.startswith("epoch 1: the loss on the test loader is inf: expected a finite number")
    assert not folder.paths()
    assert not (tmp_path / "one.pt").exists()


@pytest.mark.parametrize("save_every", [1, None])
def test_weights_that_a_step_has_made_infinite_are_not_saved(tmp_path, save_every):
    model, folder = make_model(), CheckpointFolder(tmp_path)
    data = TensorDataset(*numbers(4))
    text = line_of(
        FloatingPointError,
        fit,
        model,
        make_resumable_loader(data, 4),
        make_eval_loader(data, 4),
        torch.optim.SGD(model.parameters(), lr=3e38),  # times any gradient: inf
        epochs=1,
        device="cpu",
        loss=nn.MSELoss(),
        checkpoints=folder,
        save_every=save_every,
    )
    assert text.startswith("rank 0, epoch 1, step 1: the norm of the weights is ")
    assert "lower the learning rate" in text
    assert not folder.paths()


def test_sparse_and_absent_gradients_are_looked_at_too():
    model = nn.Sequential(nn.Embedding(5, 1, sparse=True))
    model.unused = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"device": "cpu", "epoch": 0}
    loss = lambda model, batch: (model(batch).sum() * scale, len(batch))
    batches = [torch.tensor([0, 1, 1]), torch.tensor([3])]
    scale = 1.0
    assert train_one_epoch(model, batches, optimizer, loss=loss, **options).samples == 4
    scale = torch.tensor(math.inf)
    with pytest.raises(FloatingPointError, match="step 1: the loss is"):
        train_one_epoch(model, batches, optimizer, loss=loss, **options)


# ---- the best checkpoint


def records_of(*losses):
    return [
        EpochRecord(n, 1.0, loss, 1 - loss, 1.0, 1.0, 1, {"f1": loss})
        for n, loss in enumerate(losses)
    ]


def test_a_rule_says_which_epoch_is_best():
    assert is_best(records_of(0.5), "min loss")
    assert is_best(records_of(0.5, 0.6, 0.4), "min loss")
    assert is_best(records_of(0.5, 0.6, 0.4), "max accuracy")
    assert not is_best(records_of(0.5, 0.6, 0.4), "max f1")
    assert is_best(records_of(0.5, 0.4, 0.6), "max f1")
    assert not is_best(records_of(0.5, 0.5), "min loss")  # the first of equals
    assert not is_best(records_of(math.nan), "min f1")
    assert is_best(records_of(math.nan, 3.0), "min f1")
    text = line_of(ValueError, is_best, records_of(0.5), "max recall")
    assert text == 'best="max recall", but an epoch has loss, accuracy, f1: name one of these'
    for wrong in ("loss", "least loss", "min", "min a b", None):
        assert line_of(ValueError, check_rule, wrong).startswith(f"best={wrong!r}: expected")


def run_with_losses(folder, losses, epochs=None, **options):
    """A run whose test loss in each epoch is given; the model counts its epochs."""
    model = make_model()
    data = TensorDataset(*numbers(4))

    def loss(model, batch):
        if torch.is_grad_enabled():
            return model(batch[0]).sum(), len(batch[0])
        return torch.tensor(losses[epoch()]), 1

    loader = make_resumable_loader(data, 4)
    epoch = lambda: loader.batch_sampler.epoch
    return fit(
        model,
        loader,
        make_eval_loader(data, 4),
        torch.optim.SGD(model.parameters(), lr=0.1),
        epochs=epochs or len(losses),
        device="cpu",
        loss=loss,
        checkpoints=folder,
        **options,
    )


def best_epoch(folder):
    return len(folder.load_best()[1]["records"]) - 1


def test_neither_keep_nor_early_stop_takes_the_best(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=1)
    losses = [5.0, 3.0, 4.0, 4.0, 4.0, 4.0, 2.0]
    records = run_with_losses(folder, losses, early_stop=EarlyStop(patience=3))
    assert [record.test_loss for record in records] == losses[:5]
    assert best_epoch(folder) == 1
    assert len(folder.paths()) == 1
    path, state = folder.load_best()
    assert path.name.startswith("best-checkpoint-000002-")
    assert {"model", "optimizer"} <= state.keys()
    assert sorted(path.name[:5] for path in tmp_path.iterdir()) == ["best-", "check"]


def test_a_resumed_run_knows_the_best_of_the_epochs_before(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    losses = [5.0, 3.0, 4.0, 3.5, 2.0, 6.0]
    for epochs, expected in ((1, 0), (2, 1), (4, 1), (5, 4), (6, 4)):
        run_with_losses(folder, losses, epochs)
        assert best_epoch(folder) == expected
    # killed after an epoch was saved and before it was kept as the best
    other = CheckpointFolder(tmp_path / "other")
    run_with_losses(other, losses, 5)
    other.best()[0].unlink()
    run_with_losses(other, losses, 5)
    assert best_epoch(other) == 4


def test_the_rule_may_name_a_metric(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=1)
    values = iter([0.1, 0.7, 0.2])
    metrics = lambda model, batch: {"recall": (next(values), 1)}
    run_with_losses(folder, [3.0, 2.0, 1.0], metrics=metrics, best="max recall")
    assert best_epoch(folder) == 1
    with pytest.raises(ValueError, match="best='best': expected"):
        run_with_losses(folder, [1.0], best="best")


def test_a_best_checkpoint_that_is_missing_or_damaged_is_named(tmp_path, monkeypatch):
    folder = CheckpointFolder(tmp_path)
    with pytest.raises(CheckpointError, match="no best checkpoint in"):
        folder.load_best()

    def refuse(*_):
        raise OSError("no second names here")

    monkeypatch.setattr("os.link", refuse)  # as on FAT, and some network disks
    run_with_losses(folder, [1.0])
    (best,), (newest,) = folder.best(), folder.paths()
    assert best.read_bytes() == newest.read_bytes()
    best.write_bytes(best.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="is damaged"):
        folder.load_best()
    assert load_checkpoint(newest)["model"]


# ---- a schedule that is resumed


def scheduled(folder, epochs, make):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = TensorDataset(*numbers())
    rates = []
    fit(
        model,
        make_resumable_loader(data, 4),
        make_eval_loader(data, 4),
        optimizer,
        epochs=epochs,
        device="cpu",
        loss=nn.MSELoss(),
        scheduler=make(optimizer, 3 * epochs),
        checkpoints=folder,
        progress=lambda *_: rates.append(optimizer.param_groups[0]["lr"]),
    )
    return rates


SCHEDULES = {
    "warm_up": lambda optimizer, steps: warm_up(optimizer, 2, total_steps=steps),
    "lambda": lambda optimizer, steps: LambdaLR(optimizer, lambda step: 1 - step / steps),
    "cosine": lambda optimizer, steps: CosineAnnealingLR(optimizer, steps),
    "sequence": lambda optimizer, steps: SequentialLR(
        optimizer,
        [LambdaLR(optimizer, lambda step: 1.0), CosineAnnealingLR(optimizer, steps - 2)],
        [2],
    ),
}


@pytest.mark.filterwarnings("ignore:The epoch parameter in:UserWarning")
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_longer_decay_is_refused_on_a_resume(tmp_path, name):
    folder = CheckpointFolder(tmp_path)
    scheduled(folder, 2, SCHEDULES[name])
    text = line_of(ValueError, scheduled, folder, 4, SCHEDULES[name])
    assert "else the learning rate jumps" in text
    assert folder.paths()[0].name in text
    assert scheduled(folder, 2, SCHEDULES[name]) == []  # the same as before is welcome


def test_more_epochs_with_the_same_schedule_are_told(tmp_path, capsys):
    folder = CheckpointFolder(tmp_path)
    steady = lambda optimizer, steps: StepLR(optimizer, 2, gamma=0.5)
    first = scheduled(folder, 2, steady)
    assert "epochs was" not in capsys.readouterr().out
    rest = scheduled(folder, 3, steady)
    assert (
        f"epochs was 2 and is 3 now: the scheduler goes on as it was, from the learning rate "
        f"{first[-1]:.3g};" in capsys.readouterr().out
    )
    assert first + rest == pytest.approx([0.1 * 0.5 ** (step // 2) for step in range(1, 10)])
