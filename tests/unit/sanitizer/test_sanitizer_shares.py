"""The pure parts of the sanitizer's data checks."""

import itertools
import random
from array import array
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, DistributedSampler, Sampler, TensorDataset

from ddp_helpers.sanitizer.checks.data_checks import share_record
from ddp_helpers.sanitizer.checks.epochs import repeats
from ddp_helpers.sanitizer.checks.evaluations import padded_here
from ddp_helpers.sanitizer.checks.first_steps import StepInputs, have_same_inputs
from ddp_helpers.sanitizer.checks.slow import count_buckets
from ddp_helpers.sanitizer.checks.start import told_world
from ddp_helpers.sanitizer.compare.randomness import draws_between, random_states, same_draws
from ddp_helpers.sanitizer.compare.samples import (
    MOST_INDICES,
    DatasetPrint,
    contents_hash,
    decode_indices,
    encode_indices,
    fingerprint,
    mix,
)
from ddp_helpers.sanitizer.compare.shares import SamplerRecord, Samples, ShareRecord, judge
from ddp_helpers.sanitizer.watch.order import Moment, is_before
from ddp_helpers.sanitizer.watch.passes import Pass, add_indices

QUICK = settings(max_examples=60, deadline=None)


class Listed(Sampler):
    def __init__(self, order):
        self.order = order

    def __iter__(self):
        return iter(self.order)

    def __len__(self):
        return len(self.order)


def record_of(data, sampler, batch=1, drop_last=False, stop=None):
    """What a rank would tell of a pass with this sampler, up to a number of batches."""
    loader = DataLoader(data, batch, sampler=sampler, drop_last=drop_last)
    done = Pass(
        lambda: loader,
        data,
        sampler,
        "loop#0",
        (("train.py", 1, "train"),),
        lambda: None,
        0,
        steps=1,
        drop_last=drop_last,
    )
    done.epoch = getattr(sampler, "epoch", None)
    for index in list(loader.batch_sampler)[:stop]:
        add_indices(done, index)
        done.contents.add(index, data[index])
        done.delivered += len(index)
        done.batches += 1
    done.complete = stop is None
    return share_record(done)


def kinds(records):
    return {verdict.kind for verdict in judge(dict(enumerate(records)))}


def dataset(size):
    return TensorDataset(torch.randn(size, 2, generator=torch.Generator().manual_seed(size)))


geometries = st.tuples(
    st.integers(1, 70),  # samples
    st.integers(2, 5),  # ranks
    st.integers(1, 9),  # batch size
    st.booleans(),  # shuffle
    st.booleans(),  # drop_last of the sampler
    st.booleans(),  # drop_last of the loader
)


@QUICK
@given(geometries, st.none() | st.integers(1, 4))
def test_a_distributed_sampler_is_right_for_any_geometry(geometry, stop):
    size, ranks, batch, shuffle, drop, loader_drops = geometry
    if drop and size < ranks:
        return
    data = dataset(size)
    samplers = [
        DistributedSampler(data, ranks, rank, shuffle=shuffle, drop_last=drop)
        for rank in range(ranks)
    ]
    assert not kinds([record_of(data, s, batch, loader_drops, stop) for s in samplers])


@QUICK
@given(st.integers(2, 5), st.integers(1, 9), st.integers(0, 40), st.integers(1, 9))
def test_examples_for_all_are_no_overlap_for_any_geometry(ranks, share, seed, batch):
    """Shares of `share` samples and `batch * ranks` that all ranks have, as hard examples are."""
    common = batch * ranks
    order = list(range(ranks * share + common))
    random.Random(seed).shuffle(order)
    own = [order[common + rank * share : common + (rank + 1) * share] for rank in range(ranks)]
    shares = [sorted(part + order[:common]) for part in own]
    data = dataset(len(order))
    if share < 2:  # may be a block by chance
        return
    found = kinds([record_of(data, Listed(part), batch) for part in shares])
    blocks = all(len({b - a for a, b in itertools.pairwise(part)}) == 1 for part in shares)
    assert found == ({"overlapping-data"} if blocks else set())


