"""Any number of ranks, with any accumulation, trains as one process on the whole global batch."""

import functools
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset, TensorDataset
from torch_age import of_the_run

from ddp_helpers import launch, process_group
from ddp_helpers.data.loaders import make_eval_loader, make_resumable_loader, make_train_loader
from ddp_helpers.model import MLP
from ddp_helpers.training import fit, train_one_epoch
from ddp_helpers.training.evaluation import evaluate
from ddp_helpers.training.losses import CrossEntropy
from ddp_helpers.training.schedule import warm_up

pytestmark = pytest.mark.usefixtures("no_process_left", "one_thread")
STEPS = 20
IGNORED = -100
WORLDS = [1, 2, 3, 4]
# samples, global batch, accumulation steps; at 33 samples the last batch holds a single one
CASES = [(40, 8, 1), (37, 8, 1), (33, 8, 1), (33, 8, 2), (37, 10, 2), (46, 13, 3), (3, 12, 3)]
SIZES = range(1, 41)


def samples(n, tokens=False):
    """Inputs (n, 4) and labels (n); or (n, 5, 4) and (n, 5), of which many have no loss."""
    generator = torch.Generator().manual_seed(n)
    shape = (n, 5) if tokens else (n,)
    inputs = torch.randn(*shape, 4, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 3, shape, generator=generator)
    if tokens:
        labels[torch.rand(shape, generator=generator) < 0.6] = IGNORED
        labels[0] = IGNORED  # a sample, perhaps a whole share, without a single token
    return TensorDataset(inputs, labels)


class TokenMLP(nn.Module):
    """Each token by itself: (N, T, 4) to (N, T, 3)."""

    def __init__(self):
        super().__init__()
        self.out, self.hidden = nn.Linear(8, 3), nn.Linear(4, 8)

    def forward(self, inputs):
        return self.out(torch.tanh(self.hidden(inputs)))


def parts(model_class):
    torch.manual_seed(1)
    model = (TokenMLP() if model_class is TokenMLP else MLP(4, 8, 3)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    return model, optimizer, warm_up(optimizer, 5, total_steps=30)


def weights(model):
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).clone()


def train(n, global_batch, accumulation, tokens, sampler="global"):
    """The weights after each of 20 steps."""
    with process_group() as pg:
        model, optimizer, scheduler = parts(TokenMLP if tokens else MLP)
        wrapped = DistributedDataParallel(model) if pg.world_size > 1 else model
        ranks = {"rank": pg.rank, "world_size": pg.world_size}
        data, seen = samples(n, tokens), []
        if sampler == "global":
            loader = make_resumable_loader(
                data, global_batch, accumulation_steps=accumulation, **ranks
            )
        else:
            micro = global_batch // pg.world_size // accumulation
            loader = make_train_loader(data, micro, **ranks)
        fit(
            wrapped,
            loader,
            make_eval_loader(data, 7, **ranks),
            optimizer,
            epochs=math.ceil(STEPS / math.ceil(n / global_batch)),
            device="cpu",
            progress=lambda *_: seen.append(weights(model)),
            accumulation_steps=accumulation,
            max_grad_norm=0.3,
            scheduler=scheduler,
            loss=CrossEntropy(IGNORED if tokens else None),
        )
        return torch.stack(seen[:STEPS])


@functools.cache
def expected(n, global_batch, tokens):
    """A plain loop in one process, one backward over the whole global batch."""
    model, optimizer, scheduler = parts(TokenMLP if tokens else MLP)
    inputs, labels = samples(n, tokens).tensors
    seen = []
    for epoch in itertools.count():
        order = torch.randperm(n, generator=torch.Generator().manual_seed(epoch))
        for batch in order.split(global_batch):
            optimizer.zero_grad()
            logits = model(inputs[batch]).flatten(0, -2)
            targets = labels[batch].flatten()
            kept = targets != IGNORED
            loss = F.cross_entropy(logits[kept], targets[kept], reduction="sum")
            (loss / max(1, kept.sum())).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            optimizer.step()
            scheduler.step()
            seen.append(weights(model))
            if len(seen) == STEPS:
                return torch.stack(seen)


def all_cases():
    return {(case, tokens): train(*case, tokens) for case in CASES for tokens in (False, True)}


@pytest.mark.parametrize("world_size", WORLDS)
def test_ranks_follow_one_process_for_twenty_steps(world_size):
    values = launch(all_cases, world_size, threads_per_rank=1).values
    for (case, tokens), found in values[0].items():
        truth = expected(case[0], case[1], tokens)
        assert found.shape == truth.shape
        difference = (found - truth).abs().max().item()
        assert difference < 1e-9, (case, tokens, difference)
        assert (truth[-1] - truth[0]).abs().max() > 0.01  # it did learn
        for other in values[1:]:
            assert torch.equal(other[case, tokens], found)


def test_the_sanitizer_finds_nothing():
    result = launch(all_cases, 3, threads_per_rank=1, sanitize=True)
    assert of_the_run(result.findings) == []


def test_a_distributed_sampler_is_weighted_right_too():
    for accumulation in (1, 2):
        values = launch(train, 2, args=(40, 8, accumulation, False, "distributed")).values
        difference = (values[0] - expected(40, 8, False)).abs().max().item()
        assert difference < 1e-9


# ---- ranks with different numbers of batches


def train_uneven(accumulation, lengths, optimizer_class):
    """Rank r has lengths[r] samples of its own, in batches of 3; two epochs."""
    with process_group() as pg:
        torch.manual_seed(1)
        model = MLP(4, 8, 3).double()
        optimizer = optimizer_class(model.parameters(), lr=0.05)
        loader = DataLoader(Subset(samples(40), shares(lengths)[pg.rank]), 3)
        wrapped = DistributedDataParallel(model) if pg.world_size > 1 else model
        for epoch in range(2):
            train_one_epoch(
                wrapped,
                loader,
                optimizer,
                device="cpu",
                epoch=epoch,
                accumulation_steps=accumulation,
                uneven_inputs=True,
            )
        return weights(model), optimizer.state_dict()["state"]


