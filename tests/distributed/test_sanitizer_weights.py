"""The sanitizer on real ranks: weights, gradients, optimisers and DDP's own communication."""

import copy
import os
import sysconfig
import time

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torch_age import needs, needs_torch, of_the_run

from ddp_helpers import LaunchError, launch, process_group
from ddp_helpers.torch_private import SAVED_DATA

pytestmark = pytest.mark.usefixtures("no_process_left")


def found(fn, *args, nprocs=2, every=1):
    """The first finding of a run, or None."""
    try:
        result = launch(fn, nprocs, args=args, sanitize=every, echo=False, timeout=40)
    except LaunchError as error:
        if not error.result.findings:
            raise
        result = error.result
    told = of_the_run(result.findings)
    return told[0] if told else None


def kind(fn, *args, **options):
    finding = found(fn, *args, **options)
    return finding and finding.kind


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))


def batches(rank, steps=4, size=6):
    generator = torch.Generator().manual_seed(100 + rank)
    for _ in range(steps):
        x = torch.randn(size, 4, generator=generator)
        yield x, torch.randint(3, (size,), generator=generator)


def wrap(module=None, **options):
    ddp = DistributedDataParallel(module or net(), **options)
    return ddp, torch.optim.SGD(ddp.parameters(), lr=0.1)


def train(prepare=None, forward=None, before_step=None, steps=4, **options):
    """A plain loop with places to go wrong in; each gets (rank, step, ddp, optimizer)."""

    def run():
        with process_group() as pg:
            ddp, optimizer = wrap(**options)
            for step, (x, y) in enumerate(batches(pg.rank, steps)):
                if prepare:
                    prepare(pg.rank, step, ddp, optimizer)
                optimizer.zero_grad()
                out = forward(ddp, x) if forward else ddp(x)
                F.cross_entropy(out, y).backward()
                if not before_step or before_step(pg.rank, step, ddp, optimizer) is None:
                    optimizer.step()

    return run


def on(rank, at, act):
    """Do `act(ddp, optimizer)` on one rank before one step."""

    def prepare(mine, step, ddp, optimizer):
        if (mine, step) == (rank, at):
            act(ddp, optimizer)

    return prepare


# ---- the wrap


def make_model(how, rank):
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4), nn.Linear(4, 4 + (how == "shape" and rank == 2))]
    if rank == 2:
        layers += [nn.Linear(4, 4)] if how == "more" else []
        layers[1].weight.requires_grad_(how != "frozen")
        layers[1].to(torch.float64 if how == "dtype" else torch.float32)
    names = ("a", "c" if how == "name" and rank == 2 else "b", "d")
    return nn.ModuleDict(dict(zip(names, layers, strict=False)))


@pytest.mark.parametrize("how", ["shape", "more", "frozen", "dtype", "name", None])
def test_different_models(how):
    def run():
        with process_group() as pg:
            DistributedDataParallel(make_model(how, pg.rank))

    finding = found(run, nprocs=3)
    if how is None:
        assert finding is None
        return
    assert (finding.kind, finding.ranks) == ("different-models", (2,))
    assert {"more": "d.weight", "name": "b.weight"}.get(how, "b.") in finding.cause
    assert "DistributedDataParallel" in finding.place.source


@pytest.mark.parametrize("then", ["end", "barrier", "train"])
def test_a_rank_wraps_once_more(then):
    def run():
        with process_group() as pg:
            ddp, optimizer = wrap()
            if pg.rank == 1:
                wrap()
            if then == "barrier":
                dist.barrier()
            for x, y in batches(pg.rank) if then == "train" else ():
                F.cross_entropy(ddp(x), y).backward()
                optimizer.step()

    assert kind(run) == "different-models"


# ---- weights


def load(ddp, _):
    ddp.module.load_state_dict({k: v * 2 for k, v in ddp.module.state_dict().items()})


def initialise(ddp, _):
    nn.init.ones_(ddp.module[2].weight)


def edit_in_place(ddp, _):
    ddp.module[2].weight.data[0, 0] += 1e-6


def put_another_tensor(ddp, _):
    ddp.module[2].weight.data = ddp.module[2].weight.data.clone() + 1


