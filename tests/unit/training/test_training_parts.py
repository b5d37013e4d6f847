"""The parts of a training run, one by one: what each hands on, refuses and says."""

import io
import math
import sys
import time
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from thread_ranks import on_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader, TensorDataset

from ddp_helpers.checkpoints.file import save_checkpoint
from ddp_helpers.checkpoints.folder import CheckpointFolder
from ddp_helpers.checkpoints.random_state import seed_everything
from ddp_helpers.data.loaders import make_eval_loader, make_resumable_loader
from ddp_helpers.model import SmallCNN
from ddp_helpers.training import (
    digits,
    evaluate,
    fit,
    loop,
    resume,
    train_mnist_5k,
    train_one_epoch,
)
from ddp_helpers.training.checks import check_epochs, check_loader, check_shares
from ddp_helpers.training.early_stop import EarlyStop
from ddp_helpers.training.losses import CrossEntropy
from ddp_helpers.training.precision import MixedPrecision, as_precision, norm
from ddp_helpers.training.records import EpochRecord
from ddp_helpers.training.report import print_epoch, print_progress
from ddp_helpers.training.resume import ResumableRun, settle_buckets
from ddp_helpers.training.schedule import linear_scaled_lr, warm_up
from ddp_helpers.training.steps import EpochTotals, any_rank, micro_batches, until_all_are_done

pytestmark = pytest.mark.usefixtures("one_thread")


def samples(n=23):
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(n, 4, generator=generator), torch.arange(n) % 3)


def make_model():
    torch.manual_seed(1)
    return nn.Linear(4, 3)


def error_of(function, *args, **options):
    with pytest.raises(ValueError, match=".") as caught:
        function(*args, **options)
    return str(caught.value)


# ---- checks, schedule, early stop


def test_a_batch_that_can_not_be_shared_names_one_that_can():
    check_shares(64, 1)
    check_shares(1, 1)
    check_shares(6, 3)
    told = (
        "global_batch_size={} can't be shared equally by 4 ranks: use a multiple of 4, "
        "for instance {}"
    )
    assert error_of(check_shares, 11, 4) == told.format(11, 8)
    assert error_of(check_shares, 3, 4) == told.format(3, 4)
    expected = "global_batch_size=0: expected a whole number, at least 1"
    assert error_of(check_shares, 0, 4) == expected


def test_a_loader_that_does_not_fit_is_named():
    data = samples(8)
    check_loader(make_resumable_loader(data, 4, accumulation_steps=2), 2)
    check_loader(DataLoader(data, 8), 3)  # one batch; it knows of no accumulation
    assert error_of(check_loader, DataLoader(data, 8), 0) == (
        "accumulation_steps=0: expected a whole number, at least 1"
    )
    assert error_of(check_loader, DataLoader(data, 9, drop_last=True), 1) == (
        "the training loader has no batch: use a smaller batch_size_per_rank"
    )
    assert error_of(check_loader, make_resumable_loader(data, 4, accumulation_steps=2), 3) == (
        "accumulation_steps=3, but the loader was made for 2: give both the same number"
    )


def test_wrong_epochs_and_saves_are_named(tmp_path):
    folder = CheckpointFolder(tmp_path)
    check_epochs(1, 0, None, None)
    check_epochs(2, 2, 1, folder)
    for epochs, start in ((0, 0), (3, 4), (3, -1)):
        assert error_of(check_epochs, epochs, start, None, None) == (
            f"epochs={epochs}, start_epoch={start}: expected epochs of at least 1 and "
            "start_epoch from 0 to epochs"
        )
    assert error_of(check_epochs, 1, 0, 0, folder) == (
        "save_every=0: expected a whole number, at least 1"
    )
    assert error_of(check_epochs, 1, 0, 3, None) == (
        "save_every=3: pass checkpoints=CheckpointFolder(...) too"
    )


def test_the_smallest_numbers_are_good_and_the_next_are_named():
    assert linear_scaled_lr(0.5, 1, 1) == 0.5
    assert error_of(linear_scaled_lr, 0.1, 0) == (
        "global_batch_size=0: expected a whole number, at least 1"
    )
    assert error_of(linear_scaled_lr, 0.1, 1, 0) == (
        "base_batch_size=0: expected a whole number, at least 1"
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    for options in ({"start_factor": 1.0}, {"final_factor": 1.0}, {"total_steps": 1}):
        warm_up(optimizer, 0, **options)
    assert error_of(warm_up, optimizer, 0, total_steps=0) == (
        "total_steps=0: expected a whole number, at least 1"
    )
    assert error_of(warm_up, optimizer, 4, final_factor=-0.5) == (
        "final_factor=-0.5: expected a number from 0 to 1"
    )


def test_without_a_final_factor_the_rate_falls_to_zero():
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=2.0)
    scheduler, found = warm_up(optimizer, 0, total_steps=2), []
    for _ in range(4):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert found == pytest.approx([2.0, 1.0, 0.0, 0.0])


