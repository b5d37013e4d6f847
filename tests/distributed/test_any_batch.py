"""Two ranks with any batch and any loss train as one process does on the union of the batches."""

import dataclasses
import math
import random
from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import TensorDataset
from torch_age import of_the_run

from ddp_helpers import launch, process_group
from ddp_helpers.checkpoints.file import load_checkpoint
from ddp_helpers.checkpoints.folder import CheckpointFolder
from ddp_helpers.data.loaders import make_eval_loader, make_resumable_loader
from ddp_helpers.training import evaluate, fit, train_one_epoch

pytestmark = pytest.mark.usefixtures("no_process_left", "one_thread")
RANKS, CASES = 2, 24

Named = namedtuple("Named", "x rest")


@dataclasses.dataclass(frozen=True)
class Packed:
    """A batch as a stranger's collate_fn may make it."""

    x: torch.Tensor
    y: torch.Tensor
    weight: torch.Tensor
    name: str = "packed"


FORMS = {
    "dict": lambda x, y, w: {"x": x, "deep": [{"y": y}, (w, "text")]},
    "tuple": lambda x, y, w: (x, y, w),
    "named tuple": lambda x, y, w: Named(x, [y, w]),
    "dataclass": Packed,
}
PARTS = {
    "dict": lambda b: (b["x"], b["deep"][0]["y"], b["deep"][1][0]),
    "tuple": lambda b: b,
    "named tuple": lambda b: (b.x, *b.rest),
    "dataclass": lambda b: (b.x, b.y, b.weight),
}


def squares(model, batch, form):
    """A loss weighted sample by sample; the two inputs are parts of x."""
    x, y, weight = PARTS[form](batch)
    return (weight[:, None] * (model(x[:, :2], x[:, 2:]) - y) ** 2).sum(), weight.sum()


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 5), nn.Linear(2, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, a, b):
        return self.out(torch.tanh(self.a(a) + self.b(b)))


class OneInput(TwoInputs):
    def forward(self, x):
        return super().forward(x[:, :2], x[:, 2:])


def make_model(model_class):
    torch.manual_seed(3)
    return model_class().double()


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def case(number):
    """Steps of micro-batches of each rank: (x, y, weight) of any length, also of none."""
    chance = random.Random(number)
    accumulation, steps = chance.choice([1, 1, 2, 3]), chance.randint(1, 4)
    generator = torch.Generator().manual_seed(number)
    kind = {"generator": generator, "dtype": torch.float64}

    def batch(samples):
        keep = torch.rand(samples, **kind) < 0.7  # a weight of 0, as of padding
        return (
            torch.randn(samples, 4, **kind),
            torch.randn(samples, 3, **kind),
            torch.rand(samples, **kind) * 10 ** chance.uniform(-3, 3) * keep,
        )

    ranks = [[batch(chance.choice([0, 1, 2, 7])) for _ in range(accumulation * steps)]]
    ranks += [[batch(chance.randint(1, 5)) for _ in range(accumulation * steps)]]
    for last in range(accumulation - 1, accumulation * steps, accumulation):
        ranks[1][last][2][0] = 0.5  # something counts in each step, if late
    chance.shuffle(ranks)
    clip = chance.choice([None, 0.2])
    return ranks, accumulation, clip, chance.choice(list(FORMS))


def wrapped(model):
    return DistributedDataParallel(model)


def train_cases():
    """The weights after each case's epoch, and its mean loss and count."""
    found = []
    with process_group() as pg:
        for number in range(CASES):
            ranks, accumulation, clip, form = case(number)
            model = make_model(TwoInputs)
            metrics = train_one_epoch(
                wrapped(model),
                [FORMS[form](*batch) for batch in ranks[pg.rank]],
                torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
                device="cpu",
                epoch=0,
                accumulation_steps=accumulation,
                max_grad_norm=clip,
                loss=lambda model, batch, form=form: squares(model, batch, form),
            )
            found.append((weights(model), metrics.loss, metrics.samples))
    return found


