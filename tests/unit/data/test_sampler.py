"""data/sampler.py: global batches, shares, micro-batches and positions, for any geometry."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import TensorDataset

from ddp_helpers.data.loaders import empty_like, make_resumable_loader, make_train_loader
from ddp_helpers.data.sampler import GlobalBatchSampler


@st.composite
def geometries(draw):
    """Arguments of a sampler, without the rank."""
    world_size, accumulation = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    batch = draw(st.integers(world_size * accumulation, world_size * accumulation + 20))
    drop_last = draw(st.booleans())
    return {
        "samples": draw(st.integers(batch if drop_last else 1, 120)),
        "global_batch_size": batch,
        "world_size": world_size,
        "accumulation_steps": accumulation,
        "seed": draw(st.integers(0, 3)),
        "shuffle": draw(st.booleans()),
        "drop_last": drop_last,
    }


def ranks(geometry, epoch=0):
    made = [GlobalBatchSampler(rank=r, **geometry) for r in range(geometry["world_size"])]
    for sampler in made:
        sampler.set_epoch(epoch)
    return made


def by_step(sampler):
    """The micro-batches of each global batch that is still to come."""
    micro, accumulation = list(sampler), sampler.accumulation_steps
    return [micro[start : start + accumulation] for start in range(0, len(micro), accumulation)]


@settings(deadline=None)
@given(geometries(), st.integers(0, 5))
def test_ranks_share_each_global_batch_and_no_sample_comes_twice(geometry, epoch):
    n, batch, drop_last = (geometry[k] for k in ("samples", "global_batch_size", "drop_last"))
    samplers = ranks(geometry, epoch)
    one = GlobalBatchSampler(**geometry | {"world_size": 1, "accumulation_steps": 1})
    one.set_epoch(epoch)
    whole = list(one)
    assert [len(part) for part in whole] == [one.samples_in(step) for step in range(one.steps)]
    assert len(whole) == (n // batch if drop_last else -(-n // batch))
    drawn = [index for part in whole for index in part]
    assert len(set(drawn)) == len(drawn) == (n // batch * batch if drop_last else n)
    shares = [by_step(sampler) for sampler in samplers]
    assert {len(share) for share in shares} == {len(whole)}
    for step, expected in enumerate(whole):
        together = [index for share in shares for micro in share[step] for index in micro]
        assert sorted(together) == sorted(expected)


@settings(deadline=None)
@given(geometries())
def test_shares_and_micro_batches_are_even_and_empty_only_in_a_last_batch(geometry):
    samplers = ranks(geometry)
    for step in range(samplers[0].steps):
        shares = [by_step(sampler)[step] for sampler in samplers]
        sizes = [sum(map(len, share)) for share in shares]
        assert max(sizes) - min(sizes) <= 1
        full = samplers[0].samples_in(step) == geometry["global_batch_size"]
        assert len({len(share) for share in shares}) == 1  # SyncBatchNorm would hang otherwise
        for share in shares:
            parts = [len(micro) for micro in share]
            assert max(parts) - min(parts) <= 1
            assert len(parts) == geometry["accumulation_steps"] or not full
            assert min(parts) > 0 or not full
    assert {len(sampler) for sampler in samplers} == {len(list(sampler)) for sampler in samplers}


@settings(deadline=None)
@given(geometries(), st.data())
def test_any_position_resumes_on_any_number_of_ranks(geometry, data):
    epoch = data.draw(st.integers(0, 4))
    samplers = ranks(geometry, epoch)
    done = data.draw(st.integers(0, samplers[0].steps))
    world_size = data.draw(st.integers(1, 5))
    most = geometry["global_batch_size"] // world_size
    if most == 0:
        world_size, most = 1, geometry["global_batch_size"]
    for _ in range(done):
        samplers[-1].advance()
    state = samplers[-1].state_dict()
    changed = geometry | {
        "world_size": world_size,
        "accumulation_steps": data.draw(st.integers(1, most)),
    }
    resumed = ranks(changed)
    for sampler in resumed:
        sampler.load_state_dict(state)
        if data.draw(st.booleans()):
            sampler.set_epoch(epoch)  # as train_one_epoch does
    rest = zip(*[by_step(sampler) for sampler in resumed], strict=True)
    found = [sorted(i for share in step for micro in share for i in micro) for step in rest]
    samplers[0].set_epoch(epoch)
    whole = zip(*[by_step(sampler) for sampler in ranks(geometry, epoch)], strict=True)
    expected = [sorted(i for share in step for micro in share for i in micro) for step in whole]
    assert found == expected[done:]
    for sampler in resumed:
        sampler.set_epoch(epoch + 1)
        assert len(by_step(sampler)) == sampler.steps  # the next epoch is a whole one


def test_drawing_ahead_does_not_move_the_position():
    sampler = GlobalBatchSampler(20, 5)
    ahead = iter(sampler)
    next(ahead), next(ahead)
    assert sampler.state_dict()["finished"] == 0
    sampler.advance()
    assert sampler.state_dict()["finished"] == 1
    sampler.set_epoch(0)  # the same epoch once more, from its start
    assert len(list(sampler)) == 4


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_order_is_that_of_distributed_sampler(world_size):
    data = TensorDataset(torch.arange(48))
    for rank in range(world_size):
        place = {"rank": rank, "world_size": world_size, "seed": 3}
        plain = make_train_loader(data, 8 // world_size, **place)
        ours = make_resumable_loader(data, 8, **place)
        plain.sampler.set_epoch(2)
        ours.batch_sampler.set_epoch(2)
        pairs = zip(plain, ours, strict=True)
        assert all(torch.equal(theirs[0], mine[0]) for theirs, mine in pairs)


def test_a_share_without_a_sample_comes_as_an_empty_batch():
    data = TensorDataset(torch.randn(9, 2, 3), torch.arange(9))
    loader = make_resumable_loader(data, 4, rank=3, world_size=4)
    shapes = [tuple(images.shape) for images, _ in loader]
    assert shapes == [(1, 2, 3), (1, 2, 3), (0, 2, 3)]
    assert [labels.dtype for _, labels in loader] == [torch.int64] * 3


def test_one_sample_for_two_ranks_leaves_one_of_them_an_empty_batch():
    data = TensorDataset(torch.ones(1, 2), torch.ones(1))
    loaders = [make_resumable_loader(data, 2, rank=rank, world_size=2) for rank in range(2)]
    assert [[len(labels) for _, labels in loader] for loader in loaders] == [[1], [0]]


def test_an_empty_batch_keeps_its_form():
    batch = {"image": torch.ones(2, 3), "rest": [torch.arange(2), ("name", 4)]}
    found = empty_like(batch)
    assert found["image"].shape == (0, 3)
    assert found["rest"][0].shape == (0,)
    assert found["rest"][0].dtype == torch.int64
    assert found["rest"][1] == ("name", 4)
    assert isinstance(found["rest"], list)


def test_one_rank_alone_is_rank_0_of_1_from_the_first_epoch_on():
    sampler = GlobalBatchSampler(11, 4, seed=3)
    expected = torch.randperm(11, generator=torch.Generator().manual_seed(3)).tolist()
    assert [index for batch in sampler for index in batch] == expected
    assert sampler.state_dict()["epoch"] == 0
    loader = make_resumable_loader(TensorDataset(torch.arange(11)), 4, seed=3)
    assert [index for (batch,) in loader for index in batch] == expected
    of_seed_0 = [index for batch in GlobalBatchSampler(11, 4) for index in batch]
    loader = make_resumable_loader(TensorDataset(torch.arange(11)), 4)
    assert [index for (batch,) in loader for index in batch] == of_seed_0


def test_a_resumable_loader_hands_on_what_its_sampler_is_asked_for():
    data = TensorDataset(torch.arange(11))
    loader = make_resumable_loader(data, 4, accumulation_steps=2, drop_last=True)
    assert [len(batch) for (batch,) in loader] == [2] * 4
    workers = make_resumable_loader(data, 4, num_workers=2)
    assert workers.num_workers == 2
    assert workers.multiprocessing_context.get_start_method() == "forkserver"
    assert workers.timeout > 0  # a stuck worker is named, and no rank waits for ever


def test_a_pass_over_a_resumable_loader_leaves_torchs_generator_alone():
    loader = make_resumable_loader(TensorDataset(torch.arange(11)), 4)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    list(loader)
    assert torch.rand(1) == expected


def test_a_saved_place_holds_once():
    saved = GlobalBatchSampler(20, 5)
    saved.advance()
    resumed = GlobalBatchSampler(20, 5)
    resumed.load_state_dict(saved.state_dict())
    resumed.set_epoch(0)
    assert len(list(resumed)) == 3
    resumed.set_epoch(0)  # the same epoch once more, from its start
    assert len(list(resumed)) == 4


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"samples": 0}, "samples=0"),
        ({"global_batch_size": 0}, "global_batch_size=0"),
        ({"global_batch_size": True}, "global_batch_size=True"),
        ({"accumulation_steps": 0}, "accumulation_steps=0"),
        ({"seed": -1}, "seed=-1"),
        ({"rank": 2, "world_size": 2}, "rank=2 with world_size=2"),
        ({"accumulation_steps": 3, "world_size": 2}, r"global_batch_size=5 is less than .* = 6"),
        ({"samples": 4, "drop_last": True}, "drop_last=True leaves no batch: 4 samples"),
    ],
)
def test_a_wrong_argument_is_named(options, text):
    with pytest.raises(ValueError, match=text):
        GlobalBatchSampler(**{"samples": 20, "global_batch_size": 5} | options)


@pytest.mark.parametrize(
    "other", [{"samples": 21}, {"global_batch_size": 4}, {"seed": 1}, {"shuffle": False}]
)
def test_a_position_in_another_order_is_refused(other):
    state = GlobalBatchSampler(20, 5).state_dict()
    changed = GlobalBatchSampler(**{"samples": 20, "global_batch_size": 5} | other)
    name = next(iter(other))
    with pytest.raises(ValueError, match=f"{name}=.*the saved run had {name}=.*start anew"):
        changed.load_state_dict(state)
