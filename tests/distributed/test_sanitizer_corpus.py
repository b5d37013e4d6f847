"""Correct ways to share data out that are in use elsewhere: the sanitizer has nothing to say.

Each is written anew from the description of a public one, which a comment names.
"""

import os
import random

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    RandomSampler,
    Sampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)
from torch_age import of_the_run

from ddp_helpers import launch, process_group

pytestmark = pytest.mark.usefixtures("no_process_left")
SIZE, BATCH = 96, 8


def samples(size=SIZE):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(size, 4, generator=generator)
    return TensorDataset(x, torch.arange(size) % 3)


def wrapped():
    torch.manual_seed(0)
    ddp = DistributedDataParallel(nn.Linear(4, 3))
    return ddp, torch.optim.SGD(ddp.parameters(), lr=0.01)


def fit(model, optimizer, batches, part=lambda x: x):
    for x, y in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(part(x)), part(y)).backward()
        optimizer.step()


def epochs(make_loader, count=3, part=lambda x: x):
    """Train on `make_loader(epoch)` with one wrapped model."""
    ddp, optimizer = wrapped()
    for epoch in range(count):
        fit(ddp, optimizer, make_loader(epoch), part)


def with_sampler(data, sampler, count=3, **options):
    loader = DataLoader(data, BATCH, sampler=sampler, **options)

    def of_epoch(epoch):
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
        return loader

    epochs(of_epoch, count)


# ---- samplers


class Repeated(Sampler):
    """Each sample comes several times, its copies to different ranks; an epoch is a part of it."""

    def __init__(self, size, rank, ranks, repeats=3):
        self.size, self.rank, self.ranks, self.repeats, self.epoch = size, rank, ranks, repeats, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return self.size // self.ranks

    def __iter__(self):
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(self.epoch))
        copies = order.repeat_interleave(self.repeats).tolist()[self.rank :: self.ranks]
        return iter(copies[: len(self)])


def repeated_augmentation(rank, ranks):
    # facebookresearch/deit, samplers.py; timm's RepeatAugSampler
    with_sampler(samples(), Repeated(SIZE, rank, ranks))


class Around(DistributedSampler):
    """What another sampler gives, dealt to the ranks."""

    def __init__(self, sampler, **options):
        super().__init__(_Given(sampler), **options)

    def __iter__(self):
        self.dataset.draw()
        return (self.dataset[place] for place in super().__iter__())


class _Given(Dataset):
    def __init__(self, sampler):
        self.sampler, self.drawn = sampler, []

    def draw(self):
        self.drawn = list(self.sampler)

    def __len__(self):
        return len(self.sampler)

    def __getitem__(self, place):
        return self.drawn[place]


def weighted_and_dealt(rank, ranks):
    # Lightning Fabric's and catalyst's DistributedSamplerWrapper around a WeightedRandomSampler
    weights = torch.tensor([5.0, 1.0, 1.0])[samples().tensors[1]]
    draws = WeightedRandomSampler(weights, SIZE, generator=torch.Generator().manual_seed(3))
    with_sampler(samples(), Around(draws, shuffle=False))


