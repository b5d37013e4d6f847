"""The sanitizer on real ranks: data, random numbers, checkpoints, the start, and speed."""

import os
import random
import time

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)
from torch_age import of_the_run

from ddp_helpers import LaunchError, launch, process_group
from ddp_helpers.data import make_eval_loader, make_train_loader

pytestmark = pytest.mark.usefixtures("no_process_left")
SIZE = 48


def numbers(size=SIZE):
    generator = torch.Generator().manual_seed(7)
    return TensorDataset(
        torch.randn(size, 3, generator=generator), torch.randn(size, 1, generator=generator)
    )


def model_and_optimizer(**options):
    torch.manual_seed(0)  # the same model everywhere: that is right
    ddp = DistributedDataParallel(nn.Linear(3, 1), **options)
    return ddp, torch.optim.SGD(ddp.parameters(), lr=0.01)


def fit(ddp, optimizer, batches):
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.mse_loss(ddp(x), y).backward()
        optimizer.step()


def kinds(fn, *args, nprocs=2, **options):
    """The kinds of all findings of a run, serious or not."""
    return {finding.kind for finding in findings(fn, *args, nprocs=nprocs, **options)}


def findings(fn, *args, nprocs=2, **options):
    """The findings of a run; one that fails for another reason is an error."""
    try:
        result = launch(fn, nprocs, args=args, sanitize=True, echo=False, timeout=60, **options)
    except LaunchError as error:
        if not error.result.findings:
            raise
        result = error.result
    return of_the_run(result.findings)


# ---- what each rank holds


class Listed(Dataset):
    """Samples by file name, as they came from a folder; `noise` differs between ranks."""

    def __init__(self, order, noise=0):
        self.samples = [(f"{number:03}.png", number) for number in order]
        self.noise = noise

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        number = self.samples[index][1]
        return torch.tensor([number, 1.0, self.noise]), torch.tensor([float(number)])


def train_listed(kind, alike):
    with process_group() as pg:
        order = list(range(SIZE))
        if not alike:
            random.Random(pg.rank).shuffle(order)
        data = Listed(order, noise=pg.rank)
        if kind == "tensors":
            data = TensorDataset(*[part[order] for part in numbers().tensors])
        ddp, optimizer = model_and_optimizer()
        fit(ddp, optimizer, DataLoader(data, 8, sampler=DistributedSampler(data)))


@pytest.mark.parametrize("kind", ["tensors", "files"])
def test_the_same_samples_in_another_order_on_each_rank(kind):
    assert kinds(train_listed, kind, False) == {"different-order"}
    assert kinds(train_listed, kind, True) == set()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_that_is_made_in_the_for_line_is_watched_too(workers):
    def run():
        with process_group():
            data = Drawing()
            ddp, optimizer = model_and_optimizer()
            fit(ddp, optimizer, DataLoader(data, 8, False, DistributedSampler(data), None, workers))

    assert kinds(run) == {"identical-random-draws"}


class Drawing(Dataset):
    def __len__(self):
        return SIZE

    def __getitem__(self, index):
        return index + torch.randn(3), torch.ones(1)


# ---- the order of epochs


