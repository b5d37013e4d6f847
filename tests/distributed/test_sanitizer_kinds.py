"""What is wrong on all ranks alike, or on one before it spreads: found, and its look-alikes not."""

import contextlib
import itertools

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Subset,
    TensorDataset,
    random_split,
)
from torch_age import of_the_run

from ddp_helpers import LaunchError, launch, process_group, sanitize
from ddp_helpers.sanitizer import Options

pytestmark = pytest.mark.usefixtures("no_process_left")


def net(*extra):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), *extra, nn.Linear(8, 3))


def batches(rank, steps=6, size=8):
    generator = torch.Generator().manual_seed(100 + rank)
    for _ in range(steps):
        x = torch.randn(size, 4, generator=generator)
        yield x, torch.randint(3, (size,), generator=generator)


def wrap(module=None, lr=0.1):
    ddp = DistributedDataParallel(module or net())
    torch.manual_seed(7 + dist.get_rank())
    return ddp, torch.optim.SGD(ddp.parameters(), lr=lr)


def fit(ddp, optimizer, data, loss_of=F.cross_entropy):
    for x, y in data:
        optimizer.zero_grad()
        loss_of(ddp(x), y).backward()
        optimizer.step()


def found(training, every=1):
    """All that is found in a run of two ranks."""

    def run():
        with process_group("gloo") as pg:
            training(pg.rank)

    try:
        result = launch(run, 2, sanitize=Options(every), echo=False, timeout=60)
    except LaunchError as error:
        result = error.result
    return of_the_run(result.findings)


def only(training, every=1):
    findings = {(f.kind, f.cause): f for f in found(training, every)}
    (finding,) = findings.values()
    return finding


def test_blocks_that_follow_each_other_in_one_group():
    def run():
        with process_group("gloo") as pg:
            told = []
            for _ in range(3):
                with sanitize() as session:
                    fit(*wrap(), batches(pg.rank))
                told += session.findings
            return len(of_the_run(told))

    assert launch(run, 2, echo=False, timeout=60).values == [0, 0]


# ---- weights that stay


def rate_of_0(rank):
    ddp, optimizer = wrap(lr=0.0)
    fit(ddp, optimizer, batches(rank))


def cleared_before_the_step(rank):
    ddp, optimizer = wrap()
    for x, y in batches(rank):
        F.cross_entropy(ddp(x), y).backward()
        optimizer.zero_grad()
        optimizer.step()


def times_0(rank):
    ddp, optimizer = wrap()
    fit(ddp, optimizer, batches(rank), lambda out, y: 0 * F.cross_entropy(out, y))


def lost_in_rounding(rank):
    ddp, optimizer = wrap(net().bfloat16(), lr=1e-6)
    fit(ddp, optimizer, ((x.bfloat16(), y) for x, y in batches(rank)))


def rate_that_went_to_0(rank):
    ddp, optimizer = wrap()
    data = batches(rank, 12)
    fit(ddp, optimizer, itertools.islice(data, 3))
    optimizer.param_groups[0]["lr"] = 0.0
    fit(ddp, optimizer, data)


def of_a_copy(rank):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    fit(DistributedDataParallel(net()), optimizer, batches(rank))


UNCHANGED = [
    (rate_of_0, "all 6 steps of SGD that were looked at changed no weight", "rate is 0"),
    (cleared_before_the_step, "all 6 steps", "none of its parameters had a gradient"),
    (times_0, "all 6 steps", "all gradients were 0"),
    (lost_in_rounding, "rate of 1e-06", "lost in the rounding of bfloat16"),
    (rate_that_went_to_0, "the last 9 of 12 steps", "rate is 0"),
    (of_a_copy, "6 backward passes averaged", "those that SGD steps never had a gradient"),
]


@pytest.mark.parametrize(("training", *"ab"), UNCHANGED, ids=lambda v: getattr(v, "__name__", ""))
def test_steps_that_change_no_weight(training, a, b):
    finding = only(training)
    assert (finding.kind, finding.serious) == ("weights-unchanged", False)
    assert a in finding.cause
    assert b in finding.cause


