"""Causes that the sanitizer tells from what it recorded, however the training is written."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import (
    DataLoader,
    Dataset,
    DistributedSampler,
    Subset,
    TensorDataset,
    random_split,
)
from torch_age import needs_torch, of_the_run

from ddp_helpers import LaunchError, launch, process_group
from ddp_helpers.sanitizer.compare.shares import ONE_SPLIT

pytestmark = pytest.mark.usefixtures("no_process_left")


def samples(size=48):
    x = torch.randn(size, 4, generator=torch.Generator().manual_seed(1))
    return TensorDataset(x, torch.arange(size) % 3)


def loader(data=None):
    data = data or samples()
    return DataLoader(data, 8, sampler=DistributedSampler(data))


def net(*extra):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), *extra, nn.Linear(8, 3))


def wrap(module=None, **options):
    ddp = DistributedDataParallel(module or net(), **options)
    return ddp, torch.optim.SGD(ddp.parameters(), lr=0.1)


def fit(ddp, optimizer, batches):
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(ddp(x), y).backward()
        optimizer.step()


def found(training):
    """All that is found in a run of two ranks."""

    def run():
        with process_group() as pg:
            training(pg.rank)

    try:
        result = launch(run, 2, sanitize=True, echo=False, timeout=60)
    except LaunchError as error:
        result = error.result
    return of_the_run(result.findings)


def only(training):
    (finding,) = found(training)
    return finding


# ---- forwards and backwards


@pytest.mark.parametrize("extra", [(), (nn.BatchNorm1d(8),)])
def test_a_batch_that_one_rank_skips(extra):
    def train(rank):
        data = samples()
        data.tensors[0][17] = float("nan")
        ddp, optimizer = wrap(net(*extra))
        sampler = DistributedSampler(data, shuffle=False)
        for x, y in DataLoader(data, 8, sampler=sampler):
            optimizer.zero_grad()
            loss = F.cross_entropy(ddp(x), y)
            if not torch.isfinite(loss):
                continue
            loss.backward()
            optimizer.step()

    finding = only(train)
    assert (finding.kind, finding.ranks) == ("steps-differ", (1,))
    assert "rank 1 ran a forward of the wrapped model without a backward" in finding.cause


def test_a_closure_that_returns_each_ranks_own_loss():
    def train(rank):
        ddp, _ = wrap()
        optimizer = torch.optim.LBFGS(ddp.parameters(), lr=1, line_search_fn="strong_wolfe")
        for x, y in loader():

            def closure(x=x, y=y):
                optimizer.zero_grad()
                loss = F.cross_entropy(ddp(x), y)
                loss.backward()
                return loss

            optimizer.step(closure)

    finding = only(train)
    assert finding.kind == "weights-differ"
    assert "within a step of LBFGS" in finding.cause
    assert "init_sync" not in str(finding)


# ---- parameters


def assign(ddp):
    state = copy.deepcopy(ddp.module.state_dict())
    ddp.module.load_state_dict(state, assign=True)
    for p in ddp.module.parameters():
        p.requires_grad_(True)


def cast(ddp):
    ddp.double()


def cast_within(ddp):
    ddp.module.to(torch.float64)


def replace_one(ddp):
    ddp.module[0] = copy.deepcopy(ddp.module[0])


def give_other_data(ddp):
    for p in ddp.parameters():
        p.data = p.data.double()


CHANGES = [
    (give_other_data, ""),
    (assign, "load_state_dict(assign=True)"),
    (cast, ".double()"),
    (cast_within, ".to()"),
    (replace_one, ""),
]


@pytest.mark.parametrize(
    ("change", "named"), CHANGES, ids=lambda value: getattr(value, "__name__", "")
)
def test_parameters_that_are_not_ddps_any_more(change, named):
    def train(rank):
        ddp, _ = wrap()
        change(ddp)
        optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
        dtype = next(ddp.parameters()).dtype
        fit(ddp, optimizer, ((x.to(dtype), y) for x, y in loader()))

    finding = only(train)
    assert finding.kind == "parameters-replaced"
    assert f"after the wrap{' by ' + named if named else ','}" in finding.cause
    assert "find_unused_parameters" not in str(finding)


def test_a_module_that_is_moved_to_where_it_is():
    def train(rank):
        ddp, optimizer = wrap()
        ddp.to("cpu").float()
        fit(ddp, optimizer, loader())
        best = copy.deepcopy(ddp.module).half()  # another one
        ddp.module.load_state_dict(best.float().state_dict())
        fit(ddp, optimizer, loader())

    assert found(train) == []


# ---- modes


class Logger:
    def __init__(self, on):
        self.on = on

    def epoch_end(self, act):
        if self.on:
            act()


def guarded_by_a_name(rank, act):
    verbose = rank == 0
    if verbose:
        act()


def guarded_by_not(rank, act):
    if not rank:
        act()


def guarded_elsewhere(rank, act):
    Logger(rank == 0).epoch_end(act)


@pytest.mark.parametrize("guard", [guarded_by_a_name, guarded_by_not, guarded_elsewhere])
def test_one_rank_evaluates_through_the_wrapper(guard):
    def train(rank):
        ddp, optimizer = wrap(net(nn.BatchNorm1d(8)))
        batches = loader()

        def validate():
            ddp.eval()
            with torch.no_grad():
                for x, _ in DataLoader(samples(), 8):
                    ddp(x)

        for epoch in range(2):
            batches.sampler.set_epoch(epoch)
            ddp.train()
            fit(ddp, optimizer, batches)
            guard(rank, validate)

    finding = only(train)
    assert (finding.kind, finding.ranks) == ("different-collective", (0,))
    assert "the model of rank 0 is in evaluation mode while rank 1 trains" in finding.cause


@pytest.mark.parametrize("alone", [True, False])
def test_evaluation_mode_that_is_left_on(alone):
    def train(rank):
        ddp, optimizer = wrap(net(nn.Dropout(0.5)))
        torch.manual_seed(rank)
        batches = loader()
        for epoch in range(2):
            batches.sampler.set_epoch(epoch)
            fit(ddp, optimizer, batches)
            if rank == 0 or not alone:
                ddp.module.eval()

    finding = only(train)
    assert (finding.kind, finding.serious) == ("eval-left-on", alone)


def test_evaluation_mode_from_the_start():
    def train(rank):
        ddp, optimizer = wrap(net(nn.BatchNorm1d(8)))
        ddp.eval()  # fine-tuning with fixed statistics
        fit(ddp, optimizer, loader())

    assert found(train) == []


# ---- gradients averaged by hand, and by FSDP


@pytest.mark.parametrize("late", [True, False])
def test_gradients_that_are_averaged_after_the_step(late):
    def train(rank):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

        def average():
            for p in model.parameters():
                dist.all_reduce(p.grad.data)
                p.grad /= 2

        for x, y in loader():
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            if not late:
                average()
            optimizer.step()
            if late:
                average()

    if late:
        assert only(train).kind == "averaged-after-step"
    else:
        assert found(train) == []


@needs_torch(2, 7, "before, fully_shard does not work on a CPU")
@pytest.mark.parametrize("syncs", [False, True])
def test_accumulation_with_fsdp(syncs):
    def train(rank):
        model = net()
        fully_shard(model)
        optimizer = torch.optim.AdamW(model.parameters())
        for number, (x, y) in enumerate(loader()):
            last = number % 3 == 2
            model.set_requires_gradient_sync(syncs and last)
            F.cross_entropy(model(x), y).backward()
            if last:
                optimizer.step()
                optimizer.zero_grad()

    if syncs:
        assert found(train) == []
    else:
        finding = only(train)
        assert finding.kind == "sharded-without-gradients"
        assert "though 3 backward passes came before" in finding.cause


def test_zero_by_hand_that_sends_nothing():
    def train(rank):
        ddp, _ = wrap()
        optimizer = torch.optim.SGD(list(ddp.parameters())[rank::2], lr=0.1)
        for x, y in loader():
            ddp.zero_grad()
            F.cross_entropy(ddp(x), y).backward()
            optimizer.step()

    assert only(train).kind == "weights-differ"


@needs_torch(2, 7, "before, fully_shard does not work on a CPU")
@pytest.mark.parametrize("early", [False, True])
def test_an_optimizer_made_before_fully_shard(early):
    def train(rank):
        model, alone = net(), nn.Linear(4, 3)
        optimizer = torch.optim.AdamW(model.parameters()) if early else None
        idle = torch.optim.SGD(alone.parameters(), lr=0.1)  # no gradient, but its model is there
        fully_shard(model)
        optimizer = optimizer or torch.optim.AdamW(model.parameters())
        for x, y in loader():
            F.cross_entropy(model(x), y).backward()
            idle.step()
            optimizer.step()
            optimizer.zero_grad()

    if early:
        finding = only(train)
        assert finding.kind == "parameters-replaced"
        assert "AdamW steps 4 parameters that no module has now" in finding.cause
    else:
        assert found(train) == []


@needs_torch(2, 7, "before, fully_shard does not work on a CPU")
@pytest.mark.parametrize("local", [False, True])
def test_clipping_by_the_norm_of_a_share(local):
    def train(rank):
        model, other = net(), nn.Linear(2, 2)
        fully_shard(model)
        optimizer = torch.optim.AdamW(model.parameters())
        for x, y in loader():
            F.cross_entropy(model(x), y).backward()
            weights = list(model.parameters())
            if local:
                shares = [nn.Parameter(w.detach().to_local()) for w in weights]
                for share, weight in zip(shares, weights, strict=True):
                    share.grad = weight.grad.to_local()
                weights = shares
            other(torch.ones(1, 2)).sum().backward()
            nn.utils.clip_grad_norm_(other.parameters(), 1.0)  # each rank's own affair
            nn.utils.clip_grad_norm_((w for w in weights), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    if local:
        finding = only(train)
        assert finding.kind == "clipped-by-own-norm"
        assert "4 tensors that are this rank's shares" in finding.cause
    else:
        assert found(train) == []


@pytest.mark.parametrize("summed", ["not", "whole", "by hand", "redistributed", "loss"])
def test_a_summand_that_is_taken_for_the_sum(summed):
    def train(rank):
        mesh = init_device_mesh("cpu", (2,))
        torch.manual_seed(0)
        weight = nn.Parameter(distribute_tensor(torch.randn(3, 4), mesh, [Shard(1)]))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        for x, y in DataLoader(samples(), 8):
            output = F.linear(distribute_tensor(x, mesh), weight)
            if summed == "loss":  # a sum of losses has the right gradient in each summand
                output.sum().to_local().backward()
            else:
                if summed == "whole":
                    output = output.full_tensor()
                elif summed == "redistributed":
                    output = output.redistribute(placements=[Replicate()]).to_local()
                else:
                    output = output.to_local()
                if summed == "by hand":
                    dist.all_reduce(output)
                F.cross_entropy(output, y).backward()
            optimizer.step()
            optimizer.zero_grad()

    if summed == "not":
        finding = only(train)
        assert finding.kind == "summand-taken-for-sum"
        assert "summand of a tensor of shape (8, 3)" in finding.cause
    else:
        assert "summand-taken-for-sum" not in [finding.kind for finding in found(train)]


def test_parts_of_the_data_that_are_split_once_more():
    def train(rank):
        part = Subset(samples(96), range(rank, 96, 2))
        ddp, optimizer = wrap()
        fit(ddp, optimizer, loader(part))

    finding = only(train)
    assert (finding.kind, finding.serious) == ("missing-data", True)
    assert "48 of 96 samples went to no rank" in finding.cause


class Text(Dataset):
    def __init__(self):
        self.text = "".join(chr(97 + (i * i + i // 7) % 26) for i in range(1000))

    def __len__(self):
        return len(self.text) - 4

    def __getitem__(self, index):
        codes = [float(ord(letter) - 97) for letter in self.text[index : index + 4]]
        return torch.tensor(codes), index % 3


def test_a_text_that_each_rank_splits_for_itself():
    def train(rank):
        torch.manual_seed(rank)
        text = Text()
        part, _ = random_split(text, [900, len(text) - 900])
        ddp, optimizer = wrap()
        fit(ddp, optimizer, loader(part))

    finding = only(train)
    assert finding.kind == "overlapping-data"
    assert finding.advice == ONE_SPLIT  # the sampler does what it should