def union(ranks, at, accumulation):
    """All micro-batches of all ranks in the step that begins with number `at`, as one batch."""
    batches = [batch for rank in ranks for batch in rank[at : at + accumulation]]
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


def test_weighted_losses_of_any_batch_are_exact_over_ranks_and_micro_batches():
    values = launch(train_cases, RANKS, threads_per_rank=1).values
    for number in range(CASES):
        ranks, accumulation, clip, _ = case(number)
        model = make_model(TwoInputs)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        sums = torch.zeros(2, dtype=torch.float64)
        for at in range(0, len(ranks[0]), accumulation):
            x, y, weight = union(ranks, at, accumulation)
            optimizer.zero_grad()
            value = (weight[:, None] * (model(x[:, :2], x[:, 2:]) - y) ** 2).sum()
            (value / weight.sum()).backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            sums += torch.stack([value.detach(), weight.sum()])
        for rank in range(RANKS):
            own, loss, count = values[rank][number]
            torch.testing.assert_close(own, weights(model), rtol=1e-9, atol=1e-11)
            assert loss == pytest.approx(sums[0].item() / sums[1].item(), rel=1e-9)
            assert count == pytest.approx(sums[1].item(), rel=1e-9)
        assert torch.equal(values[0][number][0], values[1][number][0])


def train_uneven():
    """Ranks with different numbers of dict batches; who has run out goes on with empty ones."""
    with process_group() as pg:
        batches = [batch for number in range(4) for batch in case(number)[0][0] if len(batch[0])]
        mine = batches[:2] if pg.rank == 0 else batches[2:5]
        model = make_model(TwoInputs)
        metrics = train_one_epoch(
            wrapped(model),
            [FORMS["dict"](*batch) for batch in mine],
            torch.optim.Adam(model.parameters(), lr=0.1),
            device="cpu",
            epoch=0,
            loss=lambda model, batch: squares(model, batch, "dict"),
            uneven_inputs=True,
        )
        return weights(model), metrics.samples, sum(batch[2].sum().item() for batch in mine)


def test_uneven_numbers_of_any_batches():
    first, second = launch(train_uneven, RANKS, threads_per_rank=1).values
    assert torch.equal(first[0], second[0])
    assert first[1] == second[1] == pytest.approx(first[2] + second[2])


def test_the_sanitizer_finds_nothing_in_it():
    for function in (train_cases, train_criteria, train_uneven):
        result = launch(function, RANKS, threads_per_rank=1, sanitize=True)
        assert of_the_run(result.findings) == []


# ---- losses of torch.nn, and functions of (outputs, targets)


def per_sample(outputs, targets):
    return (outputs - targets).abs().sum(1)


def mean_of_samples(outputs, targets):
    return (outputs - targets).pow(2).sum(1).mean()


CLASS_WEIGHTS = torch.tensor([0.1, 2.0, 0.5], dtype=torch.float64)
CRITERIA = {
    "mse": lambda: nn.MSELoss(),
    "huber": lambda: nn.HuberLoss(delta=0.3),
    "F.l1_loss": lambda: F.l1_loss,
    "bce": lambda: nn.BCEWithLogitsLoss(pos_weight=CLASS_WEIGHTS),
    "per sample": lambda: per_sample,
    "mean of samples": lambda: mean_of_samples,
    "cross-entropy": lambda: nn.CrossEntropyLoss(CLASS_WEIGHTS, ignore_index=1),
    "smoothed": lambda: nn.CrossEntropyLoss(CLASS_WEIGHTS, label_smoothing=0.2),
    "F.cross_entropy": lambda: F.cross_entropy,
}
CLASSES = ("cross-entropy", "smoothed", "F.cross_entropy")


def labelled(name):
    """(inputs, targets) micro-batches of both ranks, of different lengths, some empty."""
    ranks, accumulation, _, _ = case(sorted(CRITERIA).index(name) + 100)
    targets = lambda y: y.argmax(1) if name in CLASSES else y.sigmoid() if name == "bce" else y
    return [[(x, targets(y)) for x, y, _ in rank] for rank in ranks], accumulation