def swap(ddp, _):
    first, second = ddp.module[0].weight.data, ddp.module[0].weight.data.clone()
    first[0], first[1] = second[1], second[0]


def transpose(ddp, _):
    ddp.module[0].weight.data = ddp.module[0].weight.data.t()


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize(
    "act", [load, initialise, edit_in_place, put_another_tensor, swap, transpose]
)
def test_weights_changed_on_one_rank(act, at):
    finding = found(train(on(2, at, act)), nprocs=3)
    assert (finding.kind, finding.ranks, finding.step) == ("changed-after-wrap", (2,), at)
    first = "0.weight" if act in (load, swap, transpose) else "2.weight"
    assert f"`{first}`" in finding.cause
    if act in (load, initialise):
        what = "load_state_dict" if act is load else "torch.nn.init.ones_"
        assert what in finding.cause
        assert act.__name__ in finding.details[0]


def test_two_parameters_change_places():
    def exchange(ddp, _):
        one, other = ddp.module[0].bias.data, ddp.module[0].weight.data[0].clone()
        ddp.module[0].weight.data[0] = one
        one.copy_(other)

    assert kind(train(on(1, 1, exchange))) == "changed-after-wrap"


def test_weights_changed_on_all_ranks_alike():
    def prepare(rank, step, ddp, optimizer):
        load(ddp, optimizer)
        transpose(ddp, optimizer)

    assert found(train(prepare)) is None


def test_weights_changed_between_forward_and_backward_of_accumulation():
    def run():
        with process_group() as pg:
            ddp, optimizer = wrap()
            for x, y in batches(pg.rank):
                with ddp.no_sync():
                    F.cross_entropy(ddp(x), y).backward()
                if pg.rank == 1:
                    ddp.module[0].bias.data += 1
                F.cross_entropy(ddp(x), y).backward()
                optimizer.step()

    assert kind(run) == "changed-after-wrap"


@pytest.mark.parametrize("edits", [False, True])
def test_weights_changed_where_gradients_are_averaged_by_hand(edits):
    def run():
        with process_group() as pg:
            ddp, optimizer = wrap()
            for step, (x, y) in enumerate(batches(pg.rank)):
                if edits and (pg.rank, step) == (1, 2):
                    ddp.module[2].bias.data += 1
                optimizer.zero_grad()
                with ddp.no_sync():
                    F.cross_entropy(ddp(x), y).backward()
                for p in ddp.parameters():
                    dist.all_reduce(p.grad)
                optimizer.step()

    finding = found(run)
    if edits:
        assert (finding.kind, finding.step, finding.ranks) == ("changed-after-wrap", 2, (1,))
    else:
        assert finding is None


def test_two_forwards_before_two_backwards():
    def run():
        with process_group() as pg:
            ddp, optimizer = wrap()
            for x, y in batches(pg.rank):
                optimizer.zero_grad()
                first, second = ddp(x), ddp(x + 1)
                F.cross_entropy(first, y).backward()
                F.cross_entropy(second, y).backward()  # DDP does not average this one
                optimizer.step()

    assert kind(run) == "gradients-differ"


@needs_torch(2, 7, "init_sync")
def test_weights_never_alike():
    def run():
        with process_group() as pg:
            module = net()
            module[0].bias.data += pg.rank
            ddp, optimizer = wrap(module, init_sync=False)
            for x, y in batches(pg.rank):
                F.cross_entropy(ddp(x), y).backward()
                optimizer.step()

    finding = found(run)
    assert finding.kind == "weights-differ"
    assert "init_sync" in finding.advice


def test_the_optimizers_own_state_differs():
    def run():
        with process_group() as pg:
            ddp, _ = wrap()
            optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
            for step, (x, y) in enumerate(batches(pg.rank)):
                optimizer.zero_grad()
                F.cross_entropy(ddp(x), y).backward()
                optimizer.step()
                if pg.rank == 1 and step == 1:
                    optimizer.state.clear()  # as if only the other ranks had loaded it

    finding = found(run)
    assert (finding.kind, finding.step) == ("weights-differ", 2)


