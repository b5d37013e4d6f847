"""Correct training scripts of many styles: the sanitizer says nothing and changes no bit."""

import contextlib
import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import (
    default_hooks,
    post_localSGD_hook,
    powerSGD_hook,
)
from torch.distributed.algorithms.join import Join
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset
from torch_age import needs_torch, of_the_run

from ddp_helpers import launch, process_group
from ddp_helpers.training import train_mnist_5k

pytestmark = pytest.mark.usefixtures("no_process_left")


def net(*extra):
    torch.manual_seed(0)  # the same first weights everywhere
    return nn.Sequential(nn.Linear(4, 8), *extra, nn.Tanh(), nn.Linear(8, 3))


def batches(rank, steps=5, size=6):
    generator = torch.Generator().manual_seed(100 + rank)
    for _ in range(steps):
        x = torch.randn(size, 4, generator=generator)
        yield x, torch.randint(3, (size,), generator=generator)


def wrap(module=None, momentum=0.9, **options):
    ddp = DistributedDataParallel(module or net(), **options)
    return ddp, torch.optim.SGD(ddp.parameters(), lr=0.1, momentum=momentum)


def fit(model, optimizer, data, loss_of=F.cross_entropy):
    for x, y in data:
        optimizer.zero_grad()
        loss_of(model(x), y).backward()
        optimizer.step()


def optimizer_before_the_wrap(rank):
    module = net()
    optimizer = torch.optim.AdamW(module.parameters())
    ddp = DistributedDataParallel(module)
    fit(ddp, optimizer, batches(rank))
    return module


def accumulation_with_no_sync(rank):
    ddp, optimizer = wrap()
    for i, (x, y) in enumerate(batches(rank, 6)):
        last = i % 3 == 2
        with contextlib.nullcontext() if last else ddp.no_sync():
            (F.cross_entropy(ddp(x), y) / 3).backward()
        if last:
            optimizer.step()
            optimizer.zero_grad()
    return ddp