def test_early_stop_takes_any_fall_for_better_and_counts_from_the_first_loss():
    stop = EarlyStop(patience=1)
    assert not stop.done
    assert [stop.update(loss) for loss in (1.0, 0.999, 0.999)] == [False, False, True]
    assert stop.state_dict() == {"best": 0.999, "waited": 1}
    patient = EarlyStop(patience=2, min_delta=0.1)
    assert not patient.update(math.nan)
    assert patient.update(math.inf)
    assert error_of(EarlyStop, 0) == "patience=0: expected a whole number, at least 1"
    assert error_of(EarlyStop, 1, -0.5) == "min_delta=-0.5: expected at least 0"


# ---- what is printed


def test_an_epoch_is_one_line_on_rank_0(capsys):
    record = EpochRecord(1, 0.12345, 0.5, 0.875, 12345.6, 3.21, world_size=1)
    print_epoch(record, 6)
    line = "epoch 2/6  train loss 0.123  test loss 0.500  test accuracy 87.5%  3.2 s  "
    line += "12,346 samples/s  "
    assert capsys.readouterr().out == line + "(1 rank)\n"
    several = EpochRecord(1, 0.12345, 0.5, 0.875, 12345.6, 3.21, world_size=2)
    on_ranks(lambda rank: print_epoch(several, 6), 2)
    assert capsys.readouterr().out == line + "(2 ranks)\n"


def test_progress_is_that_of_rank_0_each_fifty_steps(capsys):
    say = print_progress()
    on_ranks(lambda rank: [say(step, 120, torch.tensor(step / 8)) for step in range(1, 121)], 2)
    assert capsys.readouterr().out.splitlines() == [
        "step 50/120  loss of rank 0 6.250",
        "step 100/120  loss of rank 0 12.500",
        "step 120/120  loss of rank 0 15.000",
    ]
    print_progress(every=1)(1, 9, torch.tensor(1.0))
    assert capsys.readouterr().out == "step 1/9  loss of rank 0 1.000\n"


def test_a_line_does_not_wait_in_a_buffer(monkeypatch):
    class Stream(io.StringIO):
        flushed = 0

        def flush(self):
            self.flushed += 1

    stream = Stream()
    monkeypatch.setattr(sys, "stdout", stream)
    print_epoch(EpochRecord(1, 0.1, 0.5, 0.8, 1.0, 3.2, 1), 6)
    assert stream.flushed == 1
    print_progress(every=1)(1, 9, torch.tensor(1.0))
    assert stream.flushed == 2


# ---- precision and losses


def test_a_gpu_without_bfloat16_is_named(monkeypatch):
    asked = []

    def supported(including_emulation):
        asked.append(including_emulation)
        return False

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert error_of(MixedPrecision, "bf16", "cuda") == (
        'precision="bf16", but this GPU has no bfloat16: use "fp16"'
    )
    assert asked == [False]  # emulated, it would be slower than fp32
    assert error_of(MixedPrecision, "fp16", "cpu") == (
        'precision="fp16" on cpu: it is for GPUs; use "bf16", or "fp32"'
    )
    assert error_of(MixedPrecision, "int8", "cpu") == (
        'precision="int8": expected "fp32", "bf16" or "fp16"'
    )


def test_a_precision_that_is_given_stays_itself():
    amp = MixedPrecision("bf16", "cpu")
    assert as_precision(amp, "cpu") is amp
    assert as_precision("bf16", "cpu").precision == "bf16"
    assert amp.state_dict() == {}
    amp.load_state_dict({})