def test_steps_that_change_no_weight_looked_at_now_and_then():
    def training(rank):
        ddp, optimizer = wrap(lr=0.0)
        fit(ddp, optimizer, batches(rank, 12))

    finding = only(training, every=3)
    assert "all 4 steps of SGD that were looked at" in finding.cause


# ---- gradients that stay


def never_cleared(rank):
    ddp, optimizer = wrap()
    for x, y in batches(rank):
        F.cross_entropy(ddp(x), y).backward()
        optimizer.step()


def cleared_too_seldom(rank):
    ddp, optimizer = wrap()
    for i, (x, y) in enumerate(batches(rank, 8)):
        if i % 4 == 0:
            optimizer.zero_grad()
        F.cross_entropy(ddp(x), y).backward()
        optimizer.step()


def of_another_optimizer(rank):
    ddp, optimizer = wrap()
    other = torch.optim.SGD(net().parameters(), lr=0.1)
    for x, y in batches(rank):
        other.zero_grad(set_to_none=False)
        F.cross_entropy(ddp(x), y).backward()
        optimizer.step()


@pytest.mark.parametrize("training", [never_cleared, cleared_too_seldom, of_another_optimizer])
def test_gradients_that_nobody_clears(training):
    finding = only(training)
    assert (finding.kind, finding.serious) == ("gradients-not-cleared", False)
    assert "SGD steps with gradients that were not cleared since the step before" in finding.cause
    assert "optimizer.zero_grad() once for each step" in finding.advice


# ---- numbers


def bad_loss(rank):
    ddp, optimizer = wrap()
    for i, (x, y) in enumerate(batches(rank)):
        if rank == 1 and i == 2:
            x[0] = float("nan")
        optimizer.zero_grad()
        F.cross_entropy(ddp(x), y).backward()
        optimizer.step()


def bad_gradient(rank):
    ddp, optimizer = wrap()
    for i, (x, y) in enumerate(batches(rank)):
        optimizer.zero_grad()
        out = ddp(x)
        loss = F.cross_entropy(out, y)
        if rank == 1 and i == 2:
            loss = loss + (0 * out).sqrt().sum()  # the slope of a root is infinite at 0
        loss.backward()
        optimizer.step()


def all_bad(rank):
    ddp, optimizer = wrap()
    fit(ddp, optimizer, ((x / 0, y) for x, y in batches(rank)))


def test_a_loss_that_is_not_finite_on_one_rank():
    finding = only(bad_loss)
    assert (finding.kind, finding.ranks, finding.step) == ("not-finite", (1,), 2)
    assert "the loss is not finite on rank 1, and the optimizer is about to step" in finding.cause
    assert "`module.0.weight`" in finding.cause or "`0.weight`" in finding.cause
    assert "memory or the device may be at fault" in finding.advice


def test_a_gradient_that_is_not_finite_on_one_rank():
    finding = only(bad_gradient)
    assert (finding.kind, finding.ranks, finding.step) == ("not-finite", (1,), 2)
    assert "a gradient became not finite in the backward of rank 1" in finding.cause


def test_a_loss_that_is_not_finite_on_all_ranks():
    finding = only(all_bad)
    assert (finding.kind, finding.ranks, finding.step) == ("not-finite", (0, 1), 0)
    assert "the loss is not finite on all ranks" in finding.cause


# ---- shares


def inputs_not_scaled(rank):
    ddp, optimizer = wrap(nn.Linear(4, 3), lr=1e-6)
    fit(ddp, optimizer, ((x * (1 + 999 * rank), y) for x, y in batches(rank, 12)), squares)


def squares(out, y):
    return (out - F.one_hot(y, 3)).square().mean()


def test_a_rank_whose_gradients_are_far_larger():
    finding = only(inputs_not_scaled)
    assert (finding.kind, finding.ranks) == ("gradient-out-of-proportion", (1,))
    assert not finding.serious
    assert "in each of the first 8 steps" in finding.cause


# ---- dropout


def seeded_alike(rank):
    ddp, optimizer = wrap(net(nn.Dropout(0.5)))
    torch.manual_seed(1)
    fit(ddp, optimizer, batches(rank))