def train_epochs(advance, workers=0, epochs=2):
    with process_group():
        data = numbers()
        sampler = DistributedSampler(data)
        loader = DataLoader(data, 8, sampler=sampler, num_workers=workers)
        ddp, optimizer = model_and_optimizer()
        for epoch in range(epochs):
            if advance:
                sampler.set_epoch(epoch)
            fit(ddp, optimizer, loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_that_is_not_advanced(workers):
    assert kinds(train_epochs, False, workers) == {"epoch-not-advanced"}
    assert kinds(train_epochs, True, workers) == set()


def train_with_new_loaders(epochs, trainings):
    with process_group():
        for _ in range(trainings):
            ddp, optimizer = model_and_optimizer()
            for _ in range(epochs):
                data = numbers()
                fit(ddp, optimizer, DataLoader(data, 8, sampler=DistributedSampler(data)))


def test_a_loader_made_anew_in_each_epoch():
    assert kinds(train_with_new_loaders, 2, 1) == {"epoch-not-advanced"}
    assert kinds(train_with_new_loaders, 1, 2) == set()


def train_with_reseeded_shuffle(reseed):
    with process_group() as pg:
        generator = torch.Generator().manual_seed(pg.rank)
        half = Subset(numbers(), range(pg.rank, SIZE, 2))
        loader = DataLoader(half, 4, sampler=RandomSampler(half, generator=generator))
        ddp, optimizer = model_and_optimizer()
        for _ in range(2):
            if reseed:
                generator.manual_seed(pg.rank)
            fit(ddp, optimizer, loader)


def test_a_shuffle_that_is_seeded_again_in_each_epoch():
    assert kinds(train_with_reseeded_shuffle, True) == {"epoch-not-advanced"}
    assert kinds(train_with_reseeded_shuffle, False) == set()


def test_an_evaluation_may_repeat_its_order():
    def evaluate_twice():
        with process_group():
            data = numbers()
            loader = DataLoader(data, 8, sampler=DistributedSampler(data))
            train = DataLoader(data, 8, sampler=DistributedSampler(data))
            ddp, optimizer = model_and_optimizer()
            for epoch in range(2):
                train.sampler.set_epoch(epoch)
                fit(ddp, optimizer, train)
                with torch.no_grad():
                    for x, _ in loader:
                        ddp.module(x)

    assert kinds(evaluate_twice) == set()


# ---- each rank its own share


def train_on(make, epochs=1, workers=0, seed=None, join=False):
    """`make(data, rank)` gives the sampler or the loader of a rank."""
    with process_group() as pg:
        if seed is not None:
            torch.manual_seed(seed)
        made = make(numbers(), pg.rank)
        data, sampler = made if isinstance(made, tuple) else (numbers(), made)
        if isinstance(made, DataLoader):
            loader = made
        else:
            loader = DataLoader(data, 4, sampler=sampler, num_workers=workers)
        ddp, optimizer = model_and_optimizer()
        for epoch in range(epochs):
            inner = getattr(loader.batch_sampler, "sampler", None)
            for sampler in (loader.sampler, inner):
                if hasattr(sampler, "set_epoch"):
                    sampler.set_epoch(epoch)
            fit(ddp, optimizer, loader)


class Shard(Sampler):
    """A hand-made sampler: a formula for each rank."""

    def __init__(self, size, rank, world_size, step=None):
        self.size, self.rank, self.world_size, self.step = size, rank, world_size, step

    def __len__(self):
        return len(range(self.rank, self.size, self.step or self.world_size))

    def __iter__(self):
        return iter(range(self.rank, self.size, self.step or self.world_size))


class Block(Shard):
    def __iter__(self):
        return iter(range(self.rank * 16, self.rank * 16 + 32))


class Restricted(Sampler):
    """Chooses among given indices: what it leaves out is left out on purpose."""

    def __init__(self, indices, rank):
        self.indices, self.rank = indices, rank

    def __len__(self):
        return len(self.indices) // 2

    def __iter__(self):
        return iter(self.indices[self.rank :: 2])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("seed", [0, None])
def test_no_sampler_at_all(workers, seed):
    def make(data, rank):
        return DataLoader(data, 4, shuffle=True, num_workers=workers)

    assert kinds(train_on, make, 1, workers, seed) == {"same-data-on-every-rank"}


WRONG_SHARES = {
    "rank 0 everywhere": (
        lambda data, rank: DistributedSampler(data, 2, 0),
        {"same-data-on-every-rank"},
    ),
    "too many replicas": (lambda data, rank: DistributedSampler(data, 4, rank), {"missing-data"}),
    "one replica": (lambda data, rank: DistributedSampler(data, 1, 0), {"same-data-on-every-rank"}),
    "a seed for each rank": (
        lambda data, rank: DistributedSampler(data, seed=rank),
        {"overlapping-data", "missing-data"},
    ),
    "overlapping subsets": (
        lambda data, rank: (Subset(data, range(rank * 16, rank * 16 + 32)), None),
        {"overlapping-data"},
    ),
    "overlapping blocks": (lambda data, rank: Block(SIZE, rank, 2), {"overlapping-data"}),
    "a stride too long": (lambda data, rank: Shard(SIZE, rank, 2, 4), {"missing-data"}),
    "no shuffle": (lambda data, rank: (data, None), {"same-data-on-every-rank"}),
    "one batch sampler for all": (
        lambda data, rank: DataLoader(data, batch_sampler=BatchSampler(range(SIZE), 4, False)),
        {"same-data-on-every-rank"},
    ),
}
RIGHT_SHARES = {
    "distributed": lambda data, rank: DistributedSampler(data),
    "padded": lambda data, rank: (numbers(47), DistributedSampler(numbers(47))),
    "fewer samples than ranks": lambda data, rank: (numbers(1), DistributedSampler(numbers(1))),
    "dropped": lambda data, rank: (
        numbers(47),
        DistributedSampler(numbers(47), drop_last=True),
    ),
    "dropped by the loader": lambda data, rank: DataLoader(
        numbers(46), 4, sampler=DistributedSampler(numbers(46)), drop_last=True
    ),
    "batch sampler": lambda data, rank: DataLoader(
        data, batch_sampler=BatchSampler(DistributedSampler(data), 4, False)
    ),
    "subsets": lambda data, rank: (Subset(data, range(rank, SIZE, 2)), None),
    "a part of the data": lambda data, rank: (
        Subset(data, range(40)),
        DistributedSampler(Subset(data, range(40))),
    ),
    "hand-made": lambda data, rank: Shard(SIZE, rank, 2),
    "restricted": lambda data, rank: Restricted(list(range(0, SIZE, 3)), rank),
    "with replacement": lambda data, rank: WeightedRandomSampler(
        torch.ones(SIZE), 24, generator=torch.Generator().manual_seed(rank)
    ),
    "a few at random": lambda data, rank: RandomSampler(
        data, num_samples=24, generator=torch.Generator().manual_seed(rank)
    ),
    "the package's": lambda data, rank: make_train_loader(data, 4, rank=rank, world_size=2),
    "each rank its own data": lambda data, rank: (
        TensorDataset(torch.randn(24, 3) + rank, torch.randn(24, 1)),
        None,
    ),
}


@pytest.mark.parametrize("name", WRONG_SHARES)
def test_a_wrong_share(name):
    make, expected = WRONG_SHARES[name]
    assert kinds(train_on, make) == expected


@pytest.mark.parametrize("name", RIGHT_SHARES)
def test_a_right_share(name):
    assert kinds(train_on, RIGHT_SHARES[name], 2) == set()


class KnowsItsRank(Dataset):
    """Splits the data by itself, so that equal indices mean different samples."""

    def __init__(self):
        self.x = torch.randn(SIZE, 3, generator=torch.Generator().manual_seed(1))

    def __len__(self):
        return SIZE // 2

    def __getitem__(self, index):
        x = self.x[2 * index + int(os.environ["RANK"])]
        return x, x.sum()[None]


def test_a_dataset_that_splits_by_itself():
    assert kinds(train_on, lambda data, rank: (KnowsItsRank(), None)) == set()


class Stream(IterableDataset):
    def __init__(self, split):
        self.split = split

    def __iter__(self):
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        parts, part = (2 * workers, int(os.environ["RANK"]) * workers + number)
        if not self.split:
            parts, part = workers, number
        for index in range(part, SIZE, parts):
            x = torch.arange(3.0) + index
            yield x, x.sum()[None]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_that_nobody_splits(workers):
    def make(split):
        return lambda data, rank: DataLoader(Stream(split), 4, num_workers=workers)

    assert kinds(train_on, make(False)) == {"same-data-on-every-rank"}
    assert kinds(train_on, make(True)) == set()


def test_batches_drawn_by_hand():
    def train(own_seed):
        with process_group() as pg:
            data = torch.arange(1000.0)
            ddp, optimizer = model_and_optimizer()
            torch.manual_seed(1337 + pg.rank * own_seed)
            for _ in range(6):
                at = torch.randint(len(data) - 3, (8,))
                x = torch.stack([data[i : i + 3] for i in at]) / 1000
                fit(ddp, optimizer, [(x, x.sum(1, keepdim=True))])

    assert kinds(train, 0) == {"same-data-on-every-rank"}
    assert kinds(train, 1) == set()


def test_constant_inputs_are_no_evidence():
    def train():
        with process_group():
            ddp, optimizer = model_and_optimizer()
            fit(ddp, optimizer, [(torch.ones(2, 3) * step, torch.ones(2, 1)) for step in range(6)])
            fit(ddp, optimizer, [(torch.arange(6.0).view(2, 3), torch.ones(2, 1))] * 6)

    assert kinds(train) == set()


def test_uneven_batch_counts():
    def train(join, average=True):
        from torch.distributed.algorithms.join import Join

        with process_group() as pg:
            share = Subset(numbers(), range(pg.rank, 30 + 10 * pg.rank, 2))
            loader = DataLoader(share, 4)
            if join:
                ddp, optimizer = model_and_optimizer()
                with Join([ddp]):
                    fit(ddp, optimizer, loader)
            else:  # no collective in the loop, so no hang tells
                model = nn.Linear(3, 1)
                fit(model, torch.optim.SGD(model.parameters(), lr=0.01), loader)
                for p in model.parameters() if average else ():
                    dist.all_reduce(p.data, op=dist.ReduceOp.AVG)

    assert "uneven-batch-counts" in kinds(train, False)
    # nothing that ranks of one model share: it may be one on each
    assert "uneven-batch-counts" not in kinds(train, False, False)
    assert kinds(train, True) == set()


def test_a_resumed_pass_that_skips_the_same_on_all_ranks():
    class Resumed(DistributedSampler):
        start = 0

        def __iter__(self):
            start, self.start = self.start, 0
            return iter(list(super().__iter__())[start:])

    def train():
        with process_group():
            data = numbers()
            sampler = Resumed(data)
            sampler.start = 8
            loader = DataLoader(data, 4, sampler=sampler)
            ddp, optimizer = model_and_optimizer()
            for epoch in range(3, 5):
                sampler.set_epoch(epoch)
                fit(ddp, optimizer, loader)

    assert kinds(train) == set()


# ---- random numbers


class Noisy(Dataset):
    """Augments with one of the generators that every process has."""

    def __init__(self, source):
        self.source, self.x = source, numbers().tensors[0]

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        x = self.x[index]
        if self.source == "torch":
            x = x + torch.rand(1)
        elif self.source == "random":
            x = x + random.random()
        elif self.source == "numpy":
            x = x + np.random.rand()
        return x.float(), x.float().sum()[None]


def seed_all(seed):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def augment(source, own_seed, workers=0, context=None, persistent=False, init=None, epochs=1):
    with process_group() as pg:
        ddp, optimizer = model_and_optimizer()
        seed_all(5 + pg.rank * own_seed)
        data = Noisy(source)
        options = {"multiprocessing_context": context, "persistent_workers": persistent}
        loader = DataLoader(
            data,
            4,
            sampler=DistributedSampler(data),
            num_workers=workers,
            worker_init_fn=init,
            **(options if workers else {}),
        )
        for epoch in range(epochs):
            loader.sampler.set_epoch(epoch)
            fit(ddp, optimizer, loader)


@pytest.mark.parametrize("source", ["torch", "random", "numpy"])
def test_the_same_augmentation_on_every_rank(source):
    assert kinds(augment, source, 0) == {"identical-random-draws"}
    assert kinds(augment, source, 1) == set()


def test_the_same_seed_without_augmentation():
    assert kinds(augment, None, 0) == set()
    assert kinds(augment, None, 0, 2) == set()


def seed_worker(worker_id):
    """What the documentation says about numpy in workers: the rank is not in it."""
    np.random.seed(torch.initial_seed() % 2**32)


def seed_worker_of_rank(worker_id):
    seed_all(10 * int(os.environ["RANK"]) + worker_id)


@pytest.mark.parametrize("context", ["fork", "forkserver"])
@pytest.mark.parametrize("source", ["torch", "random", "numpy"])
def test_the_same_augmentation_in_workers(source, context):
    assert kinds(augment, source, 0, 2, context) == {"identical-random-draws"}
    assert kinds(augment, source, 1, 2, context) == set()


def test_workers_that_the_program_seeds_itself():
    assert kinds(augment, "numpy", 0, 2, "fork", False, seed_worker) == {"identical-random-draws"}
    assert kinds(augment, "numpy", 0, 2, "fork", False, seed_worker_of_rank) == set()


def test_workers_of_spawn_that_stay():
    assert kinds(augment, "torch", 0, 2, "spawn", True, None, 2) == {"identical-random-draws"}


def noise_in_the_loop(own_seed, draw, epochs=1):
    with process_group() as pg:
        ddp, optimizer = model_and_optimizer()
        seed_all(5 + pg.rank * own_seed)
        data = numbers()
        loader = DataLoader(data, 4, sampler=DistributedSampler(data))
        for x, y in loader:
            fit(ddp, optimizer, [(draw(x), y)])


def test_the_same_noise_between_the_batch_and_the_forward():
    noise = lambda x: x + torch.randn_like(x)
    assert kinds(noise_in_the_loop, 0, noise) == {"identical-random-draws"}
    assert kinds(noise_in_the_loop, 1, noise) == set()


def test_one_choice_for_a_whole_batch_may_be_the_same_on_all_ranks():
    assert kinds(noise_in_the_loop, 0, lambda x: x * random.choice([0.5, 1.0])) == set()
    assert kinds(noise_in_the_loop, 0, lambda x: x * torch.rand(1)) == set()


def test_dropout_from_the_same_seed_is_common_and_only_noted():
    def train():
        with process_group():
            data = numbers()
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 1))
            ddp = DistributedDataParallel(model)
            loader = DataLoader(data, 4, sampler=DistributedSampler(data))
            fit(ddp, torch.optim.SGD(ddp.parameters(), lr=0.01), loader)

    assert kinds(train) == {"identical-dropout"}