@QUICK
@given(st.integers(2, 5), st.integers(2, 9), st.integers(1, 9))
def test_blocks_that_overlap_are_found_for_any_geometry(ranks, share, batch):
    common = batch * ranks
    data = dataset(ranks * share + common)
    blocks = [range(rank * share, (rank + 1) * share + common) for rank in range(ranks)]
    verdicts = judge(dict(enumerate(record_of(data, Listed(part), batch) for part in blocks)))
    assert [verdict.kind for verdict in verdicts] == ["overlapping-data"]
    assert not verdicts[0].serious  # a list says nothing of what it is for


@QUICK
@given(st.integers(2, 5), st.integers(1, 9), st.integers(0, 60))
def test_too_many_replicas_leave_data_out_for_any_geometry(ranks, batch, size):
    size += 4 * ranks * batch
    data = dataset(size)
    samplers = [DistributedSampler(data, 2 * ranks, rank) for rank in range(ranks)]
    assert kinds([record_of(data, sampler, batch) for sampler in samplers]) == {"missing-data"}


@QUICK
@given(st.lists(st.integers(0, 3000), max_size=200), st.integers(0, 5 * MOST_INDICES))
def test_indices_travel_whole(indices, population):
    kept = decode_indices(encode_indices(array("q", indices), max([population, *indices]))).tolist()
    every = -(-max([population, *indices]) // MOST_INDICES)
    expected = {i for i in indices if every <= 1 or mix(i) % every == 0}
    assert kept == sorted(expected)


def test_a_large_dataset_is_looked_at_in_part():
    size = 3 * MOST_INDICES
    half = array("q", range(0, size, 2))
    record = encode_indices(half, size)
    assert record.every == 3
    assert abs(len(decode_indices(record)) * 3 / len(half) - 1) < 0.02
    assert len(record.steps) < MOST_INDICES


def test_a_wrong_shard_of_a_large_dataset():
    size = 3 * MOST_INDICES

    def record(rank, start):
        own = array("q", range(start, start + size // 2 + 1000))
        held, packed = DatasetPrint("a", data=True), encode_indices(own, size)
        samples = Samples(
            count=len(own), twice=0, order=str(start), outer=packed, inner=packed, length=size,
            root_length=size,
            dataset=held, root=held, bag=None, contents={}, batch=64, sampler=SamplerRecord("own"),
        )  # fmt: skip
        return ShareRecord(9, 9, complete=True, joined=False, place=None, samples=samples)

    assert kinds([record(0, 0), record(1, size // 2 - 1000)]) == {"overlapping-data"}
    assert kinds([record(0, 0), record(1, size // 2 + 1000)]) == set()


def test_equal_indices_of_different_data_are_no_evidence():
    first, second = dataset(16), TensorDataset(torch.randn(16, 2))
    assert kinds([record_of(data, Listed(range(16))) for data in (first, second)]) == set()
    assert kinds([record_of(first, Listed(range(16)))] * 2) == {"same-data-on-every-rank"}


@QUICK
@given(st.integers(1, 60), st.integers(1, 7), st.booleans())
def test_padding_is_counted_for_any_geometry(size, ranks, drop):
    data = range(size)
    samplers = [DistributedSampler(data, ranks, r, drop_last=drop) for r in range(ranks)]
    total = 0 if drop else samplers[0].total_size - size
    assert sum(map(padded_here, samplers)) == total


def test_a_fingerprint_reads_what_a_dataset_holds():
    class Files:
        def __init__(self, files, rank):
            self.files, self.rank = files, rank

        def __getitem__(self, index):
            raise AssertionError("it must not be asked for samples")

    files = [f"{n}.png" for n in range(20)]
    assert fingerprint(Files(files, 0)) == fingerprint(Files(list(files), 0))
    assert fingerprint(Files(files, 0)).data
    assert fingerprint(Files(files, 0)) != fingerprint(Files(files, 1))
    assert fingerprint(Files(files[::2], 0)) != fingerprint(Files(files[1::2], 0))
    assert not fingerprint(Files(None, 0)).data


def test_contents():
    x = torch.randn(8, 3)
    assert contents_hash([(x,), {"y": x}]) == contents_hash([(x.clone(),), {"y": x.clone()}])
    assert contents_hash(x) != contents_hash(x + 1)
    assert contents_hash(x) != contents_hash(x.t())
    assert contents_hash(x.t()) == contents_hash(x.t().contiguous())
    assert contents_hash(torch.ones(3)) is None
    assert contents_hash(torch.ones(3).to("meta")) is None
    assert contents_hash(torch.eye(3).to_sparse()) is None
    assert contents_hash("text") is None
    steps = [StepInputs(name) for name in "abcd"]
    assert have_same_inputs([steps, steps])
    assert not have_same_inputs([steps, steps[::-1]])
    assert not have_same_inputs([[StepInputs("a")] * 4] * 2)
    assert not have_same_inputs([[StepInputs(None), *steps]] * 2)


def test_an_order_that_repeats():
    order, other = array("q", range(16)), array("q", reversed(range(16)))
    assert repeats(order, order, None)
    assert not repeats(order, other, None)
    assert not repeats(order[:4], order[:4], None)  # by chance
    assert repeats(order, order[:4], True)
    assert not repeats(order, order, False)


def test_draws_are_counted():
    torch.manual_seed(3)
    random.seed(3)
    torch.rand(1), random.random()  # the first draw makes a new block
    states = random_states()
    torch.rand(5), random.random()
    drawn = draws_between(states, random_states())
    assert (drawn["torch"][1], drawn["random"][1]) == (5, 2)
    torch.rand(700)
    assert draws_between(states, random_states())["torch"][1] > 600 - 5


DRAWS = {
    "torch": (torch.manual_seed, lambda n: torch.rand(n)),
    "random": (random.seed, lambda n: [random.random() for _ in range(n)]),
}


@pytest.mark.parametrize("name", DRAWS)
@QUICK
@given(st.integers(0, 600), st.integers(1, 20))
def test_draws_are_noticed_and_none_is_made(name, before, count):
    seed, draw = DRAWS[name]
    seed(3)
    draw(before)
    states = random_states()
    assert not any(drawn for _, drawn, _ in draws_between(states, random_states()).values())
    draw(count)
    drawn = draws_between(states, random_states())
    assert {other: n > 0 for other, (_, n, _) in drawn.items() if other != name}.keys() <= {
        "torch", "random", "numpy",
    }  # fmt: skip
    assert drawn[name][1] >= count
    seed(3)
    draw(before)
    assert random_states()[name] == states[name]


def test_same_draws():
    first = [{"torch": ("state", 8, "a")}, {"torch": ("other", 8, "b")}]
    assert same_draws({0: first, 1: first}, [8, 8]) == ["torch"]
    assert same_draws({0: first, 1: first}, [9, 9]) == []
    assert same_draws({0: first, 1: first[:1]}, [8, 8]) == []
    assert same_draws({0: first, 1: [{"torch": ("mine", 8, "a")}] * 2}, [8, 8]) == []


def moment(entered=0, left=0, root=0, clock=1.0, loose=0.0):
    return Moment({"world": entered}, {"world": left}, {"world/0": root}, clock, loose)


def test_what_happened_before_what():
    saved = moment(entered=3, left=3)
    assert is_before(saved, 0, moment(left=4))
    assert not is_before(saved, 0, moment(left=3, clock=99.0))
    assert is_before(saved, 0, moment(left=3, root=4))
    assert not is_before(saved, 1, moment(left=3, root=4))
    assert is_before(saved, 0, moment(clock=3.0, loose=2.0))  # a message may have ordered them
    assert is_before(Moment({}, {}, {}, 0.5, 0.0), 1, moment(left=1))


@pytest.mark.parametrize(
    ("environment", "world"),
    [
        ({}, 0),
        ({"RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}, 4),
        ({"WORLD_SIZE": "4"}, 0),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, 0),  # a batch script
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0"}, 4),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "3"}, 4),
        ({"RANK": "0", "WORLD_SIZE": "8", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}, 8),
        ({"RANK": "x", "WORLD_SIZE": "many"}, 0),
    ],
)
def test_what_the_launcher_says(environment, world):
    assert told_world(environment)[1] == world


def test_buckets():
    assert count_buckets([10, 10, 10], 25) == 1
    assert count_buckets([10, 10, 10], 15) == 2
    assert count_buckets([10, 10, 10], 1) == 3
    assert count_buckets([], 1) == 0


def test_indices_that_are_no_numbers():
    found = SimpleNamespace(indices=array("q"), sizes=[])
    add_indices(found, [1, torch.tensor(2)])
    assert list(found.indices) == [1, 2]
    add_indices(found, ["a", "b"])
    assert found.indices is None
