"""What ranks have to say to each other, with threads as ranks; tests/distributed has real ones."""

import copy
import threading
import time

import pytest
import torch
from thread_ranks import Averaged, on_ranks
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from ddp_helpers.checkpoints.folder import CheckpointFolder
from ddp_helpers.data.loaders import make_eval_loader, make_resumable_loader, make_train_loader
from ddp_helpers.training import evaluate, fit, train_one_epoch
from ddp_helpers.training.early_stop import EarlyStop
from ddp_helpers.training.losses import CrossEntropy
from ddp_helpers.training.steps import any_rank

pytestmark = pytest.mark.usefixtures("one_thread")


def samples(n=23):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    inputs = torch.randn(n, 4, generator=generator, dtype=torch.float64)
    return TensorDataset(inputs + labels[:, None], labels)


def make_model():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def train(model, loader, epoch=1, **options):
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    metrics = train_one_epoch(model, loader, optimizer, device="cpu", epoch=epoch, **options)
    return metrics, weights(model)


def train_on_ranks(loaders, **options):
    models = [make_model() for _ in loaders]  # here: chance is shared by the threads
    return on_ranks(
        lambda rank: train(Averaged(models[rank]), loaders[rank], **options), len(loaders)
    )


def assert_same_training(found, expected):
    metrics, expected_weights = expected
    for own, its_weights in found:
        torch.testing.assert_close(its_weights, expected_weights, rtol=1e-9, atol=1e-12)
        assert own.loss == pytest.approx(metrics.loss, rel=1e-9)
        assert own.samples == metrics.samples
    assert len({own.seconds for own, _ in found}) == 1  # that of the slowest


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_any_number_of_ranks_and_micro_batches_takes_the_steps_of_one(world_size, accumulation):
    expected = train(make_model(), make_resumable_loader(samples(), 8, seed=2))
    loaders = [
        make_resumable_loader(
            samples(), 8, rank=rank, world_size=world_size, seed=2, accumulation_steps=accumulation
        )
        for rank in range(world_size)
    ]
    found, group = train_on_ranks(loaders, accumulation_steps=accumulation)
    assert_same_training(found, expected)
    # 3 steps of 4 gradients, whether all is finite, the slowest's time and the totals: the sampler
    # knows the counts
    assert group.calls == [["all_reduce"] * (3 * 4 + 3)] * world_size


def test_a_distributed_sampler_tells_the_counts_too():
    expected = train(make_model(), make_train_loader(samples(24), 8))
    loaders = [make_train_loader(samples(24), 4, rank=rank, world_size=2) for rank in range(2)]
    found, group = train_on_ranks(loaders)
    assert_same_training(found, expected)
    assert len(group.calls[0]) == 3 * 4 + 3


def test_ranks_ask_one_another_where_nobody_knows_the_counts():
    expected = train(make_model(), DataLoader(samples(12), 4))
    parts = [[0, 4, 8], [1, 2, 3, 5, 6, 7, 9, 10, 11]]  # of each batch of four: one, three
    loaders = [
        DataLoader(torch.utils.data.Subset(samples(12), part), size)
        for part, size in zip(parts, (1, 3), strict=True)
    ]
    found, group = train_on_ranks(loaders)
    assert_same_training(found, expected)
    assert len(group.calls[0]) == 3 * (4 + 1) + 3


def test_tokens_are_counted_over_all_ranks_though_a_sampler_knows_the_samples():
    inputs, _ = samples(8).tensors
    labels = torch.tensor([[0, -1], [1, 2], [2, -1], [-1, -1], [0, 1], [1, -1], [-1, 2], [0, 0]])
    data = TensorDataset(inputs[:, None].repeat(1, 2, 1), labels)
    loss = CrossEntropy(ignore_index=-1)
    expected = train(make_model(), make_resumable_loader(data, 4), loss=loss)
    assert expected[0].samples == 10
    loaders = [make_resumable_loader(data, 4, rank=rank, world_size=2) for rank in range(2)]
    found, group = train_on_ranks(loaders, loss=loss)
    assert_same_training(found, expected)
    assert len(group.calls[0]) == 2 * (4 + 1) + 3


def test_a_rank_that_has_run_out_goes_on_with_empty_batches():
    expected = train(
        make_model(), DataLoader(samples(10), batch_sampler=[[0, 1, 8], [2, 3, 9], [4, 5], [6, 7]])
    )
    loaders = [
        DataLoader(torch.utils.data.Subset(samples(10), range(8)), 2),
        DataLoader(torch.utils.data.Subset(samples(10), range(8, 10)), 1),
    ]
    found, _ = train_on_ranks(loaders, uneven_inputs=True)
    assert_same_training(found, expected)


def test_a_rank_without_any_batch_is_an_error_on_all_ranks():
    class Nothing(DataLoader):
        def __iter__(self):
            return iter(())

    loaders = [DataLoader(samples(4), 2), Nothing(samples(4), 2)]
    models = [make_model() for _ in loaders]

    def run(rank):
        with pytest.raises(ValueError, match="^uneven_inputs: a rank has no batch at all: give "):
            train(Averaged(models[rank]), loaders[rank], uneven_inputs=True)

    on_ranks(run, 2)


