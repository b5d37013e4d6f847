"""What is said of the ranks' shares of a pass, from small records made by hand."""

from array import array
from dataclasses import replace

import pytest
import torch

from ddp_helpers.sanitizer.compare.samples import (
    MOST_INDICES,
    DatasetPrint,
    IndexSet,
    count_repeated,
    encode_indices,
    mix,
)
from ddp_helpers.sanitizer.compare.shares import (
    MAY_BE,
    ONE_SPLIT,
    OTHER_ORDER,
    SHARDS,
    SORT,
    SPLIT,
    SamplerRecord,
    Samples,
    Sets,
    ShareRecord,
    have_same_samples,
    judge,
    split_advice,
    who,
)

HELD = DatasetPrint("data", data=True)
OTHER = DatasetPrint("other", data=True)
OWN = SamplerRecord("own")
SAME_SEED = "give the sampler the same seed and the same set_epoch(epoch) on every rank"
SAY_RANK = "give DistributedSampler num_replicas=dist.get_world_size() and rank=dist.get_rank()"


def samples(indices, size=100, **changes):
    """A rank's share of a dataset of so many samples."""
    own = array("q", indices)
    packed = encode_indices(own, size)
    usual = Samples(
        count=len(own), twice=count_repeated(own), order=str(list(own)), outer=packed,
        inner=packed, length=size, root_length=size, dataset=HELD, root=HELD, bag=None,
        contents={}, batch=1, sampler=OWN,
    )  # fmt: skip
    return replace(usual, **changes)


def share(indices, size=100, complete=True, **changes):
    """The record of one rank."""
    return ShareRecord(5, 5, complete, False, None, samples(indices, size, **changes))


def distributed(ranks, rank, **changes):
    """A DistributedSampler, as it should be."""
    usual = SamplerRecord("distributed", replicas=(ranks, rank), seed=0, epoch=3, share=10)
    return replace(usual, **changes)


def verdicts(*records):
    return judge(dict(enumerate(records)))


def only(*records):
    (verdict,) = verdicts(*records)
    return verdict


# ---- numbers of batches


def counted(batches, steps=None, complete=True, joined=False):
    return ShareRecord(batches, batches if steps is None else steps, complete, joined, None)


def test_uneven_numbers_of_batches():
    found = only(counted(4), counted(3), counted(3))
    assert found.kind == "uneven-batch-counts"
    assert found.ranks == (1, 2)
    assert found.cause.endswith("in one training pass: 4 on rank 0, 3 on rank 1, 3 on rank 2")
    assert "drop_last=True" in found.advice
    assert "`with Join([model])`" in found.advice


@pytest.mark.parametrize(
    "other",
    [
        counted(4),
        counted(3, steps=4),  # made up for by hand
        counted(3, complete=False),
        counted(3, joined=True),
    ],
)
def test_numbers_of_batches_that_prove_nothing(other):
    assert verdicts(counted(4), other) == []
    assert verdicts(other, counted(4)) == []


def test_shares_are_told_before_numbers_of_batches():
    both = share(range(10)), share(range(10))
    fewer = replace(both[1], batches=3, steps=3)
    kinds = [verdict.kind for verdict in verdicts(both[0], fewer)]
    assert kinds == ["same-data-on-every-rank", "uneven-batch-counts"]
    unknown = replace(both[1], samples=None)  # without indices there is nothing to say of shares
    assert verdicts(both[0], unknown) == []


# ---- the same data on every rank


def test_the_same_samples_in_the_same_order():
    found = only(share(range(8)), share(range(8)))
    assert found.kind == "same-data-on-every-rank"
    assert found.cause == "all ranks train on the same 8 samples in the same order"
    assert found.advice == SPLIT
    assert found.ranks == (0, 1)


@pytest.mark.parametrize(
    ("count", "complete", "kind", "told"),
    [
        (8, False, "own", True),
        (7, False, "own", False),  # a few may come in one order by chance
        (7, True, "own", True),
        (7, True, "replacement", False),
        (8, True, "replacement", True),
        (8, False, "replacement", True),
    ],
)
def test_how_many_in_one_order_are_no_chance(count, complete, kind, told):
    record = share(range(count), complete=complete, sampler=SamplerRecord(kind))
    assert bool(verdicts(record, record)) is told


