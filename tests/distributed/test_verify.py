"""`verify`: DDP on two ranks beside one process, for trainings that are right and that are not."""

import contextlib
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset, TensorDataset

from ddp_helpers import verify
from ddp_helpers.cli import main

pytestmark = pytest.mark.usefixtures("no_process_left")

TEMPLATES = Path(__file__).parents[2] / "ddp_helpers" / "templates"
FEATURES, CLASSES = 6, 3


def samples(count=64, tokens=0):
    """Inputs and labels, the same in every process."""
    draws = torch.Generator().manual_seed(7)
    x = torch.randn(count, FEATURES, generator=draws)
    shape = (count, tokens) if tokens else (count,)
    return x, torch.randint(CLASSES, shape, generator=draws)


def network(*middle):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(FEATURES, 8), *middle, nn.ReLU(), nn.Linear(8, CLASSES))


@contextlib.contextmanager
def group():
    dist.init_process_group("gloo")
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


def loader_of(dataset, size=4, **options):
    return DataLoader(dataset, size, sampler=DistributedSampler(dataset, **options))


def train(
    *,
    model=network,
    dataset=lambda: TensorDataset(*samples()),
    loss=nn.functional.cross_entropy,
    optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    after_wrap=lambda ddp: None,
    after_backward=lambda ddp: None,
    epochs=2,
):
    """A plain DDP training, with places where a mistake can be put in."""
    with group():
        ddp = DistributedDataParallel(model())
        after_wrap(ddp)
        steps = optimizer(ddp.parameters())
        loader = loader_of(dataset())
        for epoch in range(epochs):
            loader.sampler.set_epoch(epoch)
            for x, y in loader:
                steps.zero_grad()
                loss(ddp(x), y).backward()
                after_backward(ddp)
                steps.step()


def check(function, outcome="equal", nprocs=2, **options):
    verdict = verify(function, nprocs, timeout=60, **options)
    print(verdict)
    assert verdict.outcome == outcome, verdict
    assert "it took" in str(verdict)
    assert verdict.exit_code == {"equal": 0, "parts": 1}.get(outcome, 2)
    return verdict


def parts(function, *, cause, step=1, parameter="0.weight", stage="gradients", **options):
    verdict = check(function, "parts", **options)
    found = (verdict.cause, verdict.step, verdict.parameter, verdict.stage)
    assert found == (cause, step, parameter, stage), verdict
    return verdict


# ---- right ones


def test_a_plain_training():
    verdict = check(train)
    assert verdict.steps == 5


def accumulating(divide=True):
    with group():
        ddp = DistributedDataParallel(network())
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        for number, (x, y) in enumerate(loader_of(TensorDataset(*samples())), 1):
            last = number % 2 == 0
            with contextlib.nullcontext() if last else ddp.no_sync():
                loss = nn.functional.cross_entropy(ddp(x), y)
                (loss / 2 if divide else loss).backward()
            if last:
                optimizer.step()
                optimizer.zero_grad()


def test_accumulation_with_no_sync():
    assert check(accumulating).steps == 4


def bfloat16():
    def loss(output, y):
        return nn.functional.cross_entropy(output.float(), y)

    with torch.autocast("cpu", torch.bfloat16):
        train(loss=loss, model=lambda: network(nn.Linear(8, 8)))


def test_bfloat16_has_a_tolerance_of_its_own():
    verdict = check(bfloat16)
    assert "bfloat16" in str(verdict)


def count_of(y):
    return (y != -100).sum()


def over_tokens(divisor):
    """A loss over tokens, of which each sample has another number."""

    def dataset():
        x, y = samples(tokens=5)
        for row, sample in enumerate(y):
            sample[row % 5 + 1 :] = -100
        return TensorDataset(x, y)

    def loss(output, y):
        output = output.unsqueeze(-1).expand(-1, -1, 5)
        total = nn.functional.cross_entropy(output, y, reduction="sum")
        return total / divisor(count_of(y))

    train(dataset=dataset, loss=loss)


def the_global_mean(count):
    dist.all_reduce(count)
    return count / dist.get_world_size()


def test_a_loss_over_tokens_done_right():
    check(lambda: over_tokens(the_global_mean))