def bf16_autocast(rank):
    ddp, optimizer = wrap()
    for x, y in batches(rank):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(ddp(x), y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(ddp.parameters(), 0.1)  # of averaged gradients
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    return ddp


def grad_scaler_skips_on_all_ranks(rank):
    ddp, optimizer = wrap()
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for i, (x, y) in enumerate(batches(rank)):
        optimizer.zero_grad()
        loss = F.cross_entropy(ddp(x), y) * (float("inf") if i == 2 and rank == 0 else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)  # one rank's infinity reaches all of them
        scaler.update()
    return ddp


def uneven_inputs_with_join(rank):
    ddp, optimizer = wrap(momentum=0)  # Join makes weights alike in the end, but no momentum
    with Join([ddp]):
        fit(ddp, optimizer, batches(rank, 3 + 2 * rank))
    fit(ddp, optimizer, batches(rank))
    with ddp.join():
        fit(ddp, optimizer, batches(rank, 4 - rank))
    return ddp


def uneven_inputs_with_join_and_buffers(rank):
    ddp, optimizer = wrap(net(nn.BatchNorm1d(8)))
    with Join([ddp]):
        fit(ddp, optimizer, batches(rank, 3 + 2 * rank))
    return ddp


def batch_norm_and_validation(rank):
    ddp, optimizer = wrap(net(nn.BatchNorm1d(8)))
    for _ in range(2):
        ddp.train()
        fit(ddp, optimizer, batches(rank))
        ddp.eval()
        with torch.no_grad():
            correct = sum((ddp(x).argmax(1) == y).sum() for x, y in batches(rank, 2))
            if rank == 0:  # alone, so through the plain module
                ddp.module(torch.randn(2, 4, generator=torch.Generator().manual_seed(1)))
        dist.all_reduce(correct)
    return ddp


def average_on_all_ranks(rank):
    ddp, optimizer = wrap()
    average = torch.optim.swa_utils.AveragedModel(ddp.module)
    for x, y in batches(rank):
        optimizer.zero_grad()
        F.cross_entropy(ddp(x), y).backward()
        optimizer.step()
        average.update_parameters(ddp.module)
    return average


def average_on_rank_0_only(rank):
    ddp, optimizer = wrap()
    average = copy.deepcopy(ddp.module) if rank == 0 else None
    for x, y in batches(rank):
        optimizer.zero_grad()
        F.cross_entropy(ddp(x), y).backward()
        optimizer.step()
        if rank == 0:
            with torch.no_grad():
                for mean, p in zip(average.parameters(), ddp.module.parameters(), strict=True):
                    mean.lerp_(p, 0.1)
    if rank == 0:  # evaluate with the mean, then put the weights back
        kept = copy.deepcopy(ddp.module.state_dict())
        ddp.module.load_state_dict(average.state_dict())
        ddp.module.load_state_dict(kept)
    fit(ddp, optimizer, batches(rank))
    if rank == 0:
        ddp.module.load_state_dict(average.state_dict())  # to evaluate and save, after training
    return ddp


def two_groups(rank):
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    torch.manual_seed(rank // 2)
    module = nn.Linear(4, 3)
    ddp, optimizer = wrap(module, process_group=groups[rank // 2])
    for group in optimizer.param_groups:
        group["lr"] = 0.1 * (1 + rank // 2)  # each pair trains in its own way
    fit(ddp, optimizer, batches(rank, 3 + 2 * (rank // 2)))
    return ddp


def frozen_layers_and_a_teacher(rank):
    torch.manual_seed(rank)
    teacher = nn.Linear(4, 3).requires_grad_(False)  # each rank its own
    module = net()
    module[0].requires_grad_(False)
    ddp, optimizer = wrap(module)
    for x, y in batches(rank):
        optimizer.zero_grad()
        with torch.no_grad():
            wanted = teacher(x)
        out = ddp(x)
        (F.mse_loss(out, wanted) + 0.5 * F.cross_entropy(out, y)).backward()
        optimizer.step()
    return ddp


class TwoPaths(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x, path):
        return {"logits": self.head(self.a(x) if path else self.b(x))}


def unused_parameters_that_differ(rank):
    ddp, optimizer = wrap(TwoPaths(), find_unused_parameters=True)
    for i, (x, y) in enumerate(batches(rank)):
        optimizer.zero_grad(set_to_none=bool(i % 2))
        F.cross_entropy(ddp(x, (i + rank) % 2)["logits"], y).backward()
        optimizer.step()
    return ddp


class Stream(IterableDataset):
    def __init__(self, rank, world_size):
        self.rank, self.world_size = rank, world_size

    def __iter__(self):
        generator = torch.Generator().manual_seed(3)
        samples = [(torch.randn(4, generator=generator), i % 3) for i in range(48)]
        return iter(samples[self.rank :: self.world_size])


def split_stream(rank):
    ddp, optimizer = wrap(gradient_as_bucket_view=True)
    loader = DataLoader(Stream(rank, dist.get_world_size()), 6)
    for _ in range(2):
        fit(ddp, optimizer, loader)
    return ddp


def fully_sharded(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    module = net()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in (module[0], module[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    fit(module, optimizer, batches(rank))
    return [p.full_tensor() for p in module.parameters()]


def zero_by_hand(rank):
    ddp, _ = wrap()
    weights, world = list(ddp.parameters()), dist.get_world_size()
    optimizer = torch.optim.Adam(weights[rank::world], lr=0.01)
    for x, y in batches(rank):
        ddp.zero_grad()
        F.cross_entropy(ddp(x), y).backward()
        optimizer.step()
        for number, weight in enumerate(weights):
            dist.broadcast(weight.detach(), src=number % world)
    return ddp


def tensor_parallel_and_clipped(rank):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    module, mesh = net(), init_device_mesh("cpu", (dist.get_world_size(),))
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    parallelize_module(module, mesh, plan)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for x, y in batches(0):  # all ranks: the same samples
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
    return [p.full_tensor() for p in module.parameters()]


class TinyGPT(nn.Module):
    def __init__(self, vocabulary=16, width=8):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(vocabulary, width)
        self.block = nn.TransformerEncoderLayer(width, 2, 16, dropout=0.1, batch_first=True)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.embed.weight  # tied

    def forward(self, tokens, targets=None):
        logits = self.head(self.block(self.embed(tokens)))
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)
        return logits, loss


def nano_gpt(rank):
    ddp = DistributedDataParallel(TinyGPT())
    torch.manual_seed(1337 + rank)  # its seed_offset
    optimizer = torch.optim.AdamW(ddp.parameters(), lr=1e-2, betas=(0.9, 0.95))
    generator = torch.Generator().manual_seed(1337 + rank)
    for step in range(4):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (step + 1)
        for micro in range(2):
            tokens = torch.randint(16, (3, 9), generator=generator)
            ddp.require_backward_grad_sync = micro == 1  # as nanoGPT does it
            _, loss = ddp(tokens[:, :-1], tokens[:, 1:])
            (loss / 2).backward()
        torch.nn.utils.clip_grad_norm_(ddp.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return ddp


def gan(rank):
    torch.manual_seed(0)
    generator = DistributedDataParallel(nn.Linear(2, 4))
    critic = DistributedDataParallel(nn.Linear(4, 1))
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in (generator, critic)]
    torch.manual_seed(rank)
    for x, _ in batches(rank):
        optimizers[1].zero_grad()
        fake = generator(torch.randn(6, 2))
        (critic(fake.detach()).mean() - critic(x).mean()).backward()
        optimizers[1].step()
        optimizers[0].zero_grad()
        (-critic(generator(torch.randn(6, 2))).mean()).backward()
        optimizers[0].step()
    return nn.ModuleList([generator, critic])


def dcgan(rank):
    torch.manual_seed(0)
    generator = DistributedDataParallel(nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4)))
    critic = DistributedDataParallel(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1)))
    optimizers = [torch.optim.Adam(m.parameters(), lr=0.01) for m in (generator, critic)]
    loss_of = F.binary_cross_entropy_with_logits
    torch.manual_seed(rank)
    for x, _ in batches(rank):
        critic.zero_grad()
        loss_of(critic(x), torch.ones(6, 1)).backward()
        fake = generator(torch.randn(6, 2))
        loss_of(critic(fake.detach()), torch.zeros(6, 1)).backward()
        optimizers[1].step()
        generator.zero_grad()
        loss_of(critic(fake), torch.ones(6, 1)).backward()
        optimizers[0].step()
    return nn.ModuleList([generator, critic])


def averaged_by_hand(rank):
    module = net()
    for p in module.parameters():
        dist.broadcast(p.data, src=0)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for x, y in batches(rank, 12):
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        for p in module.parameters():
            dist.all_reduce(p.grad)
            p.grad /= dist.get_world_size()
        optimizer.step()
    return module


def averaged_in_one_piece(rank):
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for x, y in batches(rank, 12):
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        grads = [p.grad for p in module.parameters()]
        flat = torch.cat([grad.flatten() for grad in grads])
        work = dist.all_reduce(flat, async_op=True)
        work.wait()
        torch._foreach_copy_(
            grads,
            [
                piece.view_as(grad) / dist.get_world_size()
                for piece, grad in zip(flat.split([g.numel() for g in grads]), grads, strict=True)
            ],
        )
        optimizer.step()
    return module


def weights_averaged_now_and_then(rank):
    module = net()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for i, (x, y) in enumerate(batches(rank, 12), start=1):
        optimizer.zero_grad()
        F.cross_entropy(module(x), y).backward()
        optimizer.step()
        if i % 4 == 0:
            for p in module.parameters():
                dist.all_reduce(p.data)
                p.data /= dist.get_world_size()
    return module


def post_local_sgd(rank):
    ddp, optimizer = wrap()
    state = post_localSGD_hook.PostLocalSGDState(
        None, dist.new_subgroups(1)[0], start_localSGD_iter=2
    )
    ddp.register_comm_hook(state, post_localSGD_hook.post_localSGD_hook)
    for i, (x, y) in enumerate(batches(rank, 8), start=1):
        optimizer.zero_grad()
        F.cross_entropy(ddp(x), y).backward()
        optimizer.step()
        if i % 4 == 0:
            for p in ddp.parameters():
                dist.all_reduce(p.data)
                p.data /= dist.get_world_size()
    return ddp


def local_sgd_inside_no_sync(rank):
    # accelerate's LocalSGD: one no_sync() around everything, and weights averaged now and then
    ddp, optimizer = wrap()
    with ddp.no_sync():
        for i, (x, y) in enumerate(batches(rank, 30), start=1):
            optimizer.zero_grad()
            F.cross_entropy(ddp(x), y).backward()
            optimizer.step()
            if i % 15 == 0:
                for p in ddp.parameters():
                    dist.all_reduce(p.data)
                    p.data = p.data / dist.get_world_size()
    return ddp


def tokens_for_experts(rank):
    # a mixture of experts: each rank sends as many as its gate says, and tells the sizes first
    ddp, optimizer = wrap()
    for x, y in batches(rank):
        to_each = torch.tensor([len(x) - 1 - rank, 1 + rank])
        from_each = torch.empty_like(to_each)
        dist.all_to_all_single(from_each, to_each)
        got = torch.empty(int(from_each.sum()), x.shape[1])
        dist.all_to_all_single(got, x, from_each.tolist(), to_each.tolist())
        optimizer.zero_grad()
        (F.cross_entropy(ddp(x), y) + 0 * got.sum()).backward()
        optimizer.step()
    return ddp


def zero_redundancy(rank):
    ddp = DistributedDataParallel(net())
    optimizer = ZeroRedundancyOptimizer(ddp.parameters(), torch.optim.Adam, lr=0.01)
    fit(ddp, optimizer, batches(rank))
    return ddp


def lbfgs(rank):
    module = net().double()
    ddp = DistributedDataParallel(module)
    optimizer = torch.optim.LBFGS(ddp.parameters(), lr=0.1, max_iter=3, tolerance_change=0.0)
    for x, y in batches(rank, 3):

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = F.cross_entropy(ddp(x.double()), y)
            loss.backward()
            return loss

        optimizer.step(closure)
    return ddp


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.body, self.reentrant = net(), reentrant

    def forward(self, x):
        hidden = checkpoint(self.body[0], x, use_reentrant=self.reentrant)
        return checkpoint(self.body[1:], hidden, use_reentrant=self.reentrant)


def checkpointed_layers(rank):
    ddp, optimizer = wrap(Checkpointed(False))
    fit(ddp, optimizer, batches(rank))
    loss_of = lambda out, y: checkpoint(F.cross_entropy, out, y, use_reentrant=False)
    fit(ddp, optimizer, batches(rank), loss_of)
    return ddp


def checkpointed_reentrant_static_graph(rank):
    ddp, optimizer = wrap(Checkpointed(True), static_graph=True)
    data = ((x.requires_grad_(), y) for x, y in batches(rank))
    fit(ddp, optimizer, data)
    return ddp


def compiled(rank):
    ddp, optimizer = wrap()
    fit(torch.compile(ddp, backend="aot_eager"), optimizer, batches(rank))
    return ddp


def communication_hooks(rank):
    ddp, optimizer = wrap()
    ddp.register_comm_hook(None, default_hooks.fp16_compress_hook)
    fit(ddp, optimizer, batches(rank))
    small, other = wrap()
    state = powerSGD_hook.PowerSGDState(None, start_powerSGD_iter=2)
    small.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
    fit(small, other, batches(rank))
    return nn.ModuleList([ddp, small])


def losses_and_metrics_reduced(rank):
    ddp, optimizer = wrap()
    for x, y in batches(rank):
        optimizer.zero_grad()
        out = ddp(x)
        loss, other = F.cross_entropy(out, y), out.square().mean()
        dist.all_reduce(other)  # only to print it
        loss.backward()
        dist.all_reduce(loss)
        gathered = [torch.empty_like(out) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, out)  # a metric over all samples
        spread = torch.cat(gathered).std().item() + (other + loss).item()
        optimizer.step()
        assert spread > 0
        assert type(gathered[0]) is torch.Tensor
    return ddp


def weighed_by_tokens(rank):
    ddp, optimizer = wrap()
    world_size = dist.get_world_size()
    for i, (x, y) in enumerate(batches(rank, size=4 + 3 * rank)):
        optimizer.zero_grad()
        y[0] = -100
        count = (y != -100).sum()
        total = count.clone()
        dist.all_reduce(total)
        if i % 2:  # two ways to say the same
            loss = F.cross_entropy(ddp(x), y) * (count * world_size / total)
        else:
            loss = F.cross_entropy(ddp(x), y, reduction="sum") * world_size / total
        loss.backward()
        optimizer.step()
    return ddp


def gradient_penalty(rank):
    ddp, optimizer = wrap()
    for x, y in batches(rank):
        optimizer.zero_grad()
        x.requires_grad_()
        out = ddp(x)
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        (F.cross_entropy(out, y) + slope.square().mean()).backward()
        optimizer.step()
    return ddp


def loaded_on_every_rank(rank):
    ddp, optimizer = wrap()
    saved = copy.deepcopy(ddp.state_dict()), copy.deepcopy(optimizer.state_dict())
    fit(ddp, optimizer, batches(rank))
    ddp.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    for parameter in ddp.parameters():
        with torch.no_grad():
            parameter.mul_(0.5)
    fit(ddp, optimizer, batches(rank))
    larger = nn.Sequential(*ddp.module, nn.Linear(3, 3))
    larger.load_state_dict(ddp.module.state_dict(), strict=False)  # a new head stays as it is
    return ddp


def plateau_of_the_mean(rank):
    ddp, optimizer = wrap()
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    for x, y in batches(rank, 6):
        optimizer.zero_grad()
        loss = F.cross_entropy(ddp(x), y)
        loss.backward()
        optimizer.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        scheduler.step(mean.item() / dist.get_world_size())
    return ddp


def one_optimizer_per_part(rank):
    ddp, body = wrap()
    body = torch.optim.SGD(ddp.module[0].parameters(), lr=0.1)
    head = torch.optim.Adam(ddp.module[2].parameters(), lr=0.01)
    for i, (x, y) in enumerate(batches(rank)):
        F.cross_entropy(ddp(x), y).backward()
        head.step()
        if i % 2:  # each at its own pace, on all ranks
            body.step()
            body.zero_grad()
        head.zero_grad()
    return ddp


def rank_0_fits_a_probe_of_its_own(rank):
    ddp, optimizer = wrap()
    fit(ddp, optimizer, batches(rank))
    if rank == 0:
        probe = nn.Linear(3, 3)
        own = torch.optim.SGD(probe.parameters(), lr=0.1)
        for x, y in batches(9):
            own.zero_grad()
            F.cross_entropy(probe(ddp.module(x).detach()), y).backward()
            own.step()
    dist.barrier()
    fit(ddp, optimizer, batches(rank))
    return ddp


def the_packages_own_training(rank):
    records = train_mnist_5k(epochs=1)
    return [torch.tensor([r.train_loss, r.test_loss, r.test_accuracy]) for r in records]


SCRIPTS = [
    accumulation_with_no_sync,
    average_on_all_ranks,
    average_on_rank_0_only,
    averaged_by_hand,
    averaged_in_one_piece,
    batch_norm_and_validation,
    bf16_autocast,
    checkpointed_layers,
    checkpointed_reentrant_static_graph,
    communication_hooks,
    compiled,
    dcgan,
    frozen_layers_and_a_teacher,
    pytest.param(fully_sharded, marks=needs_torch(2, 7, "fully_shard on a CPU")),
    gan,
    grad_scaler_skips_on_all_ranks,
    gradient_penalty,
    lbfgs,
    loaded_on_every_rank,
    losses_and_metrics_reduced,
    nano_gpt,
    local_sgd_inside_no_sync,
    tokens_for_experts,
    one_optimizer_per_part,
    optimizer_before_the_wrap,
    plateau_of_the_mean,
    post_local_sgd,
    rank_0_fits_a_probe_of_its_own,
    split_stream,
    tensor_parallel_and_clipped,
    the_packages_own_training,
    two_groups,
    uneven_inputs_with_join,
    uneven_inputs_with_join_and_buffers,
    unused_parameters_that_differ,
    weighed_by_tokens,
    weights_averaged_now_and_then,
    zero_by_hand,
    zero_redundancy,
]


def run(script):
    torch.use_deterministic_algorithms(True)
    with process_group() as pg:
        made = script(pg.rank)
    tensors = made.state_dict().values() if isinstance(made, nn.Module) else made
    return [tensor.detach().clone() for tensor in tensors]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.__name__)
def test_a_correct_script_is_left_in_peace(script):
    nprocs = 4 if script is two_groups else 2
    plain = launch(run, nprocs, args=(script,), echo=False, timeout=60)
    watched = launch(run, nprocs, args=(script,), echo=False, timeout=60, sanitize=True)
    assert of_the_run(watched.findings) == []
    for mine, theirs in zip(plain.values, watched.values, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("script", [accumulation_with_no_sync, gan, batch_norm_and_validation])
def test_it_stays_silent_when_it_looks_now_and_then(script):
    result = launch(run, 2, args=(script,), echo=False, timeout=60, sanitize=3)
    assert of_the_run(result.findings) == []