def test_an_unseeded_run_draws_its_own_numbers_on_each_rank():
    def train():
        with process_group():
            ddp = DistributedDataParallel(nn.Linear(3, 1))
            data = Noisy("torch")
            loader = DataLoader(data, 4, sampler=DistributedSampler(data))
            fit(ddp, torch.optim.SGD(ddp.parameters(), lr=0.01), loader)

    assert kinds(train) == set()


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_and_random_numbers_are_the_same_with_and_without(workers):
    def run():
        with process_group() as pg:
            ddp, optimizer = model_and_optimizer()
            seed_all(5 + pg.rank)
            data = Noisy("numpy")
            loader = make_train_loader(data, 4, rank=pg.rank, world_size=2, num_workers=workers)
            batches = []
            for epoch in range(2):
                loader.sampler.set_epoch(epoch)
                for x, y in loader:
                    batches.append(x)
                    fit(ddp, optimizer, [(x, y)])
            states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
            return torch.cat(batches), *states, [p.detach() for p in ddp.parameters()]

    plain, watched = launch(run, 2, echo=False), launch(run, 2, echo=False, sanitize=True)
    for before, after in zip(plain.values, watched.values, strict=True):
        assert torch.equal(before[0], after[0])
        assert torch.equal(before[1], after[1])
        assert before[2:4] == after[2:4]
        assert all(map(torch.equal, before[4], after[4]))
    assert not of_the_run(watched.findings)