def test_dropout_that_is_alike_on_all_ranks():
    finding = only(seeded_alike)
    assert (finding.kind, finding.serious) == ("identical-dropout", False)
    assert "drew the same random numbers from torch's default generator" in finding.cause
    assert "in the model's forward" in finding.cause


# ---- asynchronous calls


def stepped_before_the_wait(rank):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for x, y in batches(rank):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        calls = [dist.all_reduce(p.grad, async_op=True) for p in model.parameters()]
        optimizer.step()
        for call in calls:
            call.wait()


def never_waited_for(rank):
    losses = torch.ones(1)
    dist.all_reduce(losses, async_op=True)
    dist.barrier()


def changed_meanwhile(rank):
    total = torch.ones(1000)
    call = dist.all_reduce(total, async_op=True)
    total /= 2
    call.wait()


def test_a_step_with_gradients_that_are_on_their_way():
    finding = only(stepped_before_the_wait)
    assert (finding.kind, finding.serious) == ("async-not-waited", True)
    assert "SGD steps with a gradient of which all_reduce(async_op=True)" in finding.cause
    assert finding.place.function == "<listcomp>" or "stepped" in finding.place.function


def test_a_call_that_nobody_waits_for():
    finding = only(never_waited_for)
    assert (finding.kind, finding.serious) == ("async-not-waited", False)
    assert "nobody waited for all_reduce(async_op=True), once at this line" in finding.cause
    assert finding.place.function == "never_waited_for"


def test_a_tensor_that_is_changed_meanwhile():
    finding = only(changed_meanwhile)
    assert (finding.kind, finding.serious) == ("async-tensor-changed", True)
    assert finding.place.function == "changed_meanwhile"


# ---- leaks


def texts(size=80):
    x = torch.randn(size, 4, generator=torch.Generator().manual_seed(3))
    return TensorDataset(x, torch.arange(size) % 3)


def evaluate(ddp, data):
    ddp.eval()
    with torch.no_grad():
        right = sum(int((ddp.module(x).argmax(1) == y).sum()) for x, y in data)
    ddp.train()
    return right


def train_and_evaluate(train, test, sampler=None):
    ddp, optimizer = wrap()
    fit(ddp, optimizer, DataLoader(train, 8, shuffle=sampler is None, sampler=sampler))
    evaluate(ddp, DataLoader(test, 8))


def split_on_each_rank(rank):
    torch.manual_seed(rank)
    data = Subset(texts(), range(4, 80))
    train, test = random_split(data, [56, 20])
    train_and_evaluate(train, test, RandomSampler(train, replacement=True))


def parts_that_overlap(rank):
    data = texts()
    train, test = Subset(data, range(60)), Subset(data, range(50, 80))
    train_and_evaluate(train, test, DistributedSampler(train))


def test_ranks_that_split_the_data_differently():
    finding = only(split_on_each_rank)
    assert (finding.kind, finding.serious) == ("evaluation-leak", True)
    assert "evaluated samples were trained on by " in finding.cause
    assert "the ranks have split the data differently" in finding.cause


def test_parts_of_one_dataset_that_overlap():
    finding = only(parts_that_overlap)
    assert (finding.kind, finding.serious) == ("evaluation-leak", False)
    assert "10 of the 30 samples" in finding.cause


# ---- correct trainings that look like these


def warm_up_from_0(rank):
    ddp, optimizer = wrap()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0, step - 3) / 10)
    for x, y in batches(rank, 12):
        optimizer.zero_grad()
        F.cross_entropy(ddp(x), y).backward()
        optimizer.step()
        scheduler.step()


def down_to_0(rank):
    ddp, optimizer = wrap()
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0, 8 - step) / 8)
    for x, y in batches(rank, 10):
        optimizer.zero_grad()
        F.cross_entropy(ddp(x), y).backward()
        optimizer.step()
        scheduler.step()


def scaler_that_skips(rank, **options):
    ddp, _ = wrap()
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    for x, y in batches(rank, 8):
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(ddp(1e3 * x), y)).backward()
        scaler.step(optimizer)
        scaler.update()