def train_criteria():
    found = {}
    with process_group() as pg:
        for name, make in CRITERIA.items():
            ranks, accumulation = labelled(name)
            model = make_model(OneInput)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            metrics = train_one_epoch(
                wrapped(model),
                ranks[pg.rank],
                optimizer,
                device="cpu",
                epoch=0,
                accumulation_steps=accumulation,
                loss=make(),
            )
            tests = evaluate(model, ranks[pg.rank], device="cpu", loss=make())
            found[name] = weights(model), metrics.loss, tests.loss, tests.accuracy
    return found


def test_a_criterion_on_two_ranks_is_torchs_own_on_the_whole_batch():
    values = launch(train_criteria, RANKS, threads_per_rank=1).values
    for name, make in CRITERIA.items():
        ranks, accumulation = labelled(name)
        model, criterion = make_model(OneInput), make()
        mean = lambda *pair, f=criterion: f(*pair).mean()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for at in range(0, len(ranks[0]), accumulation):
            x, y = union(ranks, at, accumulation)
            optimizer.zero_grad()
            mean(model(x), y).backward()
            optimizer.step()
        x, y = union(ranks, 0, len(ranks[0]))
        outputs = model(x)
        kept = y != 1 if name == "cross-entropy" else torch.ones(len(y), dtype=torch.bool)
        accuracy = None
        if name in CLASSES:
            accuracy = (outputs.argmax(1) == y)[kept].double().mean().item()
        for own, _, test_loss, test_accuracy in (value[name] for value in values):
            torch.testing.assert_close(own, weights(model), rtol=1e-9, atol=1e-11, msg=name)
            assert test_loss == pytest.approx(mean(outputs, y).item(), rel=1e-9), name
            assert test_accuracy == pytest.approx(accuracy), name


# ---- metrics, and the best checkpoint


def held_out():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(11, 4, generator=generator, dtype=torch.float64)


def count_positive(model, batch):
    """Only what is above 0 counts; a batch, and perhaps a share, may have none of it."""
    (x,) = batch
    chosen = x[:, 0] > 0
    errors = model(x)[chosen].abs().sum()
    return {"error": (errors, int(chosen.sum())), "size": (x.abs().sum(), x.numel())}


def measure():
    with process_group() as pg:
        found = []
        for share in ([0, 11], [11, 0], [4, 7], [10, 1]):  # of the first and the second rank
            start = 0 if pg.rank == 0 else share[0]
            mine = held_out()[start : start + share[pg.rank]]
            batches = [(part,) for part in mine.split(3)] if len(mine) else []
            result = evaluate(
                make_model(OneInput),
                batches,
                device="cpu",
                loss=lambda model, batch: (model(batch[0]).sum(), len(batch[0])),
                metrics=count_positive,
            )
            found.append((result.loss, result.metrics, result.accuracy))
    return found


def test_metrics_are_those_of_one_process_whatever_the_shares():
    model, x = make_model(OneInput), held_out()
    sums = count_positive(model, (x,)).items()
    expected = {name: (value / count).item() for name, (value, count) in sums}
    for found in launch(measure, RANKS, threads_per_rank=1).values:
        for loss, metrics, accuracy in found:
            assert loss == pytest.approx(model(x).sum().item() / 11)
            assert metrics == pytest.approx(expected)
            assert accuracy is None


# ---- a loss or a gradient that is not finite


class Spoilt(nn.Module):
    """Finite until sample 7 comes; then its loss is what `how` says."""

    def __init__(self, how):
        super().__init__()
        self.layer, self.how = nn.Linear(4, 1), how

    def forward(self, x):
        out = self.layer(x)
        bad = (x[:, :1] > 50) & self.training
        if self.how == "gradient":  # of a sqrt at 0: the value is 0, and its slope has none
            return out + torch.sqrt(torch.where(bad, out - out, 1.0)) - 1
        return torch.where(bad, float(self.how), out)