# ---- evaluation


def evaluate(size, reduce, drop_last=False, model=True):
    with process_group() as pg:
        data = numbers(size)
        sampler = DistributedSampler(data, shuffle=False, drop_last=drop_last)
        ddp, _ = model_and_optimizer()
        total = torch.zeros(2)
        with torch.no_grad():
            for x, y in DataLoader(data, 4, sampler=sampler):
                error = (ddp.module.eval()(x) - y).abs().sum()
                total += torch.stack([error, torch.tensor(float(len(x)))])
        return reduce(total, sampler, pg.rank)


def sum_all(total, sampler, rank):
    dist.all_reduce(total)


def mean_of_means(total, sampler, rank):
    dist.all_reduce(total[0] / total[1], op=dist.ReduceOp.SUM)


def gather_all(total, sampler, rank):
    parts = [torch.zeros(2) for _ in range(2)]
    dist.all_gather(parts, total)
    dist.all_reduce(total)


def without_the_repeated(total, sampler, rank):
    total[1] -= rank  # of 47 samples on two ranks, rank 1 has one twice
    dist.all_reduce(total)


@pytest.mark.parametrize("reduce", [sum_all, mean_of_means])
def test_an_evaluation_that_counts_samples_twice(reduce):
    found = findings(evaluate, 47, reduce)
    assert [finding.kind for finding in found] == ["padded-evaluation"]
    sure = reduce is sum_all  # a rank brings the number of all its samples
    assert found[0].serious is sure
    assert f"1 sample {'counts' if sure else 'may count'} twice" in found[0].cause