def fused_with_a_scaler(rank):
    scaler_that_skips(rank, fused=True)


def skipped_together(rank):
    ddp, optimizer = wrap()
    for i, (x, y) in enumerate(batches(rank)):
        if rank == 1 and i == 2:
            x[0] = float("inf")
        optimizer.zero_grad()
        F.cross_entropy(ddp(x), y).backward()
        norm = nn.utils.clip_grad_norm_(ddp.parameters(), 1.0)
        if torch.isfinite(norm):
            optimizer.step()


def mended_before_the_step(rank):
    ddp, optimizer = wrap()
    for i, (x, y) in enumerate(batches(rank)):
        if rank == 1 and i == 2:
            x[0] = float("inf")
        optimizer.zero_grad()
        F.cross_entropy(ddp(x), y).backward()
        for p in ddp.parameters():
            p.grad.nan_to_num_(0, 0, 0)
        optimizer.step()


def accumulation(rank):
    ddp, optimizer = wrap()
    for i, (x, y) in enumerate(batches(rank, 12)):
        last = i % 4 == 3
        with contextlib.nullcontext() if last else ddp.no_sync():
            (F.cross_entropy(ddp(x), y) / 4).backward()
        if last:
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)


def cleared_by_hand(rank):
    ddp, optimizer = wrap()
    for x, y in batches(rank):
        F.cross_entropy(ddp(x), y).backward()
        optimizer.step()
        for p in ddp.parameters():
            p.grad.data.zero_()