def test_the_same_samples_each_in_its_own_order():
    found = only(share(range(9)), share(reversed(range(9))))
    assert found.kind == "same-data-on-every-rank"
    assert found.cause == "every rank goes through the same 9 samples, each in its own order"
    assert found.advice == MAY_BE + SPLIT
    assert not found.serious  # a sampler of the reader's own may mean it
    plain = {"sampler": SamplerRecord("random")}
    found = only(share(range(9), **plain), share(reversed(range(9)), **plain))
    assert (found.advice, found.serious) == (SPLIT, True)
    assert found.ranks == (0, 1)
    assert not verdicts(share(range(9), complete=False), share(reversed(range(9))))


def test_samples_that_come_again_on_purpose():
    twice = [*range(9), *range(9)]  # a rank that has every sample twice draws with replacement
    assert not verdicts(share(twice), share(reversed(twice)))
    batches = {
        "batch": 9,
        "sampler": SamplerRecord("plain"),
    }  # as many as fit into a batch may be a sampler's padding
    assert verdicts(share(twice, **batches), share(reversed(twice), **batches))
    padded = {"sampler": SamplerRecord("plain", padding=9)}
    assert verdicts(share(twice, **padded), share(reversed(twice), **padded))
    drawn = {"sampler": SamplerRecord("replacement")}
    assert not verdicts(share(range(9), **drawn), share(reversed(range(9)), **drawn))


# ---- overlap


def test_samples_that_go_to_several_ranks():
    found = only(share(range(6)), share(range(4, 12)), share([20, 5]))
    assert found.kind == "overlapping-data"
    assert found.cause == "3 samples of one training pass went to more than one rank"
    assert found.advice == MAY_BE + SHARDS
    assert found.ranks == (0, 1, 2)
    assert not found.serious
    dealt = [distributed(3, rank) for rank in range(3)]
    given = [range(6), range(4, 12), [20, 5]]
    found = only(*[share(own, sampler=s) for own, s in zip(given, dealt, strict=True)])
    assert (found.advice, found.serious) == (SHARDS, True)


def test_samples_that_may_go_to_several_ranks():
    """Hard examples for all ranks, folds of a cross-validation, repeated augmentation."""
    assert not verdicts(share([1, 2, 3, 50, 61]), share([7, 8, 9, 50, 61]))
    plain = {"sampler": SamplerRecord("plain")}
    folds = [[*range(20), *range(40, 100)], [*range(40), *range(60, 100)]]
    assert not verdicts(*[share(own, **plain) for own in folds])


def test_parts_that_overlap_though_they_are_as_many_as_the_samples():
    """random_split without a seed, each rank its part."""
    parts = [1, 2, 5, 6, 8], [2, 3, 6, 8, 9]
    found = only(*[share(own, 10, sampler=SamplerRecord("plain")) for own in parts])
    assert (found.kind, found.serious) == ("overlapping-data", False)
    assert "though together they went through as many as there are" in found.cause
    assert found.advice == MAY_BE + ONE_SPLIT


def test_batches_of_which_each_rank_trains_on_a_part():
    def got(rows, *inputs):
        return replace(share(range(40), batch=8), rows=rows, inputs=inputs)

    assert not verdicts(got(4, "a", "b"), got(4, "c", "d"))
    assert not verdicts(got(4, "a"), got(3, "c"))
    assert verdicts(got(8, "a", "b"), got(8, "c", "d"))  # augmented, but the same samples
    assert verdicts(got(4, "a", "b"), got(4, "a", "d"))  # in small parts, one after the other
    assert verdicts(got(4, "a", "b"), got(0))


def test_ranks_that_train_models_of_their_own():
    alone = [replace(share(range(8)), together=False) for _ in range(2)]
    assert not verdicts(*alone)
    fewer = replace(alone[1], batches=3, steps=3)
    assert not verdicts(alone[0], fewer)
    dealt = [replace(r, samples=replace(r.samples, sampler=distributed(2, 0))) for r in alone]
    assert [(v.kind, v.serious) for v in verdicts(*dealt)] == [("same-data-on-every-rank", False)]