def test_a_bare_model_on_several_ranks_is_refused():
    loader = DataLoader(samples(4), 2)
    models = [make_model(), make_model()]

    def run(rank):
        with pytest.raises(ValueError, match=bare):
            train(models[rank], loader)

    bare = (
        "^the model is bare, but 2 ranks are training: each would go its own way; "
        r"wrap it with DistributedDataParallel\(model\)$"
    )
    _, group = on_ranks(run, 2)
    assert group.calls == [[], []]

    class FSDPModule(nn.Module):  # FSDP2 changes the model's class, and adds no `.module`
        def __init__(self):
            super().__init__()
            self.inner = make_model()

        def forward(self, inputs):
            return self.inner(inputs)

    sharded = [FSDPModule(), FSDPModule()]
    on_ranks(lambda rank: train(sharded[rank], loader), 2)


def test_one_rank_is_enough_for_all_to_know():
    for flags in ([False, True, False], [False, False, False], [True, True, True]):
        found, _ = on_ranks(lambda rank, flags=flags: any_rank(flags[rank]), 3)
        assert found == [any(flags)] * 3
    assert any_rank(True)
    assert not any_rank(False)


@pytest.mark.parametrize("world_size", [2, 3])
def test_evaluation_over_uneven_shares_is_that_of_one_process(world_size):
    whole = samples(7)
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3)).double()
    expected = evaluate(model, make_eval_loader(whole, 7), device="cpu")
    models = [copy.deepcopy(model) for _ in range(world_size)]
    for other in models[1:]:
        other[0].running_mean += 5  # each rank has its own by now; that of rank 0 counts

    def run(rank):
        loader = make_eval_loader(whole, 2, rank=rank, world_size=world_size)
        return evaluate(models[rank], loader, device="cpu")

    found, _ = on_ranks(run, world_size)
    assert found == [found[0]] * world_size
    assert (found[0].correct, found[0].samples) == (expected.correct, 7)
    assert found[0].loss == pytest.approx(expected.loss, rel=1e-9)


def test_fit_allows_uneven_inputs_and_takes_the_time_of_the_slowest(monkeypatch):
    clock = threading.local()  # each rank has a clock, which goes only while it waits for data
    monkeypatch.setattr(time, "perf_counter", lambda: getattr(clock, "now", 0.0))

    class Slow(DataLoader):
        def __iter__(self):
            clock.now = getattr(clock, "now", 0.0) + self.seconds
            return super().__iter__()

    loaders = [Slow(samples(8), 2), Slow(samples(2), 1)]
    loaders[0].seconds, loaders[1].seconds = 2.0, 3.0
    models = [make_model() for _ in loaders]

    def run(rank):
        model, loader = Averaged(models[rank]), loaders[rank]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        options = {"epochs": 1, "device": "cpu", "uneven_inputs": True}
        return fit(model, loader, loader, optimizer, **options)[0]

    records, _ = on_ranks(run, 2)
    assert records[0] == records[1]
    assert records[0].samples_per_second == 10 / 3.0
    assert records[0].seconds == 6.0  # of training, then of evaluation


def fit_on(world_size, folder=None, epochs=2, stops=None, **options):
    models = [make_model() for _ in range(world_size)]

    def run(rank):
        place = {"rank": rank, "world_size": world_size}
        model = Averaged(models[rank])
        return fit(
            model,
            make_resumable_loader(samples(), 8, **place),
            make_eval_loader(samples(9), 4, **place),
            torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
            epochs=epochs,
            device="cpu",
            early_stop=stops[rank] if stops else None,
            checkpoints=folder and CheckpointFolder(folder),
            **options,
        )

    return on_ranks(run, world_size)[0]


def test_all_ranks_stop_in_the_epoch_in_which_one_would():
    stops = [EarlyStop(patience=9), EarlyStop(patience=1, min_delta=100.0)]
    records = fit_on(2, epochs=6, stops=stops)
    assert [record.epoch for record in records[0]] == [0, 1]
    assert records[0] == records[1]


class Interrupted(Exception):
    pass


def interrupted_fit(world_size, folder):
    """Ends in the second epoch, right after the checkpoint of its first step."""

    def stop(step, steps, loss):
        if (folder / "stop").exists() and step == 2:
            raise Interrupted
        assert steps == 3

    def mark(record):
        (folder / "stop").touch()

    with pytest.raises(Interrupted):
        fit_on(world_size, folder, save_every=1, progress=stop, on_epoch=mark)
    (folder / "stop").unlink()


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 3), (3, 2), (4, 1)])
def test_a_run_goes_on_in_mid_epoch_on_any_number_of_ranks(tmp_path, capsys, before, after):
    expected = fit_on(1)[0]
    interrupted_fit(before, tmp_path)
    capsys.readouterr()
    found = fit_on(after, tmp_path)
    told = capsys.readouterr().out.splitlines()
    changed = (
        f"saved on {before} ranks, resumed on {after}: the same samples in each step, but other "
        "random draws and other rounding"
    )
    assert told[:-1] == ([changed] if before != after else [])
    newest = "checkpoint-000005-"
    assert told[-1].startswith(f"resumed from {newest}")
    assert told[-1].endswith(".pt: epoch 2, step 1")
    for records in found:
        assert [record.epoch for record in records] == [0, 1]
        for own, its in zip(records, expected, strict=True):
            assert own.train_loss == pytest.approx(its.train_loss, rel=1e-9)
            assert own.test_loss == pytest.approx(its.test_loss, rel=1e-9)