def test_frozen_layers():
    def model():
        made = network()
        made[0].requires_grad_(False)
        return made

    check(lambda: train(model=model))


def two_optimizers():
    with group():
        one = DistributedDataParallel(network())
        other = DistributedDataParallel(network())
        optimizers = torch.optim.Adam(one.parameters()), torch.optim.SGD(other.parameters(), 0.1)
        for x, y in loader_of(TensorDataset(*samples())):
            for model, optimizer in zip((one, other), optimizers, strict=True):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                optimizer.step()


def test_two_optimizers():
    assert check(two_optimizers).steps >= 9


class Uneven(DistributedSampler):
    """Each sample once: of five, rank 0 gets three."""

    def __iter__(self):
        return iter(range(self.rank, len(self.dataset), self.num_replicas))

    def __len__(self):
        return len(range(self.rank, len(self.dataset), self.num_replicas))


def uneven(weigh):
    with group() as (_, world):
        ddp = DistributedDataParallel(network())
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        dataset = TensorDataset(*samples(13))
        for x, y in DataLoader(dataset, 4, sampler=Uneven(dataset)):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(ddp(x), y)
            if weigh:
                count = torch.tensor(float(len(y)))
                dist.all_reduce(count)
                loss = loss * len(y) * world / count
            loss.backward()
            optimizer.step()


def test_an_uneven_last_batch_done_right():
    check(lambda: uneven(weigh=True))


def scheduled():
    with group():
        ddp = DistributedDataParallel(network())
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
        loader = loader_of(TensorDataset(*samples()))
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=len(loader))
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(ddp(x), y).backward()
            nn.utils.clip_grad_norm_(ddp.parameters(), 0.1)
            optimizer.step()
            schedule.step()


def test_momentum_clipping_and_a_schedule_over_the_loaders_length():
    check(scheduled)


def two_losses_of_one_batch():
    """A critic's step: real and fake each go back, and both gradients are wanted."""
    with group():
        ddp = DistributedDataParallel(network())
        optimizer = torch.optim.Adam(ddp.parameters())
        for x, y in loader_of(TensorDataset(*samples())):
            optimizer.zero_grad()
            nn.functional.cross_entropy(ddp(x), y).backward()
            nn.functional.cross_entropy(ddp(-x), y).backward()
            optimizer.step()


def test_two_losses_of_one_batch_are_no_accumulation():
    check(two_losses_of_one_batch)


class Noisy(Dataset):
    def __len__(self):
        return 64

    def __getitem__(self, index):
        x, y = samples()
        return x[index] + torch.randn(FEATURES), y[index]


def test_dropout_is_off_and_a_random_dataset_gives_the_same_samples():
    verdict = check(lambda: train(model=lambda: network(nn.Dropout(0.5)), dataset=Noisy))
    assert "dropout is off" in str(verdict)


class Stream(IterableDataset):
    def __iter__(self):
        yield from list(zip(*samples(), strict=True))[dist.get_rank() :: dist.get_world_size()]