def cleared_after_the_forward(rank):
    ddp, optimizer = wrap()
    for x, y in batches(rank):
        loss = F.cross_entropy(ddp(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def gan(rank):
    torch.manual_seed(0)
    maker, judge = nn.Linear(4, 4), nn.Linear(4, 1)
    maker, judge = DistributedDataParallel(maker), DistributedDataParallel(judge)
    for_maker = torch.optim.Adam(maker.parameters(), lr=0.01)
    for_judge = torch.optim.Adam(judge.parameters(), lr=0.01)
    torch.manual_seed(rank)
    for x, _ in batches(rank):
        for_judge.zero_grad()
        made = maker(torch.randn(8, 4))
        (judge(made.detach()).mean() - judge(x).mean()).backward()
        for_judge.step()
        for_maker.zero_grad()
        (-judge(made).mean()).backward()  # the judge gets gradients, too
        for_maker.step()


def gan_in_one_module(rank):
    both = nn.ModuleDict({"maker": nn.Linear(4, 4), "judge": nn.Linear(4, 1)})
    optimizers = [torch.optim.SGD(part.parameters(), lr=0.01) for part in both.values()]

    class Turn(nn.Module):
        def __init__(self):
            super().__init__()
            self.both = both

        def forward(self, x, of_maker):
            made = self.both["maker"](x)
            return self.both["judge"](made if of_maker else made.detach())

    torch.manual_seed(0)
    ddp = DistributedDataParallel(Turn(), find_unused_parameters=True)
    for i, (x, _) in enumerate(batches(rank, 10)):
        for optimizer in optimizers:
            optimizer.zero_grad()
        ddp(x, i % 2 == 0).mean().backward()
        optimizers[i % 2].step()


def frozen_parts_and_an_average(rank):
    module = net()
    module[0].requires_grad_(False)
    ddp, optimizer = wrap(module)
    kept = torch.optim.swa_utils.AveragedModel(module)
    for x, y in batches(rank):
        optimizer.zero_grad()
        F.cross_entropy(ddp(x), y).backward()
        optimizer.step()
        kept.update_parameters(module)


def stepped_by_hand(rank):
    ddp, _ = wrap()
    other = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    for x, y in batches(rank):
        ddp.zero_grad()
        F.cross_entropy(ddp(x), y).backward()
        other.step()
        with torch.no_grad():
            for p in ddp.parameters():
                p -= 0.1 * p.grad


def inputs_that_are_optimised(rank):
    ddp, _ = wrap()
    image = nn.Parameter(torch.randn(8, 4))
    optimizer = torch.optim.SGD([image], lr=0.1)
    for _, y in batches(rank):
        optimizer.zero_grad()
        F.cross_entropy(ddp(image), y).backward()
        optimizer.step()


def uneven_returns(rank):
    """Reinforcement learning: one rank's episodes may bring no reward, or a thousand."""
    ddp, optimizer = wrap(lr=1e-3)
    rewards = [(0, 1), (0, 900), (500, 0), (1, 1), (0, 2), (700, 1), (0, 0), (3, 1), (0, 5), (2, 9)]
    for (x, y), reward in zip(batches(rank, 10), rewards, strict=True):
        optimizer.zero_grad()
        (reward[rank] * F.cross_entropy(ddp(x), y)).backward()
        optimizer.step()


def layers_dropped_alike(rank):
    """A layer that is left out must be left out on all ranks."""
    ddp, optimizer = wrap()
    torch.manual_seed(1)

    class Some(nn.Module):
        def forward(self, x):
            return x if torch.rand(1) < 0.5 else 2 * x

    ddp.module.append(Some())
    fit(ddp, optimizer, batches(rank))


def dropout_of_its_own(rank):
    ddp, optimizer = wrap(net(nn.Dropout(0.5)))  # which seeds each rank differently
    fit(ddp, optimizer, batches(rank))


def waited_for(rank):
    flat = torch.ones(2000)
    call = dist.all_reduce(flat[:1000], async_op=True)
    flat[1000:] *= 3  # another part of the same memory
    call.wait()
    total = torch.ones(1000)
    call = dist.all_reduce(total, async_op=True)
    while not call.is_completed():
        pass
    total /= 2
    parts = [torch.zeros(3), torch.zeros(3)]
    call = dist.all_gather(parts, torch.ones(3), async_op=True)
    call.get_future().wait()
    parts[0] += 1


def evaluated_on_purpose_on_the_training_set(rank):
    data = texts()
    train = Subset(data, range(60))
    ddp, optimizer = wrap()
    fit(ddp, optimizer, DataLoader(train, 8, sampler=DistributedSampler(train)))
    evaluate(ddp, DataLoader(train, 8))
    evaluate(ddp, DataLoader(Subset(train, range(rank, 20, 2)), 8))
    evaluate(ddp, DataLoader(data, 8))


def split_alike(rank):
    train, test = random_split(texts(), [60, 20], torch.Generator().manual_seed(0))
    train_and_evaluate(train, test, DistributedSampler(train))


def folds_one_after_the_other(rank):
    data = texts()
    for fold in range(3):
        test = Subset(data, range(20 * fold, 20 * fold + 20))
        train = Subset(data, [i for i in range(80) if i // 20 != fold])
        train_and_evaluate(train, test, DistributedSampler(train))


def pool_that_is_labelled_step_by_step(rank):
    """Active learning: what is scored today is trained on tomorrow."""
    data, known = texts(), 20
    ddp, optimizer = wrap()
    for _ in range(3):
        train, pool = Subset(data, range(known)), Subset(data, range(known, 80))
        fit(ddp, optimizer, DataLoader(train, 5, sampler=DistributedSampler(train)))
        evaluate(ddp, DataLoader(pool, 8, sampler=DistributedSampler(pool, shuffle=False)))
        known += 20


RIGHT = [
    warm_up_from_0,
    down_to_0,
    scaler_that_skips,
    fused_with_a_scaler,
    skipped_together,
    mended_before_the_step,
    accumulation,
    cleared_by_hand,
    cleared_after_the_forward,
    gan,
    gan_in_one_module,
    frozen_parts_and_an_average,
    stepped_by_hand,
    inputs_that_are_optimised,
    uneven_returns,
    layers_dropped_alike,
    dropout_of_its_own,
    waited_for,
    evaluated_on_purpose_on_the_training_set,
    split_alike,
    folds_one_after_the_other,
    pool_that_is_labelled_step_by_step,
]


@pytest.mark.parametrize("training", RIGHT, ids=lambda training: training.__name__)
def test_a_correct_training_is_left_in_peace(training):
    assert found(training) == []