def test_parts_that_are_split_again():
    def part(rank, used, sampler=None):
        own = list(range(rank, 40, 2))
        dealt = sampler or distributed(2, rank, share=10)
        dataset, packed = DatasetPrint(f"part {rank}", data=True), array("q", own[:used])
        return share(
            range(used), 20, sampler=dealt, dataset=dataset, root_length=40, order=str(rank),
            inner=encode_indices(packed, 40),
        )  # fmt: skip

    found = only(part(0, 10), part(1, 10))
    assert (found.kind, found.serious) == ("missing-data", True)
    assert "20 of 40 samples went to no rank" in found.cause
    whole = [part(rank, 20, distributed(2, rank, share=20)) for rank in range(2)]
    assert not verdicts(*whole)
    assert not verdicts(*[part(rank, 10, SamplerRecord("random")) for rank in range(2)])


@pytest.mark.parametrize(
    ("common", "changes", "told"),
    [
        (1, {}, False),  # a sampler of the reader's own may fill up its last batch on each rank
        (2, {}, True),
        (3, {"batch": 2}, False),
        (4, {"batch": 2}, True),
        (1, {"sampler": SamplerRecord("plain")}, True),
        (1, {"sampler": SamplerRecord("random")}, True),
        (2, {"sampler": SamplerRecord("distributed", padding=2)}, False),
        (3, {"sampler": SamplerRecord("distributed", padding=2)}, True),
        (1, {"sampler": SamplerRecord("distributed")}, True),
    ],
)
def test_how_much_overlap_may_be_padding(common, changes, told):
    first, second = share(range(20), 40, **changes), share(range(20 - common, 40), 40, **changes)
    found = [verdict.kind for verdict in verdicts(first, second)]
    assert found == (["overlapping-data"] if told else [])


def test_the_largest_padding_and_batch_of_all_ranks_count():
    padded = [distributed(2, rank, padding=2 * rank, share=20) for rank in range(2)]
    first, second = share(range(20), 40, sampler=padded[0]), share(range(18, 40), 40)
    second = replace(second, samples=replace(second.samples, sampler=padded[1]))
    assert not verdicts(first, second)
    assert not verdicts(share(range(20), batch=2), share(range(17, 40)))


def test_parts_of_one_dataset_are_compared_by_its_own_indices():
    """Each rank has a dataset of its own, a Subset for instance; within they are one."""
    packed = [encode_indices(array("q", part), 100) for part in (range(6), range(5, 11))]
    mine = {"outer": packed[0], "batch": 9}
    first = share(range(6), **mine, inner=packed[0], dataset=DatasetPrint("first", data=True))
    second = share(range(6), **mine, inner=packed[1], dataset=DatasetPrint("second", data=True))
    assert not verdicts(first, second)  # one of them may be there to make shares equal
    more = encode_indices(array("q", range(4, 10)), 100)
    second = replace(second, samples=replace(second.samples, inner=more, order="another"))
    found = only(first, second)
    assert found.cause == "2 samples of one training pass went to more than one rank"
    part = [replace(record, complete=False) for record in (first, second)]
    assert only(*part).kind == "overlapping-data"  # fixed parts do not overlap by chance


def test_a_part_of_a_pass():
    shuffled = share([1, 2, 3, 4], complete=False), share([4, 3, 9, 8], complete=False)
    assert not verdicts(*shuffled)  # each rank's own shuffle
    split = [
        replace(record, samples=replace(record.samples, sampler=distributed(2, rank)))
        for rank, record in enumerate(shuffled)
    ]
    assert only(*split).kind == "overlapping-data"
    assert not verdicts(share([1, 2, 3, 4]), replace(shuffled[1], complete=False))


def test_of_a_large_dataset_only_a_part_is_looked_at():
    def large(indices):
        found = IndexSet(4, *_packed(indices))
        count = 4 * len(indices)
        return share(
            range(8), 4 * MOST_INDICES, outer=found, inner=found, order=str(indices), count=count
        )

    def _packed(indices):
        packed = encode_indices(array("q", [4 * index for index in indices]), 400)
        return packed.narrow, packed.steps

    few, many = large(range(40, 80)), large(range(29, 69))
    assert only(large(range(40)), large(range(28, 68))).cause == (
        "about 48 samples of one training pass went to more than one rank"
    )
    assert verdicts(few, many)[0].kind == "overlapping-data"
    ten = large(range(30, 70))
    assert not verdicts(large(range(40)), ten)  # ten of those looked at are no sign