def stop(folder):
    """For each way to fail: the error, and what is in the checkpoints after it."""
    told = {}
    with process_group() as pg:
        for how in ("nan", "inf", "gradient"):
            x = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
            data = TensorDataset(x, x.sum(1, keepdim=True))
            model = Spoilt(how)
            place = {"rank": pg.rank, "world_size": pg.world_size}
            options = {
                "device": "cpu",
                "loss": nn.MSELoss(),
                "checkpoints": CheckpointFolder(f"{folder}/{how}", keep=20),
                "checkpoint_path": f"{folder}/{how}.pt",
                "save_every": 1,
            }

            def train(epochs, model=model, data=data, place=place, options=options):
                optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
                loader = make_resumable_loader(data, 4, **place)
                tests = make_eval_loader(data, 4, **place)
                return fit(wrapped(model), loader, tests, optimizer, epochs=epochs, **options)

            train(1)
            x[7] = 100.0
            try:
                train(2)
            except FloatingPointError as error:
                told[how] = str(error)
    return told


def test_what_is_not_finite_stops_all_ranks_before_anything_is_saved(tmp_path):
    first, second = launch(stop, RANKS, args=(str(tmp_path),), threads_per_rank=1).values
    assert first == second
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1)).tolist()
    step, rank = order.index(7) // 4 + 1, order.index(7) % 2
    causes = [("nan", rank, "loss is nan"), ("inf", rank, "loss is inf")]
    causes.append(
        ("gradient", 0, "norm of the gradient is")
    )  # the average of all ranks, so all have it
    for how, who, what in causes:
        assert first[how].startswith(f"rank {who}, epoch 2, step {step}: the {what}")
        assert "expected a finite number" in first[how]
        assert "all ranks stop here, and no checkpoint holds this step" in first[how]
        paths = CheckpointFolder(tmp_path / how).paths()
        saved = [load_checkpoint(path)["model"] for path in paths]
        # 4 steps and an epoch, and the steps of the second one that went well
        assert len(saved) == 5 + step - 1
        saved.append(load_checkpoint(tmp_path / f"{how}.pt")["model"])
        assert all(math.isfinite(part.sum()) for state in saved for part in state.values())


# ---- exact resume of what is no pair


class Dicts:
    """A dataset of dicts."""

    def __len__(self):
        return 22

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        x = torch.randn(4, generator=generator)
        return {"x": x, "weight": torch.rand(1, generator=generator)}


def weighted(model, batch):
    weight = batch["weight"]
    return (weight * model(batch["x"]).abs()).sum(), weight.sum()


def train_dicts(folder, stops):
    """The weights after two epochs, started anew at each number in `stops`."""
    with process_group() as pg:
        for epochs in stops:
            torch.manual_seed(0)
            model = OneInput()
            place = {"rank": pg.rank, "world_size": pg.world_size}
            records = fit(
                wrapped(model),
                make_resumable_loader(Dicts(), 6, accumulation_steps=2, **place),
                make_eval_loader(Dicts(), 4, **place),
                torch.optim.Adam(model.parameters(), lr=0.05),
                epochs=epochs,
                device="cpu",
                accumulation_steps=2,
                loss=weighted,
                metrics=lambda model, batch: {"size": weighted(model, batch)},
                best="min size",
                checkpoints=CheckpointFolder(folder),
                save_every=2,
            )
        return weights(model), records[-1].train_loss, records[-1].metrics


def test_three_ranks_resume_dicts_and_weights_to_the_same_bits(tmp_path):
    whole = launch(train_dicts, 3, args=(tmp_path / "whole", [2]), threads_per_rank=1).values
    parts = launch(train_dicts, 3, args=(tmp_path / "parts", [1, 2]), threads_per_rank=1).values
    for mine, theirs in zip(whole, parts, strict=True):
        assert torch.equal(mine[0], theirs[0])
        assert mine[1:] == theirs[1:]
        assert mine[2]["size"] > 0
    names = [CheckpointFolder(tmp_path / run).best()[0].name for run in ("whole", "parts")]
    assert {name.rpartition("-")[0] for name in names} == {"best-checkpoint-000006"}