def streaming():
    with group():
        ddp = DistributedDataParallel(network())
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        for x, y in DataLoader(Stream(), 4, num_workers=1, persistent_workers=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(ddp(x), y).backward()
            optimizer.step()


def test_a_stream_with_workers():
    check(streaming)


# ---- equally wrong on every rank


def test_a_sum_in_place_of_a_mean():
    def loss(output, y):
        return nn.functional.cross_entropy(output, y, reduction="sum")

    verdict = parts(lambda: train(loss=loss), cause="sum, not mean")
    assert verdict.factor == pytest.approx(0.5, rel=1e-3)
    assert verdict.module == "Linear"
    assert "2.00 times too small" in str(verdict)


def test_mean_of_means_over_uneven_tokens():
    verdict = parts(lambda: over_tokens(lambda count: count), cause="mean of means")
    assert "targets" in verdict.why


def test_mean_of_means_in_an_uneven_last_batch_only():
    parts(lambda: uneven(weigh=False), cause="mean of means", step=2)


def test_an_accumulation_that_is_not_divided():
    verdict = parts(lambda: accumulating(divide=False), cause="accumulation undivided")
    assert verdict.factor == 2


def test_batchnorm():
    verdict = parts(lambda: train(model=lambda: network(nn.BatchNorm1d(8))), cause="BatchNorm")
    assert "convert_sync_batchnorm" in verdict.way_out


def test_batchnorm_does_not_hide_another_mistake():
    def loss(output, y):
        if dist.get_world_size() > 1:
            output = output + 0 * torch.randint(2, (1,))  # draws, but alike on all ranks
        return nn.functional.cross_entropy(output, y, reduction="sum")

    def model():
        return network(nn.BatchNorm1d(8))

    verdict = parts(lambda: train(model=model, loss=loss), cause="sum, not mean")
    assert "BatchNorm is in eval()" in str(verdict)


def slightly_wrong():
    """A mistake of one part in a thousand, behind bfloat16."""

    def loss(output, y):
        return nn.functional.cross_entropy(output.float(), y) * (1 + 1e-3 * dist.get_world_size())

    with torch.autocast("cpu", torch.bfloat16):
        train(loss=loss)


def test_float64_shows_what_bfloat16_hides():
    check(slightly_wrong)
    verdict = check(slightly_wrong, "parts", float64=True)
    assert verdict.factor == pytest.approx(1.002 / 1.001, rel=1e-6)


def clipped_too_early():
    with group() as (_, world):
        ddp = DistributedDataParallel(network())
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        for x, y in loader_of(TensorDataset(*samples())):
            optimizer.zero_grad()
            with ddp.no_sync():
                nn.functional.cross_entropy(ddp(x), y).backward()
            nn.utils.clip_grad_norm_(ddp.parameters(), 0.1)
            for p in ddp.parameters():
                dist.all_reduce(p.grad)
                p.grad /= world
            optimizer.step()


def test_clipping_before_the_average():
    parts(clipped_too_early, cause="clipped too early")


def test_clipping_by_a_length_of_the_ranks_own():
    def clip(ddp):
        own = 0.1 * (1 + dist.get_rank())
        nn.utils.clip_grad_norm_(ddp.parameters(), own)

    verdict = parts(lambda: train(after_backward=clip), cause="changed after the average")
    assert "after backward() the ranks' gradients" in verdict.why


def outside():
    with group():
        ddp = DistributedDataParallel(nn.Linear(FEATURES, 8))
        torch.manual_seed(2)
        head = nn.Linear(8, CLASSES)
        optimizer = torch.optim.SGD([*ddp.parameters(), *head.parameters()], lr=0.1)
        for x, y in loader_of(TensorDataset(*samples())):
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(ddp(x)), y).backward()
            optimizer.step()


def test_a_head_outside_the_wrapped_model():
    verdict = parts(outside, cause="not averaged", parameter="head.weight")
    assert "not inside the DDP model" in verdict.why


def test_a_rate_that_grows_with_the_ranks():
    def optimizer(parameters):
        return torch.optim.AdamW(parameters, lr=1e-3 * dist.get_world_size())

    verdict = parts(lambda: train(optimizer=optimizer), cause="learning rate", stage="updates")
    assert "lr is 0.002 on 2 ranks and 0.001 on one" in verdict.why


def test_weights_changed_after_the_wrap():
    def change(ddp):
        with torch.no_grad():
            ddp.module[2].weight.add_(0.1 * dist.get_rank())

    parts(
        lambda: train(after_wrap=change),
        cause="changed after the wrap",
        stage="weights",
        parameter="2.weight",
    )


def test_weights_changed_between_steps():
    steps = []

    def shrink(ddp):
        steps.append(1)
        if len(steps) == 3:  # what ends here is the third backward: the second step is over
            with torch.no_grad():
                ddp.module[2].bias.mul_(1 / dist.get_world_size())

    parts(
        lambda: train(after_backward=shrink),
        cause="changed between steps",
        stage="weights",
        step=3,
        parameter="2.bias",
    )


def test_a_second_average():
    def again(ddp):
        for p in ddp.parameters():
            p.grad /= dist.get_world_size()

    verdict = parts(lambda: train(after_backward=again), cause="averaged twice")
    assert verdict.factor == pytest.approx(0.5, rel=1e-3)


def test_a_sum_after_the_average():
    def added(ddp):
        for p in ddp.parameters():
            dist.all_reduce(p.grad)

    verdict = parts(lambda: train(after_backward=added), cause="averaged twice")
    assert "2.00 times too large" in verdict.why