def test_a_scaler_is_not_resumed_from_a_run_that_had_none():
    amp = MixedPrecision("fp32", "cpu")
    amp.scaler = torch.amp.GradScaler("cpu", enabled=True)
    with pytest.raises(RuntimeError, match="empty"):
        amp.load_state_dict(MixedPrecision("fp32", "cpu").state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_sum_of_losses_is_taken_in_32_bits(dtype):
    outputs, labels = torch.zeros(3000, 4, dtype=dtype), torch.zeros(3000, dtype=torch.int64)
    found = CrossEntropy().sum(outputs, labels)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(3000 * math.log(4), rel=1e-4)
    assert CrossEntropy().sum(outputs.double(), labels).dtype == torch.float64


def test_a_norm_is_finite_where_all_elements_are():
    parts = [torch.tensor([3.0, 0.0]), torch.tensor([-4.0]), torch.zeros(0)]
    assert norm(parts) == 5.0
    assert norm([]) == 0.0
    assert norm([torch.full((100,), 6e4, dtype=torch.float16)]).isfinite()  # the norm is 6e5
    for bad in (math.nan, -math.inf):
        for dtype in (torch.float32, torch.float16):
            assert not norm([*parts, torch.tensor([1.0, bad], dtype=dtype)]).isfinite()
            assert not norm([torch.tensor([0.0, bad], dtype=dtype).to_sparse()]).isfinite()


# ---- steps


def test_the_last_step_may_have_fewer_micro_batches():
    assert list(micro_batches(iter("abcde"), 2)) == [["a", "b"], ["c", "d"], ["e"]]
    assert list(micro_batches("ab", 1)) == [["a"], ["b"]]


def test_totals_add_up_and_travel():
    totals = EpochTotals("cpu")
    assert totals.over_all_ranks() == (0.0, 0)
    assert totals.seconds == 0.0
    totals.add(torch.tensor(6.0, requires_grad=True), 2)
    totals.add(torch.tensor(3.0), 1)
    assert totals.over_all_ranks() == (3.0, 3)
    totals.start_clock()
    time.sleep(0.02)
    state = totals.state_dict()
    assert (state["loss"], state["count"]) == (9.0, 3)
    assert 0.02 <= state["seconds"] < 10
    other = EpochTotals("cpu")
    other.add(torch.tensor(50.0), 9)
    other.load_state_dict(state)
    other.merge({"loss": 1.0, "count": 7, "seconds": 0.0})
    assert other.over_all_ranks() == (1.0, 10)
    assert other.seconds == state["seconds"]  # ranks work at the same time
    other.start_clock()
    assert other.seconds >= state["seconds"]
    other.reset()
    assert (other.over_all_ranks(), other.seconds) == ((0.0, 0), 0.0)


def test_what_is_summed_over_ranks_lies_on_the_device_that_was_named():
    def run(rank):
        with torch.device("meta"):  # has no values: whatever is made there fails
            totals = EpochTotals("cpu")
            totals.add(torch.tensor(rank + 1.0, device="cpu"), rank + 1)
            batches = [[torch.ones(2, device="cpu")] * (rank + 1)]
            rounds = len(list(until_all_are_done(batches * (rank + 1), "cpu")))
            return any_rank(rank == 1, "cpu"), totals.over_all_ranks(), rounds

    assert on_ranks(run, 2)[0] == [(True, (1.0, 3), 2)] * 2


class Given:
    """A loader of batches that are there already."""

    sampler = batch_sampler = dataset = None

    def __init__(self, batches, pause=0.0):
        self.batches, self.pause = batches, pause

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            time.sleep(self.pause)
            yield batch


def test_everything_lies_on_the_device_that_was_named():
    inputs, labels = samples(8).tensors
    loader, model = Given([(inputs[:4], labels[:4]), (inputs[4:], labels[4:])]), make_model()
    with torch.device("meta"):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        records = fit(model, loader, loader, optimizer, epochs=1, device="cpu")
    assert records[0].test_loss > 0


def test_progress_tells_the_mean_loss_of_this_step():
    inputs, labels = samples(8).tensors
    model, told = make_model(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    say = lambda step, steps, value: told.append(value.item())
    loader = Given([(inputs, labels)])
    train_one_epoch(model, loader, optimizer, device="cpu", epoch=0, progress=say)
    assert told == [pytest.approx(nn.functional.cross_entropy(model(inputs), labels).item())]


def test_seconds_are_those_of_training_and_then_of_the_whole_epoch():
    inputs, labels = samples(8).tensors
    loader, model = Given([(inputs, labels)] * 2, pause=0.02), make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    metrics = train_one_epoch(model, loader, optimizer, device="cpu", epoch=0)
    assert 0.04 <= metrics.seconds < 10
    assert metrics.samples_per_second == 16 / metrics.seconds
    (record,) = fit(model, loader, loader, optimizer, epochs=1, device="cpu")
    assert 0.08 <= record.seconds < 10
    assert 16 / record.samples_per_second + 0.04 <= record.seconds


# ---- fit hands its options on


def test_fit_trains_and_evaluates_in_turn_with_all_its_options(tmp_path):
    labels = torch.arange(24) % 3
    data = TensorDataset(samples(24).tensors[0] * 3, labels)
    loss = CrossEntropy(ignore_index=2)

    def make():
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.5)
        scheduler = StepLR(optimizer, 2, gamma=0.5)
        told = []
        options = {
            "device": "cpu",
            "accumulation_steps": 2,
            "max_grad_norm": 0.3,
            "scheduler": scheduler,
            "loss": loss,
            "uneven_inputs": True,
            "progress": lambda step, steps, value: told.append((step, steps, value.item())),
        }
        loaders = make_resumable_loader(data, 8, accumulation_steps=2), make_eval_loader(data, 9)
        return model, loaders, optimizer, options, told

    model, (train_loader, test_loader), optimizer, options, expected_told = make()
    amp, expected = MixedPrecision("bf16", "cpu"), []
    for epoch in (1, 2):
        train = train_one_epoch(
            model, train_loader, optimizer, epoch=epoch, precision=amp, **options
        )
        test = evaluate(model, test_loader, device="cpu", precision=amp, loss=loss)
        expected.append((epoch, train.loss, test.loss, test.accuracy, 1))

    twin, (train_loader, test_loader), optimizer, options, told = make()
    seen = []
    records = fit(
        twin,
        train_loader,
        test_loader,
        optimizer,
        epochs=3,
        start_epoch=1,
        precision="bf16",
        on_epoch=seen.append,
        checkpoint_path=tmp_path / "last.pt",
        **options,
    )
    found = [(r.epoch, r.train_loss, r.test_loss, r.test_accuracy, r.world_size) for r in records]
    assert found == expected
    assert seen == records
    assert told == expected_told
    assert {step[:2] for step in told} == {(1, 3), (2, 3), (3, 3)}
    for own, its in zip(twin.parameters(), model.parameters(), strict=True):
        assert torch.equal(own, its)
    saved = torch.load(tmp_path / "last.pt", weights_only=True)
    assert saved.keys() == {"model", "optimizer", "epoch"}
    assert saved["epoch"] == 3
    assert torch.equal(saved["model"]["weight"], model.weight)
    assert saved["optimizer"]["state"]


def test_each_part_of_a_loader_hears_of_the_epoch():
    heard = []
    inputs, labels = samples(4).tensors
    loader = Given([(inputs, labels)])
    for name in ("sampler", "batch_sampler", "dataset"):
        setattr(
            loader,
            name,
            SimpleNamespace(set_epoch=lambda epoch, name=name: heard.append((name, epoch))),
        )
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train_one_epoch(model, loader, optimizer, device="cpu", epoch=5)
    assert heard == [("sampler", 5), ("batch_sampler", 5), ("dataset", 5)]
    assert model.training


def test_the_gpu_is_waited_for_before_the_clock_is_read(monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for device, times in (("cpu", 0), ("cuda", 2)):

        class Here(torch.Tensor):
            """Stays where it is, whatever device it is sent to."""

            def to(self, *args, **options):
                return self.as_subclass(torch.Tensor)

        inputs, labels = (part.as_subclass(Here) for part in samples(4).tensors)
        totals = EpochTotals("cpu")
        monkeypatch.setattr(loop, "EpochTotals", lambda _, totals=totals: totals)
        loader = Given([(inputs, labels)])
        train_one_epoch(model, loader, optimizer, device=device, epoch=0)
        assert waited == [device] * times


# ---- resume


def run_of(folder, save_every=None, loader=None, **parts):
    loader = loader or make_resumable_loader(samples(), 8)
    return ResumableRun(
        CheckpointFolder(folder, keep=9), loader, "cpu", save_every=save_every, **parts
    )


def test_steps_are_counted_over_the_epochs(tmp_path):
    run = run_of(tmp_path, save_every=2)
    record = EpochRecord(0, 1.0, 1.0, 0.5, 9.0, 1.0, 1)
    saved = []
    for _ in range(2):
        for _ in range(3):
            run.after_step()
            saved.append(len(run.folder.paths()))
        run.after_epoch(record)
    assert saved == [0, 1, 1, 3, 3, 4]  # after steps 2, 4 and 6, and after each epoch
    assert run.records == [record] * 2
    never = run_of(tmp_path / "never")
    never.after_step()
    assert not never.folder.paths()


def test_what_was_saved_is_loaded_and_told(tmp_path, capsys):
    model = make_model()
    run = run_of(tmp_path, model=model, early_stop=None, best=EarlyStop(2))
    assert not run.load()
    run.records = [EpochRecord(0, 1.0, 2.0, 0.5, 9.0, 1.0, 1)]
    run.totals.add(torch.tensor(6.0), 4)
    run.sampler.set_epoch(1)
    run.after_step()
    torch.manual_seed(7)
    run.save()
    expected = torch.rand(1)
    other = nn.Linear(4, 3)
    again = run_of(tmp_path, model=nn.DataParallel(other), best=EarlyStop(2))
    assert again.load()
    assert torch.rand(1) == expected
    assert torch.equal(other.weight, model.weight)
    assert again.records == run.records
    assert again.totals.over_all_ranks() == (1.5, 4)
    assert (again.sampler.epoch, again.sampler.finished) == (1, 1)
    (path,) = again.folder.paths()
    assert capsys.readouterr().out == f"resumed from {path.name}: epoch 2, step 1\n"
    assert error_of(run_of(tmp_path, model=other, scheduler=other).load) == (
        f"{path.name} holds best, model, but this run has model, scheduler: give fit the same as "
        "before, or another folder"
    )


def test_on_another_number_of_ranks_chance_starts_anew_from_the_place(tmp_path):
    loaders = [make_resumable_loader(samples(), 8, rank=rank, world_size=2) for rank in range(2)]

    def save(rank):
        run = run_of(tmp_path, loader=loaders[rank])
        run.sampler.set_epoch(3)
        run.after_step()
        run.totals.add(torch.tensor(6.0 * rank), rank + 1)
        run.save()

    on_ranks(save, 2)
    other = run_of(tmp_path, loader=make_resumable_loader(samples(), 8, seed=5))
    assert error_of(other.load).startswith("seed=5, but the saved run had seed=0")
    seed_everything(0, 3, 1, 0)
    expected = torch.rand(1)
    alone = run_of(tmp_path)
    assert alone.load()
    assert torch.rand(1) == expected
    assert alone.totals.over_all_ranks() == (2.0, 3)


def test_buckets_are_settled_without_a_trace(monkeypatch):
    seen = []
    module = nn.Sequential(nn.Linear(4, 6), nn.Sequential(nn.BatchNorm1d(6)), nn.Dropout(0.5))
    module.append(nn.Linear(6, 3))
    module.register_forward_hook(
        lambda part, inputs, output: seen.append((part.training, len(inputs[0]), output.dtype))
    )
    before = {name: value.clone() for name, value in module.state_dict().items()}
    loader, loss = make_resumable_loader(samples(), 8), CrossEntropy()
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = DistributedDataParallel(module)
        model.eval()
        for world_size, wanted in ((2, 0), (3, 1)):  # two ranks round the same in any order
            monkeypatch.setattr(resume, "get_world_size", lambda n=world_size: n)
            torch.manual_seed(0)
            settle_buckets(model, loader, loss, MixedPrecision("bf16", "cpu"), "cpu")
            drawn = torch.rand(1)
            torch.manual_seed(0)
            assert drawn == torch.rand(1)
            assert seen == [(True, 2, torch.bfloat16)] * wanted
    finally:
        dist.destroy_process_group()
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())


# ---- train_mnist_5k


@pytest.fixture
def given(monkeypatch):
    """What train_mnist_5k hands to `fit`, which does not train here."""
    found = []

    def spy(model, train_loader, test_loader, optimizer, **options):
        parts = {"model": model, "train": train_loader, "test": test_loader, "opt": optimizer}
        found.append(SimpleNamespace(**parts, **options))
        return []

    monkeypatch.setattr(digits, "fit", spy)
    return found


def test_train_mnist_5k_by_default(given, capsys):
    assert train_mnist_5k() == []
    (run,) = given
    sampler = run.train.batch_sampler
    assert (run.epochs, sampler.global_batch_size, sampler.seed) == (6, 64, 0)
    assert (sampler.rank, sampler.world_size, sampler.samples) == (0, 1, 4000)
    assert run.opt.param_groups[0]["lr"] == 3e-3
    assert isinstance(run.opt, torch.optim.Adam)
    assert (run.accumulation_steps, run.precision, run.start_epoch) == (1, "fp32", 0)
    assert run.checkpoint_path is run.checkpoints is run.save_every is None
    assert run.device == torch.device("cpu")
    assert len(run.test.dataset) == 1000
    assert run.test.batch_size == 250
    run.on_epoch(EpochRecord(1, 0.1, 0.5, 0.9, 100.0, 1.0, 1))
    assert capsys.readouterr().out.startswith("epoch 2/6  train loss 0.100")


def test_train_mnist_5k_hands_its_options_on(given, tmp_path, monkeypatch):
    compiled = []

    def compile(model):
        compiled.append(model)
        return model

    monkeypatch.setattr(torch, "compile", compile)
    options = {
        "accumulation_steps": 2,
        "precision": "bf16",
        "checkpoints": CheckpointFolder(tmp_path),
        "save_every": 7,
        "checkpoint_path": tmp_path / "none.pt",
    }
    train_mnist_5k(3, 40, 0.5, 9, device="cpu", resume=True, compile=True, **options)
    (run,) = given
    assert {name: getattr(run, name) for name in options} == options
    sampler = run.train.batch_sampler
    assert (sampler.accumulation_steps, sampler.global_batch_size, sampler.seed) == (2, 40, 9)
    assert (run.epochs, run.start_epoch, run.opt.param_groups[0]["lr"]) == (3, 0, 0.5)
    assert compiled == [run.model]
    torch.manual_seed(9)
    assert torch.equal(run.model.conv1.weight, SmallCNN().conv1.weight)


def test_train_mnist_5k_goes_on_only_if_it_is_asked_to(given, tmp_path):
    path = tmp_path / "m.pt"
    model = SmallCNN()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.25)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    save_checkpoint(path, model=model, optimizer=optimizer, epoch=4)
    train_mnist_5k(checkpoint_path=path)
    train_mnist_5k(checkpoint_path=path, resume=True)
    train_mnist_5k(resume=True)
    fresh, resumed, nowhere = given
    assert (fresh.start_epoch, resumed.start_epoch, nowhere.start_epoch) == (0, 4, 0)
    assert torch.equal(resumed.model.fc2.bias, model.fc2.bias)
    assert not torch.equal(fresh.model.fc2.bias, model.fc2.bias)
    assert resumed.opt.param_groups[0]["lr"] == 0.25
    assert resumed.opt.state_dict()["state"][0]["step"] == 1
    assert resumed.checkpoint_path == path