@pytest.mark.parametrize(
    ("size", "reduce", "drop_last"),
    [
        (48, sum_all, False),
        (47, sum_all, True),
        (47, gather_all, False),
        (47, without_the_repeated, False),
        (47, lambda total, sampler, rank: None, False),
    ],
)
def test_an_evaluation_that_counts_each_sample_once(size, reduce, drop_last):
    assert kinds(evaluate, size, reduce, drop_last) == set()


def test_an_exact_split_and_a_padded_training_pass():
    def run():
        with process_group() as pg:
            ddp, optimizer = model_and_optimizer()
            fit(ddp, optimizer, make_train_loader(numbers(47), 4, rank=pg.rank, world_size=2))
            dist.all_reduce(torch.ones(1))
            total = torch.zeros(2)
            for x, _ in make_eval_loader(numbers(47), 4, rank=pg.rank, world_size=2):
                total += len(x)
            dist.all_reduce(total)
            if pg.rank == 0:
                for x, _ in DataLoader(numbers(5), 4):
                    ddp.module(x)

    assert kinds(run) == set()


# ---- the start


def test_a_group_that_is_smaller_than_the_launch(tmp_path):
    def alone(rank):
        os.environ |= {"WORLD_SIZE": "1", "RANK": "0"}
        dist.init_process_group("gloo")

    def by_argument(rank):
        store = dist.FileStore(str(tmp_path / f"{rank}.store"), 1)
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)

    for start in (alone, by_argument):
        assert kinds(lambda start=start: start(int(os.environ["RANK"]))) == {"smaller-world"}