def test_a_dataset_of_which_every_second_sample_is_looked_at():
    """Every second one of these is looked at; the even ones, for instance."""

    def half(indices, size, **changes):
        packed = encode_indices(array("q", indices), 100)
        found = IndexSet(2, packed.narrow, packed.steps)
        return share(range(90), size, outer=found, inner=found, order=str(indices), **changes)

    overlapping = half(range(0, 200, 2), 200), half(range(0, 100, 2), 200)
    assert verdicts(*overlapping)[0].cause.startswith("about 100 samples of one training pass went")
    sampler = distributed(2, 0, share=90)
    lacking = [half(indices, 200, sampler=sampler) for indices in (range(50), range(50, 89))]
    assert only(*lacking).cause == (
        "about 22 of 200 samples went to no rank in one training pass: their samplers say rank=0, "
        "num_replicas=2 on rank 0, rank=0, num_replicas=2 on rank 1"
    )
    enough = [half(indices, 200, sampler=sampler) for indices in (range(50), range(50, 90))]
    assert not verdicts(*enough)  # ten of those looked at are no sign
    by_formula = SamplerRecord("own", formula=True)
    strides = [half(range(start, 80, 4), 160, sampler=by_formula) for start in (0, 2)]
    assert not verdicts(*strides)  # a stride does not show there


def test_whatever_the_default_device():
    by_formula = SamplerRecord("own", formula=True)
    records = missing(range(0, 40, 4), range(1, 40, 4), sampler=by_formula)
    with torch.device("meta"):
        assert only(*records).kind == "missing-data"
        assert only(share(range(8)), share(range(8))).kind == "same-data-on-every-rank"


# ---- missing


def missing(*shares, size=40, sampler=None, **changes):
    usual = [distributed(len(shares), rank, share=len(own)) for rank, own in enumerate(shares)]
    chosen = usual if sampler is None else [sampler] * len(shares)
    pairs = zip(shares, chosen, strict=True)
    return [share(own, size, sampler=each, **changes) for own, each in pairs]


def test_samples_that_go_to_nobody():
    found = only(*missing(range(10), range(10, 37)))
    assert found.kind == "missing-data"
    assert found.cause == "3 of 40 samples went to no rank in one training pass"
    assert found.advice == SHARDS
    assert found.ranks == (0, 1)
    assert not verdicts(*missing(range(10), range(10, 40)))
    part = [replace(record, complete=False) for record in missing(range(10), range(10, 37))]
    assert not verdicts(*part)


def test_samples_that_may_be_dropped():
    shares = range(18), range(18, 36)
    assert verdicts(*missing(*shares))
    assert not verdicts(*missing(*shares, sampler=distributed(2, 0, dropped=4)))
    assert verdicts(*missing(*shares, sampler=distributed(2, 0, dropped=3)))
    drops = distributed(2, 0, drop_last=True)
    assert not verdicts(*missing(*shares, sampler=drops, batch=3))  # up to two on each rank
    assert verdicts(*missing(*shares, sampler=drops, batch=2))
    assert verdicts(*missing(*shares, sampler=distributed(2, 0), batch=3))
    one = missing(*shares, batch=3)  # the drop_last of one rank is enough
    one[0] = replace(one[0], samples=replace(one[0].samples, sampler=drops))
    assert not verdicts(*one)


def test_a_sampler_that_was_not_gone_through():
    shares = range(18), range(18, 36)
    assert not verdicts(*missing(*shares, sampler=distributed(2, 0, share=19)))
    assert verdicts(*missing(*shares, sampler=distributed(2, 0, share=19), batch=2))
    assert not verdicts(*missing(*shares, sampler=distributed(2, 0, share=20), batch=2))


@pytest.mark.parametrize("kind", ["plain", "random", "replacement"])
def test_samplers_that_may_leave_samples_out(kind):
    assert not verdicts(*missing(range(9), range(9, 18), sampler=SamplerRecord(kind)))


def test_a_formula_that_leaves_samples_out():
    by_formula = SamplerRecord("own", formula=True)
    shares = range(0, 40, 4), range(1, 40, 4)  # of four ranks, where there are two
    found = only(*missing(*shares, sampler=by_formula))
    assert found.kind == "missing-data"
    assert found.cause == "20 of 40 samples went to no rank in one training pass"
    assert (found.advice, found.serious) == (MAY_BE + SHARDS, False)
    assert not verdicts(*missing(*shares, sampler=SamplerRecord("own")))  # given indices
    chosen = [i for i in range(40) if i % 7 and i not in (3, 5, 8, 13)]
    irregular = chosen[::2], chosen[1::2]
    assert not verdicts(*missing(*irregular, sampler=by_formula))