def test_train_mnist_5k_on_two_ranks_shares_the_batches_and_wraps(given, monkeypatch):
    wrapped = []

    def wrap(model, device_ids):
        wrapped.append((model, device_ids))
        return model

    monkeypatch.setattr(digits, "DistributedDataParallel", wrap)
    monkeypatch.setattr(dist, "get_backend", lambda: "gloo")
    on_ranks(lambda rank: train_mnist_5k(device="cpu"), 2)
    assert len(wrapped) == 2
    assert {ids for _, ids in wrapped} == {None}
    ranks = sorted(run.train.batch_sampler.rank for run in given)
    assert ranks == [0, 1]
    assert {run.train.batch_sampler.world_size for run in given} == {2}
    first = sorted(run.test.dataset.indices[0] for run in given)
    assert first == [0, 1]
    assert [len(run.test.dataset) for run in given] == [500, 500]
    monkeypatch.setattr(nn.Module, "to", lambda self, device: self)
    on_ranks(lambda rank: train_mnist_5k(device=f"cuda:{rank}"), 2)
    assert sorted(ids for _, ids in wrapped[2:]) == [[0], [1]]
    with pytest.raises(ValueError, match="can't be shared equally by 2 ranks"):
        on_ranks(lambda rank: train_mnist_5k(global_batch_size=63), 2)


def test_the_device_is_this_ranks_gpu_where_there_is_one(given, monkeypatch):
    def device_of(**options):
        class Found(Exception):
            pass

        def stop(self, device):
            raise Found(device)

        monkeypatch.setattr(nn.Module, "to", stop)
        with pytest.raises(Found) as caught:
            train_mnist_5k(**options)
        return caught.value.args[0]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert device_of() == torch.device("cpu")  # a notebook must not touch CUDA
    monkeypatch.setenv("LOCAL_RANK", "1")
    for gpus, index in ((2, 1), (1, 0)):  # all GPUs; one of its own, as with --gpus-per-task
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        assert device_of() == torch.device("cuda", index)
    assert device_of(device="cuda:3") == torch.device("cuda", 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_of() == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    for backend, expected in (("nccl", torch.device("cuda", 2)), ("gloo", torch.device("cpu"))):
        monkeypatch.setattr(dist, "get_backend", lambda backend=backend: backend)
        assert on_ranks(lambda rank: device_of(), 1)[0] == [expected]