# ---- checkpoints


def save_and_load(path, order, temporary=False):
    with process_group() as pg:
        ddp, _ = model_and_optimizer()
        if pg.rank == 0:
            if temporary:
                torch.save(ddp.module.state_dict(), path + ".tmp")
                os.replace(path + ".tmp", path)
            else:
                torch.save(ddp.module.state_dict(), path)
        order(ddp)
        if pg.rank == 1 and os.path.exists(path):
            torch.load(path)


def nothing(ddp):
    pass


def one_step(ddp):
    ddp(torch.randn(2, 3)).sum().backward()


def from_rank_0(ddp):
    dist.broadcast_object_list([1], src=0)


def from_rank_1(ddp):
    dist.broadcast(torch.ones(1), src=1)


def async_barrier(ddp):
    dist.barrier(async_op=True).wait()


def late(ddp):
    time.sleep(0.3)  # by the clock the file is there; nothing says so


ORDERS = [lambda ddp: dist.barrier(), one_step, from_rank_0, async_barrier]


@pytest.mark.parametrize("order", [nothing, late, from_rank_1])
def test_a_checkpoint_read_while_it_is_written(order, tmp_path):
    path = str(tmp_path / "model.pt")
    torch.save(nn.Linear(3, 1).state_dict(), path)
    assert kinds(save_and_load, path, order) == {"checkpoint-read-while-written"}