def test_a_loss_divided_by_world_size():
    def loss(output, y):
        return nn.functional.cross_entropy(output, y) / dist.get_world_size()

    parts(lambda: train(loss=loss), cause="averaged twice")


def test_a_loss_that_is_averaged_before_backward():
    def loss(output, y):
        mean = nn.functional.cross_entropy(output, y)
        dist.all_reduce(mean)
        return mean / dist.get_world_size()

    verdict = parts(lambda: train(loss=loss), cause="averaged twice")
    assert "averaged over the ranks by hand" in verdict.why


def by_hand_without_division():
    with group():
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in loader_of(TensorDataset(*samples())):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            for p in model.parameters():
                dist.all_reduce(p.grad)
            optimizer.step()


def test_gradients_that_are_added_up():
    parts(by_hand_without_division, cause="added up, not averaged")


def test_samples_that_a_sampler_fills_up_with():
    def dataset():
        return TensorDataset(*samples(13))

    parts(lambda: train(dataset=dataset), cause="samples counted twice", step=2)
    verdict = check(lambda: train(dataset=dataset), steps=1)
    assert "last batch, number 2, is smaller or filled up and was not reached" in str(verdict)


def test_labels_that_one_rank_has_shuffled():
    def dataset():
        x, y = samples()
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(dist.get_rank()))
        return TensorDataset(x, y if dist.get_rank() == 0 else y[order])

    verdict = parts(lambda: train(dataset=dataset), cause="samples")
    assert "on rank 1" in verdict.why


def contrasted(gather):
    """Each sample against all of the batch, as SimCLR and CLIP do."""
    with group() as (rank, world):
        ddp = DistributedDataParallel(network())
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        for x, _ in loader_of(TensorDataset(*samples())):
            optimizer.zero_grad()
            features = ddp(x)
            others = torch.cat(gather(features, world))
            mine = torch.arange(len(x)) + rank * len(x)
            nn.functional.cross_entropy(features @ others.T, mine).backward()
            optimizer.step()


def without_gradient(features, world):
    found = [torch.empty_like(features) for _ in range(world)]
    dist.all_gather(found, features)
    return found


def test_a_contrastive_loss():
    check(lambda: contrasted(lambda f, _: torch.distributed.nn.functional.all_gather(f)))
    parts(lambda: contrasted(without_gradient), cause="no gradient through a collective")


def test_a_teacher_that_each_rank_draws_itself():
    def loss(output, _):
        torch.manual_seed(dist.get_rank())
        teacher = nn.Linear(CLASSES, CLASSES).requires_grad_(False)
        return teacher(output).square().mean()

    verdict = parts(lambda: train(loss=loss), cause="other frozen weights")
    assert "teacher.weight" in verdict.why


# ---- what can't be compared


def test_draws_for_each_sample_in_the_loop():
    def loss(output, y):
        return nn.functional.cross_entropy(output + torch.randn_like(output), y)

    verdict = check(lambda: train(loss=loss), "can't be compared")
    assert "random numbers are drawn" in verdict.why


def test_no_step_and_a_function_that_fails():
    verdict = check(lambda: None, "can't be compared")
    assert "no optimizer.step()" in verdict.why

    def alone_it_fails():
        if dist.is_initialized() or int(__import__("os").environ["WORLD_SIZE"]) == 1:
            raise RuntimeError("I need a partner")
        train()

    verdict = check(alone_it_fails, "can't be compared")
    assert "one rank can't run the function" in verdict.why
    assert "I need a partner" in verdict.why