def shares(lengths):
    ends = list(itertools.accumulate(lengths))
    return [range(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def uneven_truth(accumulation, lengths, optimizer_class):
    torch.manual_seed(1)
    model = MLP(4, 8, 3).double()
    optimizer = optimizer_class(model.parameters(), lr=0.05)
    inputs, labels = samples(40).tensors
    size = 3 * accumulation
    for _ in range(2):
        for start in range(0, max(lengths), size):
            batch = [i for share in shares(lengths) for i in share[start : start + size]]
            optimizer.zero_grad()
            F.cross_entropy(model(inputs[batch]), labels[batch]).backward()
            optimizer.step()
    return weights(model)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("lengths", [(15, 4), (2, 17, 9)])
@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.Adam])
def test_uneven_inputs_count_each_sample_once(accumulation, lengths, optimizer_class):
    args = (accumulation, lengths, optimizer_class)
    values = launch(train_uneven, len(lengths), args=args).values
    truth = uneven_truth(*args)
    for found, state in values:
        torch.testing.assert_close(found, truth, rtol=0, atol=1e-9)
        for key, entry in state.items():  # Join would leave Adam's averages behind on some ranks
            for name, value in entry.items():
                assert torch.equal(value, values[0][1][key][name])


def train_with_join(lengths):
    """What torch's Join leaves in Adam after one epoch."""
    from torch.distributed.algorithms.join import Join

    with process_group() as pg:
        torch.manual_seed(1)
        model = DistributedDataParallel(MLP(4, 8, 3).double())
        optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
        with Join([model]):
            for inputs, labels in DataLoader(Subset(samples(40), shares(lengths)[pg.rank]), 3):
                optimizer.zero_grad()
                F.cross_entropy(model(inputs), labels).backward()
                optimizer.step()
        return [entry["step"].item() for entry in optimizer.state_dict()["state"].values()]


def test_join_leaves_adam_behind_on_the_rank_that_ran_out():
    """Why uneven_inputs does not use it."""
    first, second = launch(train_with_join, 2, args=((15, 4),)).values
    assert set(first) == {5}
    assert set(second) == {2}


def test_uneven_inputs_without_any_batch_fail_on_all_ranks():
    def train():
        with process_group() as pg:
            model = DistributedDataParallel(MLP(4, 8, 3).double())
            loader = DataLoader(Subset(samples(40), range(7) if pg.rank else range(3)), 3)
            loader = loader if pg.rank else DropAll(loader)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            with pytest.raises(ValueError, match="a rank has no batch at all"):
                train_one_epoch(model, loader, optimizer, device="cpu", epoch=0, uneven_inputs=True)

    launch(train, 2)


class DropAll:
    """A loader that says it has batches and then gives none."""

    def __init__(self, loader):
        self.sampler, self.batch_sampler = loader.sampler, None
        self.dataset, self.length = loader.dataset, len(loader)

    def __len__(self):
        return self.length

    def __iter__(self):
        return iter(())


# ---- evaluation


def evaluate_all_sizes():
    with process_group() as pg:
        results = {}
        model, token_model = parts(MLP)[0], parts(TokenMLP)[0]
        for n in SIZES:
            for tokens in (False, True):
                loader = make_eval_loader(
                    samples(n, tokens), 3, rank=pg.rank, world_size=pg.world_size
                )
                loss = CrossEntropy(IGNORED if tokens else None)
                if tokens and n == 1:
                    continue  # its only sample has no token
                used = token_model if tokens else model
                results[n, tokens] = evaluate(used, loader, device="cpu", loss=loss)
        return results


@pytest.mark.parametrize("world_size", WORLDS)
def test_evaluation_counts_each_sample_once_for_every_size(world_size):
    values = launch(evaluate_all_sizes, world_size, threads_per_rank=1).values
    assert all(value == values[0] for value in values)
    for (n, tokens), metrics in values[0].items():
        inputs, labels = samples(n, tokens).tensors
        with torch.no_grad():
            logits = parts(TokenMLP if tokens else MLP)[0](inputs)
        counted = labels != IGNORED
        loss = F.cross_entropy(logits.flatten(0, -2), labels.flatten()).item()
        correct = (logits.argmax(-1) == labels)[counted].sum().item()
        assert (metrics.correct, metrics.samples) == (correct, counted.sum().item())
        assert metrics.loss == pytest.approx(loss, abs=1e-12)
    assert len(values[0]) == 79


# ---- what goes over the network


def count_all_reduces(accumulation):
    """Calls of DDP's hook in an epoch of five steps, the last of them with a single sample."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    calls = []

    def hook(group, bucket):
        calls.append(bucket.index())
        return allreduce_hook(group, bucket)

    with process_group() as pg:
        model, optimizer, _ = parts(MLP)
        wrapped = DistributedDataParallel(model)
        wrapped.register_comm_hook(None, hook)
        loader = make_resumable_loader(
            samples(33), 8, accumulation_steps=accumulation, rank=pg.rank, world_size=pg.world_size
        )
        options = {"accumulation_steps": accumulation}
        train_one_epoch(wrapped, loader, optimizer, device="cpu", epoch=0, **options)
    return len(calls)


def test_accumulation_averages_once_a_step():
    for accumulation in (1, 2, 4):
        assert launch(count_all_reduces, 2, args=(accumulation,)).values == [5, 5]