def some_at_random_and_dealt(rank, ranks):
    # Fabric's wrapper around a SubsetRandomSampler: a quarter of the data is not for training
    chosen = SubsetRandomSampler(range(SIZE * 3 // 4), generator=torch.Generator().manual_seed(3))
    with_sampler(samples(), Around(chosen))


class Balanced(Sampler):
    """As many of each class, the rare ones several times; drawn on all ranks alike, then dealt."""

    def __init__(self, labels, rank, ranks):
        self.labels, self.rank, self.ranks, self.epoch = labels, rank, ranks, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return SIZE // self.ranks

    def __iter__(self):
        draw = random.Random(self.epoch)
        of_class = [[i for i, y in enumerate(self.labels) if y == c] for c in range(3)]
        order = [draw.choice(of_class[i % 3]) for i in range(SIZE)]
        return iter(order[self.rank :: self.ranks])


def class_balanced(rank, ranks):
    # mmpretrain's and detectron2's class-aware samplers
    with_sampler(samples(), Balanced(samples().tensors[1].tolist(), rank, ranks))


class BalancedOfEachRank(Balanced):
    """The same from a seed of each rank."""

    def __iter__(self):
        draw = random.Random(100 * self.epoch + self.rank)
        return iter([draw.randrange(SIZE) for _ in range(len(self))])


def class_balanced_on_each_rank(rank, ranks):
    # imbalanced-dataset-sampler, one on each rank with its own seed
    with_sampler(samples(), BalancedOfEachRank([], rank, ranks))


class Endless(Sampler):
    """A stream of shuffles without an end, of which each rank takes every n-th."""

    def __init__(self, rank, ranks):
        self.rank, self.ranks = rank, ranks

    def __iter__(self):
        generator = torch.Generator().manual_seed(11)
        place = 0
        while True:
            for index in torch.randperm(SIZE, generator=generator).tolist():
                if place % self.ranks == self.rank:
                    yield index
                place += 1


def a_stream_of_shuffles(rank, ranks):
    # detectron2's TrainingSampler: steps, no epochs
    batches = iter(DataLoader(samples(), BATCH, sampler=Endless(rank, ranks)))
    ddp, optimizer = wrapped()
    fit(ddp, optimizer, (next(batches) for _ in range(15)))


class ByLength(Sampler):
    """Batches of samples of one length; the ranks get neighbouring ones, some batches stay out."""

    def __init__(self, rank, ranks):
        self.rank, self.ranks, self.epoch = rank, ranks, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return SIZE // BATCH // self.ranks

    def __iter__(self):
        draw = random.Random(self.epoch)
        order = sorted(range(SIZE), key=lambda i: (i % 5, draw.random()))
        whole = [order[at : at + BATCH] for at in range(0, SIZE - BATCH, BATCH)]
        draw.shuffle(whole)
        count = len(whole) // self.ranks * self.ranks
        return iter(whole[:count][self.rank :: self.ranks])


def batches_of_one_length(rank, ranks):
    # fairseq's and torchaudio's bucketed batch samplers
    sampler = ByLength(rank, ranks)

    def of_epoch(epoch):
        sampler.set_epoch(epoch)
        return DataLoader(samples(), batch_sampler=sampler)

    epochs(of_epoch)


class Resumed(DistributedSampler):
    """Goes on in the middle of an epoch."""

    start = 0

    def __iter__(self):
        rest = list(super().__iter__())[self.start :]
        self.start = 0
        return iter(rest)


def resumed_in_the_middle(rank, ranks):
    # torchtitan's and mosaic's resumable samplers
    data = samples()
    sampler = Resumed(data)
    sampler.start = 24
    with_sampler(data, sampler)


class Part(Sampler):
    """A random third of the data in each epoch, the same on all ranks, and dealt."""

    def __init__(self, rank, ranks):
        self.rank, self.ranks, self.epoch = rank, ranks, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __len__(self):
        return SIZE // 3 // self.ranks

    def __iter__(self):
        order = torch.randperm(SIZE, generator=torch.Generator().manual_seed(self.epoch))
        return iter(order[: SIZE // 3][self.rank :: self.ranks].tolist())


def short_epochs(rank, ranks):
    # "virtual epochs" of nnU-Net and of recommendation trainings
    with_sampler(samples(), Part(rank, ranks))


def a_mixture_of_datasets(rank, ranks):
    # a small dataset as often as a large one: ConcatDataset with weights, each rank its own draws
    data = ConcatDataset([samples(), samples(24)])
    weights = [1 / SIZE] * SIZE + [1 / 24] * 24
    draws = torch.Generator().manual_seed(50 + rank)
    with_sampler(data, WeightedRandomSampler(weights, SIZE // ranks, generator=draws))


def a_few_in_each_epoch_of_each_rank(rank, ranks):
    # RandomSampler(num_samples=...) with a seed of each rank
    data = samples()
    draws = torch.Generator().manual_seed(50 + rank)
    with_sampler(data, RandomSampler(data, num_samples=24, generator=draws))


def a_batch_sampler_around_a_distributed_one(rank, ranks):
    # transformers' LengthGroupedSampler style: shuffled batches of a rank's share
    data = samples()
    inner = DistributedSampler(data)

    def of_epoch(epoch):
        inner.set_epoch(epoch)
        return DataLoader(data, batch_sampler=BatchSampler(inner, BATCH, True))

    epochs(of_epoch)


# ---- loops


def part_of_a_global_batch(rank, ranks):
    # x[rank::world_size] of a batch that all ranks draw: JAX-style loops
    data = samples()
    same = torch.Generator().manual_seed(7)
    loader = DataLoader(data, 2 * BATCH, shuffle=True, drop_last=True, generator=same)
    epochs(lambda epoch: loader, part=lambda x: x[rank::ranks])


def chunk_of_a_global_batch(rank, ranks):
    # accelerate's split_batches: each process takes its chunk
    loader = DataLoader(samples(), 2 * BATCH, drop_last=True)
    epochs(lambda epoch: loader, 1, part=lambda x: x.chunk(ranks)[rank])


def hard_examples_for_all(rank, ranks):
    # online hard example mining: each rank its share, and the hardest to all of them
    def of_epoch(epoch):
        order = torch.randperm(SIZE, generator=torch.Generator().manual_seed(epoch)).tolist()
        own = [*order[rank::ranks], *random.Random(epoch).sample(range(SIZE), 24)]
        random.Random(100 * epoch + rank).shuffle(own)
        return DataLoader(samples(), BATCH, sampler=own, drop_last=True)

    epochs(of_epoch)


def two_passes_for_one_epoch(rank, ranks):
    # a generator's pass and a critic's, or two augmented views one after the other
    data = samples()
    sampler = DistributedSampler(data)
    loader = DataLoader(data, BATCH, sampler=sampler)
    ddp, optimizer = wrapped()
    for epoch in range(3):
        sampler.set_epoch(epoch)
        for _ in range(2):
            fit(ddp, optimizer, loader)


def a_new_quarter_in_each_epoch(rank, ranks):
    # DistributedSampler over a Subset that is chosen anew
    def of_epoch(epoch):
        order = torch.randperm(SIZE, generator=torch.Generator().manual_seed(epoch))
        quarter = Subset(samples(), order[: SIZE // 4].tolist())
        sampler = DistributedSampler(quarter)
        sampler.set_epoch(epoch)
        return DataLoader(quarter, 4, sampler=sampler)

    epochs(of_epoch)


def split_with_one_seed(rank, ranks):
    # random_split(..., generator=...) and then the sampler
    whole = samples()
    part, _ = random_split(whole, [72, 24], generator=torch.Generator().manual_seed(1))
    with_sampler(part, DistributedSampler(part))


def fold_of(rank, ranks):
    # scikit-learn style: each rank trains a model of its own, on all folds but its own
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    kept = [index for index in range(SIZE - rank) if index % 5 != rank]
    loader = DataLoader(Subset(samples(), kept), BATCH, shuffle=True)
    for _ in range(2):
        fit(model, optimizer, loader)
    scores = [None] * ranks
    dist.all_gather_object(scores, float(rank))


def seeds_by_sample(rank, ranks):
    # nnU-Net, MONAI: an augmentation that depends on seed, epoch and index only
    data = SeededBySample(*samples().tensors)
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    sampler = DistributedSampler(data)
    ddp, optimizer = wrapped()
    loader = DataLoader(data, BATCH, sampler=sampler, num_workers=2)
    fit(ddp, optimizer, loader)


class SeededBySample(TensorDataset):
    def __getitem__(self, index):
        random.seed(1000 + index)
        np.random.seed(1000 + index)
        x, y = super().__getitem__(index)
        return x + random.random() + np.random.rand(4).astype("float32"), y


def two_roles(rank, ranks):
    # actor and learner: other work, other calls, methods of one name
    class Actor:
        def run(self):
            for number in range(4):
                dist.broadcast(torch.tensor([number]), 0)
                dist.all_reduce(torch.ones(3))
            dist.broadcast(torch.tensor([-1]), 0)

    class Learner:
        def run(self):
            while True:
                order = torch.zeros(1, dtype=torch.long)
                dist.broadcast(order, 0)
                if order.item() < 0:
                    return
                self.answer()

        def answer(self):
            dist.all_reduce(torch.ones(3))

    (Actor() if rank == 0 else Learner()).run()


def parts_on_disk(rank, ranks):
    # webdataset, petastorm: each rank its own files
    own = TensorDataset(*[part[rank::ranks] for part in samples().tensors])
    epochs(lambda epoch: DataLoader(own, BATCH, shuffle=True))


def uneven_last_batch_left_out(rank, ranks):
    # facebookresearch/moco, main_moco.py: at the end of the run its loader is gone already
    data = samples(SIZE - 6)
    sampler = DistributedSampler(data)
    with_sampler(data, sampler, drop_last=True)


CORPUS = [
    repeated_augmentation, weighted_and_dealt, some_at_random_and_dealt, class_balanced,
    class_balanced_on_each_rank, a_stream_of_shuffles, batches_of_one_length,
    resumed_in_the_middle, short_epochs, a_mixture_of_datasets, a_few_in_each_epoch_of_each_rank,
    a_batch_sampler_around_a_distributed_one, part_of_a_global_batch, chunk_of_a_global_batch,
    hard_examples_for_all, two_passes_for_one_epoch, a_new_quarter_in_each_epoch,
    split_with_one_seed, fold_of, seeds_by_sample, two_roles, parts_on_disk,
    uneven_last_batch_left_out,
]  # fmt: skip


@pytest.mark.parametrize("training", CORPUS, ids=lambda training: training.__name__)
def test_nothing_is_said_of_a_right_training(training):
    def run():
        with process_group() as pg:
            training(pg.rank, int(os.environ["WORLD_SIZE"]))

    result = launch(run, 2, sanitize=True, echo=False, timeout=60)
    assert [str(finding) for finding in of_the_run(result.findings)] == []