def by_hand(of_each_rank, mean=True, pieces=1):
    """Batches as nanoGPT's get_batch makes them."""
    with group() as (rank, world):
        ddp = DistributedDataParallel(network())
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        x, y = samples()
        draws = torch.Generator().manual_seed(rank if of_each_rank else 0)
        pieces = max(1, pieces // world)
        for _ in range(4):
            optimizer.zero_grad()
            for piece in range(pieces):
                places = torch.randint(len(x), (8,), generator=draws)
                places = places if of_each_rank else places[rank::world]
                ddp.require_backward_grad_sync = piece == pieces - 1
                reduction = "mean" if mean else "sum"
                loss = nn.functional.cross_entropy(ddp(x[places]), y[places], reduction=reduction)
                (loss / pieces).backward()
            optimizer.step()


@pytest.mark.parametrize("pieces", [1, 4])
def test_batches_that_each_rank_draws_itself(pieces):
    verdict = check(lambda: by_hand(of_each_rank=True, pieces=pieces))
    assert "no DataLoader" in str(verdict)
    check(lambda: by_hand(of_each_rank=False))


def test_a_sum_over_batches_that_each_rank_draws_itself():
    parts(lambda: by_hand(of_each_rank=True, mean=False), cause="sum, not mean")


def from_two_sources():
    with group() as (rank, world):
        ddp = DistributedDataParallel(network())
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        loader = DataLoader(TensorDataset(*samples()), 8 if world == 1 or rank else 4)
        for x, y in loader if world > 1 else list(loader):
            optimizer.zero_grad()
            nn.functional.cross_entropy(ddp(x), y).backward()
            optimizer.step()


def test_a_script_that_loads_in_another_way_on_one_rank():
    verdict = check(from_two_sources, "can't be compared")
    assert "trains on other samples" in verdict.why


# ---- the command, and the templates


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """The command line, in this process: the exit code, and what it printed."""

    def run(*words):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["ddp_helpers"])
        code = main(["verify", *map(str, words)])
        return code, "".join(capsys.readouterr())

    return run


def test_starter_is_equal(command, tmp_path):
    options = "--global-batch-size 64 --run-folder {folder}".split()
    x, y = torch.randint(256, (300, 28, 28), dtype=torch.uint8), torch.arange(300) % 10
    torch.save([x, y, x[:20], y[:20]], tmp_path / "data.pt")
    given, own = '"../../data/mnist_5k/mnist_5k.pt"', f'"{tmp_path / "data.pt"}"'
    text = (TEMPLATES / "starter.py").read_text()
    assert given in text
    (tmp_path / "starter.py").write_text(text.replace(given, own))
    code, said = command("starter.py", "--steps", 3, "-n", 2, "--", *options)
    assert code == 0, said
    assert "a batch sampler of your own" in said
    assert {path.name for path in tmp_path.iterdir()} == {"data.pt", "starter.py"}


def test_a_template_for_torchrun_is_equal(command):
    few = ("--steps", 2, "-n", 2, "--", "--epochs", 1)
    code, said = command(TEMPLATES / "ddp_torchrun.py", *few)
    assert code == 0, said


def test_a_script_that_starts_its_own_ranks(command):
    code, said = command(TEMPLATES / "ddp_spawn.py", "-n", 2, "--", "--epochs", 1)
    assert code == 2, said
    assert "mp.spawn" in said


SUMS = """
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def main():
    dist.init_process_group("gloo")
    size = int(sys.argv[-1])
    dataset = TensorDataset(torch.arange(64.0).view(32, 2) / 64, torch.arange(32) % 3)
    model = nn.parallel.DistributedDataParallel(nn.Linear(2, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1 * {factor})
    for x, y in DataLoader(dataset, size, sampler=DistributedSampler(dataset)):
        loss = nn.functional.cross_entropy(model(x), y, reduction="sum") / size
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    dist.destroy_process_group()
"""


def test_a_batch_size_of_its_own_for_one_rank_and_exit_codes(command, tmp_path):
    (tmp_path / "sums.py").write_text(SUMS.replace("{factor}", "1"))
    (tmp_path / "scaled.py").write_text(SUMS.replace("{factor}", "dist.get_world_size()"))
    code, said = command("sums.py:main", "-n", 2, "--", "4")
    assert code == 2, said
    assert "divided by 4, the samples of one rank's step" in said
    alone = ("-n", 2, "--alone", "8", "--", "4")
    code, said = command("sums.py:main", *alone)
    assert code == 0, said
    code, said = command("scaled.py:main", *alone)
    assert code == 1, said
    assert "lr is 0.2 on 2 ranks and 0.1 on one" in said
    code, said = command("nowhere.py:main", "-n", 2)
    assert (code, said) == (
        2,
        'error: "nowhere.py:main": there is no file nowhere.py; expected path/script.py:function\n',
    )