# ---- gradients


def by_a_method(ddp, x):
    return ddp.module[2](ddp.module[1](ddp.module[0](x)))


@pytest.mark.parametrize("forward", [lambda ddp, x: ddp.module(x), by_a_method])
def test_forward_past_the_wrapper(forward):
    finding = found(train(forward=forward))
    assert (finding.kind, finding.step, finding.ranks) == ("forward-skipped-ddp", 0, (0, 1))
    assert "optimizer.step()" in finding.place.source


def test_forward_past_the_wrapper_now_and_then():
    turns = []

    def forward(ddp, x):
        turns.append(x)
        return ddp.module(x) if len(turns) == 3 else ddp(x)

    finding = found(train(forward=forward))
    assert (finding.kind, finding.step) == ("forward-skipped-ddp", 2)


def test_forward_past_the_wrapper_besides_the_right_one():
    def run():
        with process_group() as pg:
            ddp, optimizer = wrap()
            for x, y in batches(pg.rank):
                optimizer.zero_grad()
                F.cross_entropy(ddp(x), y).backward()
                F.cross_entropy(ddp.module(x), y).backward()
                optimizer.step()

    assert kind(run) == "forward-skipped-ddp"


def test_forward_past_the_wrapper_under_no_grad():
    def forward(ddp, x):
        with torch.no_grad():
            ddp.module(x)
        return ddp(x)

    assert found(train(forward=forward)) is None


def test_autograd_grad_is_not_averaged():
    def run():
        with process_group() as pg:
            ddp, optimizer = wrap()
            parameters = list(ddp.parameters())
            for x, y in batches(pg.rank):
                grads = torch.autograd.grad(F.cross_entropy(ddp(x), y), parameters)
                for p, grad in zip(parameters, grads, strict=True):
                    p.grad = grad
                optimizer.step()

    assert kind(run) == "forward-skipped-ddp"


@pytest.mark.parametrize("only_backward", [False, True])
def test_no_sync(only_backward):
    def run():
        with process_group() as pg:
            ddp, optimizer = wrap()
            for x, y in batches(pg.rank):
                optimizer.zero_grad()
                out = ddp(x) if only_backward else None
                with ddp.no_sync():  # it is the forward that decides
                    out = ddp(x) if out is None else out
                    F.cross_entropy(out, y).backward()
                optimizer.step()

    finding = found(run)
    if only_backward:
        assert finding is None
    else:
        assert (finding.kind, finding.step) == ("ended-inside-no-sync", 0)


@pytest.mark.parametrize("rank", [0, 2])
def test_gradients_edited_by_a_local_value(rank):
    def clip(mine, step, ddp, optimizer):
        if mine == rank and step >= 1:
            nn.utils.clip_grad_norm_(ddp.parameters(), 1e-3)

    finding = found(train(before_step=clip), nprocs=3)
    assert (finding.kind, finding.step, finding.ranks) == ("gradients-differ", 1, (rank,))
    assert "0.weight" in finding.cause


def test_gradients_edited_after_the_last_backward():
    def scale(mine, step, ddp, optimizer):
        ddp.module[2].bias.grad.mul_(1 + mine * (step == 3))

    finding = found(train(before_step=scale))
    assert (finding.kind, finding.step) == ("gradients-differ", 3)
    assert "2.bias" in finding.cause


# ---- settings and steps


@pytest.mark.parametrize("name", ["lr", "weight_decay", "momentum"])
def test_settings_that_differ(name):
    def change(ddp, optimizer):
        optimizer.param_groups[0][name] = 0.25

    finding = found(train(on(1, 2, change)), nprocs=3)
    assert (finding.kind, finding.ranks) == ("different-learning-rates", (1,))
    assert finding.step == 2
    assert f"`{name}`" in finding.cause
    assert "0.25 on rank 1" in finding.cause


@pytest.mark.parametrize("at", [1, 3])
def test_one_rank_skips_a_step(at):
    skip = lambda rank, step, ddp, optimizer: True if (rank, step) == (1, at) else None
    finding = found(train(before_step=skip), nprocs=3)
    assert (finding.kind, finding.ranks) == ("steps-differ", (1,))