@pytest.mark.parametrize(("stride", "told"), [(8, True), (9, False)])
def test_strides_that_a_formula_may_have_wrong(stride, told):
    """Up to four times the number of ranks."""
    shares = range(0, 80, stride), range(1, 80, stride)
    by_formula = SamplerRecord("own", formula=True)
    assert bool(verdicts(*missing(*shares, size=80, sampler=by_formula))) is told


def test_the_shortest_stride():
    by_formula = SamplerRecord("own", formula=True)
    evens = missing(range(0, 80, 4), range(2, 80, 4), size=80, sampler=by_formula)
    assert only(*evens).cause.startswith("40 of 80 samples")
    mixed = missing(range(0, 80, 4), range(2, 80, 4), size=80)
    mixed[1] = replace(mixed[1], samples=replace(mixed[1].samples, sampler=by_formula))
    mixed[0] = replace(mixed[0], samples=replace(mixed[0].samples, sampler=replace(
        mixed[0].samples.sampler, formula=True)))  # fmt: skip
    assert [verdict.kind for verdict in verdicts(*mixed)] == ["missing-data"]
    beyond = missing(range(0, 84, 4), range(2, 84, 4), size=80, sampler=by_formula)
    assert only(*beyond).kind == "missing-data"


def test_a_sampler_next_to_one_with_replacement():
    samplers = SamplerRecord("replacement"), SamplerRecord("plain")
    both = share([*range(20)], sampler=samplers[0]), share([*range(19, 40)], sampler=samplers[1])
    assert verdicts(*both) == []


def test_two_periods_must_be_there():
    by_formula = SamplerRecord("own", formula=True)
    assert verdicts(*missing([0, 8], [1, 9], size=16, sampler=by_formula))
    assert not verdicts(*missing([0, 8], [1, 9], size=15, sampler=by_formula))


# ---- one index, one sample?


def test_datasets_that_differ():
    first, second = share(range(9)), share(range(9), dataset=OTHER, root=OTHER)
    assert not verdicts(first, second)
    unknown = DatasetPrint("data", data=False)
    assert not verdicts(*[share(range(9), dataset=unknown, root=unknown)] * 2)
    assert not verdicts(first, share(range(9), dataset=unknown, root=unknown))


def bags(*pairs, kind="distributed"):
    return [
        share(
            range(9),
            dataset=DatasetPrint(str(rank), data=True),
            root=DatasetPrint(str(rank), data=True),
            bag=bag,
            sampler=SamplerRecord(kind),
        )
        for rank, bag in enumerate(pairs)
    ]


def test_the_same_samples_in_different_orders():
    found = only(*bags(("bag", "one"), ("bag", "two")))
    assert (found.kind, found.cause, found.advice) == ("different-order", OTHER_ORDER, SORT)
    assert found.ranks == (0, 1)
    assert not verdicts(*bags(("bag", "one"), ("bag", "one")))
    assert not verdicts(*bags(("bag", "one"), ("gab", "two")))
    assert not verdicts(*bags(("bag", "one"), None))
    assert not verdicts(*bags(("bag", "one"), ("bag", "two"), kind="own"))


UNHELD = DatasetPrint("files", data=False)


@pytest.mark.parametrize(
    ("first", "second", "held", "unheld"),
    [
        ({}, {}, True, False),  # nothing to compare
        ({1: ("ra",)}, {1: ("rx",)}, True, False),  # one sample is not enough
        ({1: ("ra",), 2: ("rb",)}, {3: ("rx",), 4: ("ry",)}, True, False),  # none in common
        ({1: ("ra",), 2: ("rb",)}, {1: ("ra",), 2: ("rb",)}, True, True),
        ({1: ("a",), 2: ("b",)}, {1: ("a",), 2: ("b",)}, True, False),  # labels agree by chance
        ({1: ("ra",), 2: ("ra",)}, {1: ("ra",), 2: ("ra",)}, False, False),  # all alike
        ({1: ("ra",), 2: ("rb",)}, {1: ("rx",), 2: ("ry",)}, False, False),
        ({1: ("ra", "rc"), 2: ("rb", "rd")}, {1: ("rx", "rc"), 2: ("ry", "rd")}, True, True),
        ({1: ("ra",), 2: ("rb", "c")}, {1: ("rx",), 2: ("ry", "c")}, True, False),
        ({1: (), 2: ()}, {1: (), 2: ()}, True, False),
        ({1: ("ra",), 2: ("rb",), 5: ("rc",)}, {1: ("ra",), 2: ("rb",), 6: ("x",)}, True, True),
    ],
)
def test_whether_equal_indices_mean_equal_samples(first, second, held, unheld):
    for root, expected in ((HELD, held), (UNHELD, unheld)):
        made = {r: samples(range(9), root=root, contents=c) for r, c in enumerate((first, second))}
        assert have_same_samples(made) is expected