@pytest.mark.parametrize("order", ORDERS)
def test_a_checkpoint_read_in_order(order, tmp_path):
    assert kinds(save_and_load, str(tmp_path / "model.pt"), order) == set()


def test_a_checkpoint_that_is_renamed(tmp_path):
    assert kinds(save_and_load, str(tmp_path / "model.pt"), nothing, True) == set()


def test_who_writes_which_file(tmp_path):
    def save(name):
        with process_group() as pg:
            torch.save({}, tmp_path / name.format(rank=pg.rank))

    def load_and_save_later():
        with process_group() as pg:
            ddp, _ = model_and_optimizer()
            torch.load(tmp_path / "old.pt")
            one_step(ddp)
            for _ in range(3):
                if pg.rank == 0:
                    torch.save({}, tmp_path / "old.pt")
                one_step(ddp)
            torch.load(tmp_path / "old.pt")

    torch.save({}, tmp_path / "old.pt")
    assert kinds(save, "model.pt") == {"checkpoint-read-while-written"}
    assert kinds(save, "model-{rank}.pt") == set()
    assert kinds(load_and_save_later) == set()


# ---- slow


def test_notes_on_speed():
    def train(threads, options, workers=0, branch=False):
        torch.set_num_threads(threads)
        with process_group() as pg:
            torch.manual_seed(0)
            layers = [nn.Linear(3, 3) for _ in range(4)]
            model = Branch(nn.Sequential(*layers, nn.Linear(3, 1)), branch)
            ddp = DistributedDataParallel(model, **options)
            loader = make_train_loader(
                numbers(), 8, rank=pg.rank, world_size=2, num_workers=workers
            )
            fit(ddp, torch.optim.SGD(ddp.parameters(), lr=0.01), loader)

    cores = len(os.sched_getaffinity(0))
    assert kinds(train, 1, {}) == set()
    assert kinds(train, cores + 1, {}) == {"too-many-threads"}
    assert kinds(train, 1, {"bucket_cap_mb": 1e-6}) == {"tiny-buckets"}
    assert kinds(train, 1, {"find_unused_parameters": True}) == {"needless-find-unused"}
    assert kinds(train, 1, {"find_unused_parameters": True}, 0, True) == set()
    assert kinds(train, 1, {}, cores + 1) == {"too-many-workers"}


class Branch(nn.Module):
    """Leaves a layer out now and then."""

    def __init__(self, layers, leaves_out):
        super().__init__()
        self.layers, self.extra, self.leaves_out = layers, nn.Linear(1, 1), leaves_out
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        y = self.layers(x)
        return y if self.leaves_out and self.calls == 2 else self.extra(y)


def test_a_join_made_by_hand():
    def train():
        with process_group() as pg:
            loader = DataLoader(Subset(numbers(), range(pg.rank, 16 + 16 * pg.rank, 2)), 4)
            ddp, optimizer = model_and_optimizer()
            batches, more = iter(loader), torch.ones(1)
            while more.item():
                batch = next(batches, None)
                more = torch.tensor([float(batch is not None)])
                dist.all_reduce(more)
                if more.item():
                    x, y = batch or (torch.zeros(4, 3), torch.zeros(4, 1))
                    fit(ddp, optimizer, [(x, y)])

    assert kinds(train) == set()


def test_ranks_that_share_a_model_may_share_the_data():
    def train():
        with process_group() as pg:
            dist.new_subgroups(2)  # tensor parallel ranks, for instance
            model = nn.Linear(3, 1)
            loader = DataLoader(numbers(), 4, sampler=DistributedSampler(numbers(), 1, 0))
            fit(model, torch.optim.SGD(model.parameters(), lr=0.01), loader)
            return pg.rank

    assert "same-data-on-every-rank" not in kinds(train)