def test_all_ranks_skip_a_step():
    assert found(train(before_step=lambda rank, step, *_: True if step == 1 else None)) is None


# ---- models without a wrapper


def unwrapped(steps, alike, late_wrap=False):
    def run():
        with process_group() as pg:
            model = net()
            if not alike:
                model[0].weight.data += pg.rank
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            trained = copy.deepcopy(model)
            DistributedDataParallel(trained if late_wrap else net())
            for x, y in batches(pg.rank, steps):
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()

    return run


@pytest.mark.parametrize("steps", [3, 30])
def test_the_wrapper_is_not_what_trains(steps):
    finding = found(unwrapped(steps, alike=True), nprocs=3)
    assert (finding.kind, finding.ranks) == ("unwrapped-model", (0, 1, 2))
    assert "of a Linear" in finding.cause
    assert finding.step <= 10  # it does not wait for the end
    assert "optimizer.step()" in finding.place.source
    assert kind(unwrapped(steps, alike=True, late_wrap=True)) == "unwrapped-model"


def test_models_of_a_rank_itself_beside_a_wrapper():
    assert found(unwrapped(10, alike=False)) is None


@pytest.mark.parametrize("logs", [False, True])
def test_nothing_is_ever_synchronised(logs):
    def run():
        with process_group() as pg:
            torch.manual_seed(pg.rank)
            model = nn.Linear(4, 3)
            optimizer = torch.optim.Adam(model.parameters())
            for x, y in batches(pg.rank, 12):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
                if logs:
                    dist.all_reduce(loss.detach())

    assert kind(run) == "unwrapped-model"


# ---- parameters


def test_unfrozen_after_the_wrap():
    def run():
        with process_group() as pg:
            module = net()
            module[0].requires_grad_(False)
            ddp, optimizer = wrap(module)
            for step, (x, y) in enumerate(batches(pg.rank)):
                if step == 2:
                    module[0].requires_grad_(True)
                F.cross_entropy(ddp(x), y).backward()
                optimizer.step()

    finding = found(run)
    assert (finding.kind, finding.step) == ("trainable-after-wrap", 2)
    assert "`0.weight`, `0.bias`" in finding.cause


def test_added_after_the_wrap():
    def run():
        with process_group() as pg:
            ddp, optimizer = wrap()
            ddp.module.append(nn.Linear(3, 3))
            optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
            for x, y in batches(pg.rank):
                F.cross_entropy(ddp(x), y).backward()
                optimizer.step()

    finding = found(run)
    assert finding.kind == "trainable-after-wrap"
    assert "3.weight" in finding.cause


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x, both):
        return self.a(self.body(x)) + (self.b(self.body(x)) if both else 0)


def two_heads(skips, set_to_none=True, **options):
    def run():
        with process_group() as pg:
            ddp, optimizer = wrap(TwoHeads(), **options)
            for step, (x, y) in enumerate(batches(pg.rank, 3)):
                optimizer.zero_grad(set_to_none)
                F.cross_entropy(ddp(x, not skips(pg.rank, step)), y).backward()
                optimizer.step()

    return run


@pytest.mark.parametrize("options", [{}, {"set_to_none": False}, {"gradient_as_bucket_view": True}])
def test_unused_on_the_last_step(options):
    finding = found(two_heads(lambda rank, step: step == 2, **options))
    assert (finding.kind, finding.step, finding.ranks) == ("unused-parameters", 2, (0, 1))
    assert "`b.weight`, `b.bias`" in finding.cause


def test_unused_on_one_rank():
    finding = found(two_heads(lambda rank, step: rank == 1))
    assert (finding.kind, finding.ranks) == ("unused-parameters", (1,))


@pytest.mark.parametrize("options", [{"find_unused_parameters": True}, {"static_graph": True}])
def test_unused_where_that_is_allowed(options):
    assert found(two_heads(lambda rank, step: True, **options)) is None


# ---- collectives within a loss


def with_loss(loss_of):
    def run():
        with process_group() as pg:
            ddp, optimizer = wrap()
            for x, y in batches(pg.rank):
                optimizer.zero_grad()
                loss_of(ddp(x), y).backward()
                optimizer.step()

    return run