# ---- words about samplers


def test_samplers_that_are_right_are_no_cause():
    split = {rank: distributed(2, rank) for rank in range(2)}
    assert who(split) == ""
    assert split_advice(split) == SPLIT
    assert who({0: OWN, 1: distributed(2, 0)}) == ""
    assert who({0: None, 1: distributed(2, 1)}) == ""
    assert split_advice({0: OWN, 1: OWN}) == SPLIT


def test_seeds_and_epochs_that_differ():
    seeds = {rank: distributed(2, rank, seed=rank, epoch=rank) for rank in range(2)}
    assert who(seeds) == ": their samplers have different seeds (0 on rank 0, 1 on rank 1)"
    assert split_advice(seeds) == SAME_SEED
    epochs = {rank: distributed(2, rank, epoch=5 - rank) for rank in range(2)}
    assert who(epochs) == ": their samplers have different epochs (5 on rank 0, 4 on rank 1)"
    assert split_advice(epochs) == SAME_SEED


def test_samplers_that_were_told_another_rank():
    both = {rank: distributed(2, 0) for rank in range(2)}
    assert who(both) == (
        ": their samplers say rank=0, num_replicas=2 on rank 0, rank=0, num_replicas=2 on rank 1"
    )
    assert split_advice(both) == f"{SAY_RANK}, or leave both out"
    many = {rank: distributed(4, rank) for rank in range(2)}
    assert "rank=1, num_replicas=4 on rank 1" in who(many)


def test_the_words_are_part_of_a_verdict():
    records = [share(range(9), 9, sampler=distributed(2, 0, share=9)) for _ in range(2)]
    found = only(*records)
    assert found.cause.startswith("all ranks train on the same 9 samples in the same order: their")
    assert found.cause.endswith("rank=0, num_replicas=2 on rank 1")
    assert found.advice.startswith(SAY_RANK)
    seeds = [distributed(2, rank, seed=rank, share=9) for rank in range(2)]
    shares = range(9), range(5, 14)
    found = verdicts(*[share(i, 14, sampler=s) for i, s in zip(shares, seeds, strict=True)])[0]
    assert found.kind == "overlapping-data"
    assert "went to more than one rank: their samplers have different seeds" in found.cause
    assert found.advice == SAME_SEED
    lacking = only(*missing(range(9), range(9, 18), sampler=distributed(4, 0, share=9)))
    assert "in one training pass: their samplers say rank=0, num_replicas=4" in lacking.cause
    assert lacking.advice.startswith(SAY_RANK)
    shuffles = range(9), reversed(range(9))
    found = [share(i, 9, sampler=s) for i, s in zip(shuffles, seeds, strict=True)]
    assert "each in its own order: their samplers have different seeds" in only(*found).cause
    assert only(*found).advice == SAME_SEED


def test_sets():
    sets = Sets({0: torch.tensor([1, 2, 3]), 1: torch.tensor([3, 4]), 2: torch.tensor([3])}, 2)
    assert sets.together.tolist() == [1, 2, 3, 4]
    assert sets.extra == 4
    assert not sets.equal
    assert Sets({0: torch.tensor([1, 2]), 1: torch.tensor([1, 2])}, 1).equal


def test_which_indices_of_a_large_dataset_are_kept():
    size = 3 * MOST_INDICES
    kept = encode_indices(array("q", range(1000)), size)
    assert kept.every == 3
    expected = [index for index in range(1000) if mix(index) % 3 == 0]
    assert 200 < len(expected) < 500
    wide = encode_indices(array("q", [5, 5, 1000, 3]), 2000)
    assert (wide.every, wide.narrow) == (1, False)
    assert encode_indices(array("q", [5, 5, 261, 3]), 2000).narrow is False
    assert encode_indices(array("q", [5, 5, 260, 3]), 2000).narrow is True