def test_no_gradient_through_all_reduce():
    def reduced(out, y):
        total = out.sum(0) + 0
        dist.all_reduce(total)
        return total.square().mean() + F.cross_entropy(out, y)

    finding = found(with_loss(reduced))
    assert finding.kind == "no-gradient-through-collective"
    assert "all_reduce" in finding.place.source


@pytest.mark.parametrize("used_again", [False, True])
def test_a_loss_that_is_itself_reduced(used_again):
    def reduced(out, y):
        loss = F.cross_entropy(out, y)
        dist.all_reduce(loss)  # its value is the sum; the gradient is this rank's, as ever
        return loss.square() if used_again else loss

    assert kind(with_loss(reduced)) == ("no-gradient-through-collective" if used_again else None)


@pytest.mark.parametrize("keep_own", [False, True])
@pytest.mark.parametrize("on_purpose", [False, True])
def test_no_gradient_through_all_gather(keep_own, on_purpose):
    def gathered(out, y):
        parts = [torch.empty_like(out) for _ in range(dist.get_world_size())]
        with torch.set_grad_enabled(not on_purpose):
            dist.all_gather(parts, out)
        if keep_own:
            parts[dist.get_rank()] = out
        return (out @ torch.cat(parts).T).logsumexp(1).mean()

    expected = None if on_purpose else "no-gradient-through-collective"
    assert kind(with_loss(gathered)) == expected


# ---- what is gone before the group ends


def test_a_plain_model_that_is_gone():
    def run():
        def inside(rank):
            model = net()
            fit_plain(model, torch.optim.SGD(model.parameters(), lr=0.1), rank)

        with process_group() as pg:
            inside(pg.rank)

    assert kind(run) == "unwrapped-model"


@pytest.mark.parametrize("alone", [True, False])
def test_a_wrapper_whose_group_is_one_rank(alone):
    def run():
        with process_group() as pg:
            groups = [dist.new_group([rank]) for rank in range(pg.world_size)]
            torch.manual_seed(0)
            ddp, optimizer = wrap(process_group=groups[pg.rank] if alone else None)
            for x, y in batches(pg.rank, steps=10):
                optimizer.zero_grad()
                F.cross_entropy(ddp(x), y).backward()
                optimizer.step()

    assert kind(run) == ("unwrapped-model" if alone else None)


def fit_plain(model, optimizer, rank):
    for x, y in batches(rank, steps=2):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def test_a_plain_model_that_is_gone_on_one_rank_only():
    def run():
        def inside(rank):
            model = net()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            fit_plain(model, optimizer, 0)  # the same batches everywhere: the copies stay alike
            return (model, optimizer) if rank == 0 else None

        with process_group() as pg:
            kept = inside(pg.rank)
            del kept

        with process_group() as pg:
            kept = inside(pg.rank)
            dist.barrier()
        return kept is None

    assert kind(run) is None


@pytest.mark.parametrize("inside_the_loop", [True, False])
def test_weights_changed_on_one_rank_after_the_last_step(inside_the_loop):
    def run():
        def inside(rank):
            ddp, optimizer = wrap()
            data = list(
                zip(*[torch.stack(part) for part in zip(*batches(rank), strict=True)], strict=True)
            )
            for step, (x, y) in enumerate(DataLoader(data, batch_size=None)):
                optimizer.zero_grad()
                F.cross_entropy(ddp(x), y).backward()
                optimizer.step()
                if inside_the_loop and rank == 0 and step == len(data) - 1:
                    nn.init.zeros_(ddp.module[0].weight)
            if not inside_the_loop and rank == 0:  # rank 0 saves averaged weights, for instance
                nn.init.zeros_(ddp.module[0].weight)

        with process_group() as pg:
            inside(pg.rank)

    assert kind(run) == ("changed-after-wrap" if inside_the_loop else None)


# ---- accumulation


@pytest.mark.parametrize("how", ["loop", "lines"])
def test_accumulation_that_averages_each_time(how):
    def run():
        with process_group() as pg:
            ddp, optimizer = wrap()
            for x, y in batches(pg.rank):
                optimizer.zero_grad()
                if how == "loop":
                    for part in (slice(0, 3), slice(3, 6)):
                        (F.cross_entropy(ddp(x[part]), y[part]) / 2).backward()
                else:
                    (F.cross_entropy(ddp(x[:3]), y[:3]) / 2).backward()
                    (F.cross_entropy(ddp(x[3:]), y[3:]) / 2).backward()
                optimizer.step()

    finding = found(run)
    if how == "lines":
        assert finding is None
        return
    assert (finding.kind, finding.serious) == ("accumulation-without-no-sync", False)
    assert "backward()" in finding.place.source


# ---- what a batch weighs


def mean_loss(out, y):
    return F.cross_entropy(out, y)


def ignoring(out, y):
    return F.cross_entropy(out, y, ignore_index=0)


def by_hand(out, y):
    return F.cross_entropy(out, y, reduction="sum") / len(y)


def squared(out, y):
    return F.mse_loss(out.bfloat16(), F.one_hot(y, 3).bfloat16()).float() + 0 * out.sum()


def shared_scale(out, y):
    return F.cross_entropy(out, y, reduction="sum") / 10


def uneven(loss_of, last_only, **options):
    def run():
        with process_group() as pg:
            ddp, optimizer = wrap(**options)
            for step in range(3):
                size = 6 - pg.rank * (step == 2 or not last_only)
                x = torch.randn(size, 4) + pg.rank
                y = torch.arange(size) % 3
                optimizer.zero_grad()
                loss_of(ddp(x), y).backward()
                optimizer.step()

    return run


@needs(SAVED_DATA)
@pytest.mark.parametrize("loss_of", [mean_loss, ignoring, by_hand, squared, shared_scale])
@pytest.mark.parametrize("last_only", [False, True])
def test_uneven_batches_of_which_the_means_are_averaged(loss_of, last_only):
    finding = found(uneven(loss_of, last_only), nprocs=2)
    if loss_of is shared_scale:
        assert finding is None
        return
    assert (finding.kind, finding.step) == ("uneven-batch-weights", 2 * last_only)
    counts = {ignoring: (4, 3), squared: (18, 15)}.get(loss_of, (6, 5))
    assert f"{counts[0]} on rank 0, {counts[1]} on rank 1" in finding.cause


@needs(SAVED_DATA)
def test_uneven_batches_with_the_loss_in_the_model():
    class WithLoss(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return F.cross_entropy(self.net(x), torch.zeros(len(x)).long())

    def run():
        with process_group() as pg:
            ddp, optimizer = wrap(WithLoss(), find_unused_parameters=True)
            for x, _ in batches(pg.rank, size=3 + pg.rank):
                ddp(x).backward()
                optimizer.step()

    assert kind(run) == "uneven-batch-weights"


# ---- loading


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod."])
def test_few_keys_matched(prefix):
    def run(prefix):
        with process_group():
            state = {prefix + name: value for name, value in net().state_dict().items()}
            net().load_state_dict(state, strict=False)

    finding = found(run, prefix)
    assert finding.kind == "few-keys-matched"
    assert f"`{prefix}`" in finding.cause
    assert "strict=False" in finding.place.source
    assert found(run, "") is None


# ---- DDP's calls among the others


def test_a_rank_leaves_its_loop_for_a_collective():
    def run():
        with process_group() as pg:
            ddp, optimizer = wrap()
            for x, y in batches(pg.rank, 5 - pg.rank):
                F.cross_entropy(ddp(x), y).backward()
                optimizer.step()
            dist.all_reduce(torch.zeros(1))

    started = time.monotonic()
    finding = found(run)
    assert (finding.kind, finding.ranks) == ("uneven-batch-counts", (1,))
    assert "backward" in finding.details[0]
    assert "all_reduce" in finding.details[1]
    assert time.monotonic() < started + 20


@pytest.mark.parametrize("every", [1, 3])
def test_a_rank_ends_while_others_train(every):
    def run():
        with process_group(timeout=60) as pg:
            ddp, _ = wrap()
            for x, y in batches(pg.rank, 6 + (pg.rank == 0)):
                F.cross_entropy(ddp(x), y).backward()

    finding = found(run, nprocs=3, every=every)
    assert (finding.kind, finding.ranks) == ("uneven-batch-counts", (1, 2))


LIBRARY = """
def fit(ddp, optimizer, batches, loss_of):
    for x, y in batches:
        loss_of(ddp(x), y).backward()
        optimizer.step()
    import torch, torch.distributed as dist
    dist.all_reduce(torch.zeros(1))
"""


def test_uneven_epochs_inside_a_librarys_loop():
    def run():
        name = os.path.join(sysconfig.get_path("purelib"), "a_library.py")  # no file of the user's
        exec(compile(LIBRARY, name, "exec"), library := {})
        with process_group() as pg:
            ddp, optimizer = wrap()
            library["fit"](ddp, optimizer, batches(pg.rank, 4 + pg.rank), F.cross_entropy)

    finding = found(run)
    assert (finding.kind, finding.ranks) == ("uneven-batch-counts", (0,))


def test_one_collective_too_many_within_the_loop():
    def run():
        with process_group() as pg:
            ddp, optimizer = wrap()
            for step, (x, y) in enumerate(batches(pg.rank)):
                F.cross_entropy(ddp(x), y).backward()
                if step == 1 and pg.rank == 0:
                    dist.all_reduce(torch.zeros(1))
                optimizer.step()

    finding = found(run)
    assert finding.kind == "different-collective"
    assert "all_reduce" in finding.details[0]
    assert "backward" in finding.details[1]


@pytest.mark.parametrize("alone", [False, True])
def test_validation_through_the_wrapper(alone):
    def validate(ddp, rank):
        ddp.eval()
        with torch.no_grad():
            for x, _ in batches(rank, 2):
                ddp(x)
        ddp.train()

    def run():
        with process_group() as pg:
            module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
            ddp, optimizer = wrap(module)
            for _ in range(2):
                for x, y in batches(pg.rank):
                    optimizer.zero_grad()
                    F.cross_entropy(ddp(x), y).backward()
                    optimizer.step()
                if pg.rank == 0 or not alone:
                    validate(ddp, pg.rank)

    assert kind(run) == ("different-collective" if alone else None)


# ---- the sanitizer itself


@pytest.mark.parametrize("ranks", [(0,), (0, 1)])
@pytest.mark.parametrize(
    "where",
    [
        "watch.ddp_calls.reached",
        "watch.ddp_calls.loss_terms",
        "checks.weights.settings",
        "watch.wrapped.fingerprint",
    ],
)
def test_a_fault_of_its_own_breaks_nothing(where, ranks):
    def broken(*_):
        raise AttributeError("a private of torch that is gone")

    def run():
        import importlib

        with process_group() as pg:
            if pg.rank in ranks:
                module, _, name = where.rpartition(".")
                module = importlib.import_module(f"ddp_helpers.sanitizer.{module}")
                setattr(module, name, broken)
            ddp, optimizer = wrap()
            for x, y in batches(pg.rank):
                optimizer.zero_grad()
                F.cross_entropy(ddp(x), y).backward()
                optimizer.step()
                dist.all_reduce(torch.zeros(1))

    result = launch(run, 2, sanitize=True, echo=False, timeout=40)
    kinds = [finding.kind for finding in of_the_run(result.findings)]
    assert set(kinds) == {"sanitizer-fault"}
    assert not any(finding.serious for finding in result.findings)


@pytest.mark.parametrize("every", [2, 3])
def test_causes_are_exact_also_when_it_looks_now_and_then(every):
    def change(ddp, optimizer):
        optimizer.param_groups[0]["lr"] = 0.25

    assert kind(train(on(1, 1, change), steps=12), every=every) == "different-learning-rates"
    past = train(forward=lambda ddp, x: ddp.module(x), steps=12)
    assert kind(past, every=every) == "forward-skipped-ddp"
    assert kind(train(on(1, 0, initialise), steps=12), every=every) == "changed-after-wrap"
    assert kind(train(on(1, 1, edit_in_place), steps=12), every=every) == "weights-differ"
