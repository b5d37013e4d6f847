"""What two ranks must agree on, in small cases: data, random numbers, checksums, places, graphs."""

import functools
import json
import os
import random
import sys
from array import array
from collections import UserDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import Dataset, IterableDataset, TensorDataset
from torch_age import needs

import ddp_helpers
from ddp_helpers.sanitizer.compare import samples as samples_module
from ddp_helpers.sanitizer.compare.callsite import (
    CLEAN_UP,
    asks_for_rank,
    innermost,
    places,
    user_frames,
)
from ddp_helpers.sanitizer.compare.fingerprint import (
    fingerprint,
    first_difference,
    first_setting,
    odd_ranks,
    settings,
)
from ddp_helpers.sanitizer.compare.graph import Term, leaves, loss_terms, number_of, reached
from ddp_helpers.sanitizer.compare.randomness import draws_between, random_states, same_draws
from ddp_helpers.sanitizer.compare.samples import (
    DATA,
    SampledContents,
    as_tensor,
    bag_and_order,
    contents_hash,
    count_repeated,
    decode_indices,
    digest,
    encode_indices,
    mix,
    mix_all,
    size_of,
    tensor_bytes,
    tensor_raw,
    tensor_sample,
)
from ddp_helpers.sanitizer.compare.samples import fingerprint as dataset_print
from ddp_helpers.sanitizer.compare.samples import leaves as tensors_of
from ddp_helpers.torch_private import SAVED_DATA

# ---- samples


@dataclass
class Batch:
    x: torch.Tensor
    rest: object = None


def test_tensors_of_a_batch():
    one, two, three = torch.ones(1), torch.ones(2), torch.ones(3)
    batch = [one, {"a": (two,), "b": "text"}, Batch(three, [one])]
    assert [t.numel() for t in tensors_of(batch)] == [1, 2, 3, 1]
    assert list(tensors_of(Batch(one))) == [one]
    deep = [[[[one]]]]
    assert list(tensors_of(deep)) == [one]
    assert list(tensors_of([deep])) == []  # whoever nests so deeply has other things in mind
    assert list(tensors_of({"a": {"b": {"c": {"d": one}}}})) == [one]


def test_a_tensor_is_sampled_evenly():
    tensor = torch.arange(10.0)
    assert tensor_sample(tensor, 10).tolist() == list(range(10))
    assert tensor_sample(tensor, 5).tolist() == [0, 2, 4, 6, 8]
    assert tensor_sample(tensor, 4).tolist() == [0, 3, 6, 9]
    assert tensor_sample(tensor.reshape(2, 5).t(), 10).tolist() == [0, 5, 1, 6, 2, 7, 3, 8, 4, 9]
    assert tensor_sample(torch.nn.Parameter(tensor), 10) is not None
    assert tensor_sample(torch.empty(0), 4).tolist() == []
    assert tensor_sample(torch.empty(3, device="meta")) is None
    assert tensor_sample(torch.eye(3).to_sparse()) is None
    assert tensor_sample(tensor.as_subclass(type("Own", (torch.Tensor,), {}))) is None


def test_equal_tensors_give_equal_bytes():
    tensor = torch.tensor([1, 2, 3], dtype=torch.int16)
    assert tensor_raw(tensor) == b"\1\0\2\0\3\0"
    assert tensor_raw(torch.empty(0)) == b""
    assert tensor_bytes(tensor).endswith(b"\1\0\2\0\3\0")
    assert tensor_bytes(torch.empty(0)) == b"(0,)torch.float32"
    assert tensor_bytes(tensor) != tensor_bytes(tensor.reshape(3, 1))
    assert tensor_bytes(torch.zeros(2)) != tensor_bytes(torch.zeros(2, dtype=torch.int32))
    assert tensor_bytes(torch.empty(1, device="meta")) is None


def test_contents_that_tell_nothing():
    varied = torch.tensor([0.0, 1.0, 2.0])
    assert contents_hash(torch.tensor([0.0, 1.0])) is None
    assert contents_hash([torch.ones(3), varied]) is not None
    assert contents_hash([torch.ones(3), varied]) != contents_hash([torch.zeros(3), varied])
    assert contents_hash([varied, torch.empty(2, device="meta")]) is None
    assert contents_hash([]) is None


def test_digests():
    assert digest(b"a", b"b") == digest(b"a", b"b")
    assert len({digest(b"a", b"b"), digest(b"b", b"a"), digest(b"ab"), digest(b"a")}) == 4
    assert len(digest()) == 16


def test_indices_are_mixed_alike_one_by_one_and_together():
    indices = [0, 1, 2, 65535, 1 << 20, 1 << 40]
    assert [mix(index) for index in indices] == mix_all(torch.tensor(indices)).tolist()
    spread = [mix(index) for index in range(4096)]
    assert len(set(spread)) == 4096
    assert all(0 <= value < 1 << 32 for value in spread)
    by_part = [sum(value >> 28 == part for value in spread) for part in range(16)]
    assert min(by_part) > 150  # evenly, 256 each on the average
    assert max(by_part) < 400


def test_a_few_samples_are_chosen_by_their_index():
    batches = [list(range(at, at + 10)) for at in range(0, 60, 10)]
    data = torch.arange(60.0)
    labels = torch.arange(60) % 3
    found = {}
    for order in (batches, batches[::-1]):
        chosen = SampledContents()
        for batch in order:
            chosen.add(batch, (data[batch], labels[batch], torch.ones(3), torch.tensor(1.0)))
        found[len(found)] = chosen.hashes
    assert found[0] == found[1]
    assert len(found[0]) == samples_module.KEPT
    assert sorted(found[0]) == sorted(sorted(range(60), key=mix)[: samples_module.KEPT])
    for index, (of_data, of_label) in found[0].items():  # what is no column is left out
        assert of_data.startswith("r")
        assert not of_label.startswith("r")
        assert of_label == SampledContentsOf(index, labels)


def SampledContentsOf(index, labels):
    chosen = SampledContents()
    chosen.add([index], [labels[index : index + 1]])
    return chosen.hashes[index][0]


def test_which_samples_are_rich():
    def first(tensor):
        chosen = SampledContents()
        chosen.add([5], tensor[None])
        return chosen.hashes[5][0]

    assert first(torch.tensor([1, 2, 3, 4])).startswith("r")
    assert not first(torch.tensor([1, 2, 3])).startswith("r")
    assert first(torch.tensor(1.5)).startswith("r")
    assert first(torch.eye(2).to_sparse()) == "?"


def test_at_most_eight_columns():
    chosen = SampledContents()
    chosen.add([1], [torch.ones(1)] * 9)
    assert len(chosen.hashes[1]) == 8


def test_repeated_indices():
    assert count_repeated(array("q", [1, 2, 1, 1])) == 2
    assert count_repeated(array("q", [])) == 0
    assert as_tensor(array("q", [])).dtype == torch.int64
    assert as_tensor(array("q", [3, 1])).tolist() == [3, 1]


@pytest.mark.parametrize("indices", [[], [0], [7, 3, 3], [0, 255, 256, 511], [0, 256], [-1, 4]])
def test_sets_of_indices_travel(indices):
    packed = encode_indices(array("q", indices), 600)
    assert decode_indices(packed).tolist() == sorted(set(indices))
    assert decode_indices(packed).dtype == torch.int64


# ---- what a dataset holds


class Held(Dataset):
    def __init__(self, **held):
        self.__dict__.update(held)

    def __len__(self):
        return 20

    def __getitem__(self, index):
        raise AssertionError("it must not be asked for samples")


class Silent(IterableDataset):
    def __len__(self):
        raise TypeError("a stream")

    def __iter__(self):
        return iter(())


def test_the_size_of_a_dataset():
    assert size_of(Held()) == 20
    assert size_of([1, 2]) == 2
    assert size_of(Silent()) is None
    assert size_of(object()) is None


HOLDS = [
    (torch.zeros(DATA), True),
    (torch.zeros(DATA - 1), False),
    (np.zeros(DATA), True),
    (np.zeros((2, 2)), False),
    (list(range(DATA)), True),
    (list(range(DATA - 1)), False),
    (tuple(range(DATA)), True),
    (range(DATA), True),
    (array("q", range(DATA)), True),
    ({n: n for n in range(DATA)}, False),
    (UserDict({n: n for n in range(DATA)}), False),
    ([[1, 2], list(range(DATA))], True),
    ("train", False),
    (__file__, True),
    (Path(__file__), True),
    (__file__.encode(), False),
    (os.path.join("no", "such", "file"), False),
    ("a" + "/" * 400, False),
    ("a" + "/" * 5000, True),  # a long text: what a model of language learns from
    ("with a \0/", False),
    (0.5, False),
    (None, False),
    (object(), False),
    (Held(inner=torch.zeros(DATA)), True),
    (Held(inner=1), False),
]


@pytest.mark.parametrize(("value", "expected"), HOLDS, ids=lambda value: type(value).__name__)
def test_what_counts_as_data(value, expected):
    assert dataset_print(Held(value=value)).data is expected


DIFFERENT = [
    (torch.arange(9), torch.arange(9) + 1),
    (np.arange(9), np.arange(9) + 1),
    (np.arange(8).reshape(2, 4), np.arange(8).reshape(4, 2)),
    (np.zeros(4, "int64"), np.zeros(4, "float64")),
    (["a", "b"], ["b", "a"]),
    (["a"], ["a", "a"]),
    ({"a": 1}, {"b": 1}),
    ({"a": 1}, {"a": 2}),
    (1, 1.0),
    (None, 0),
    ("a", b"a"),
    (range(8), range(1, 9)),
    (array("q", [1]), array("q", [2])),
    (Held(rank=0), Held(rank=1)),
    (Held(a=1), [1]),
    (torch.eye(2).to_sparse(), torch.eye(2)),
]


@pytest.mark.parametrize(("first", "second"), DIFFERENT)
def test_datasets_that_differ(first, second):
    assert dataset_print(Held(v=first)).hash != dataset_print(Held(v=second)).hash
    assert dataset_print(Held(v=first)).hash == dataset_print(Held(v=first)).hash


def test_datasets_are_looked_at_in_part():
    many = [str(n) for n in range(1000)]
    changed = [*many]
    changed[1] = "x"  # not one of those looked at
    assert dataset_print(Held(v=many)) == dataset_print(Held(v=changed))
    changed[0] = "x"
    assert dataset_print(Held(v=many)) != dataset_print(Held(v=changed))
    assert dataset_print(Held(v=many)) != dataset_print(Held(v=many[:-1]))
    deep = lambda value: Held(v=[[value]])
    deeper = lambda value: Held(v=[[[value]]])
    assert dataset_print(deep(1)) != dataset_print(deep(2))
    assert dataset_print(deeper(1)) == dataset_print(deeper(2))
    large = np.zeros(10_000)
    other = large.copy()
    other[1] = 1
    assert dataset_print(Held(v=large)) == dataset_print(Held(v=other))
    other[0] = 1
    assert dataset_print(Held(v=large)) != dataset_print(Held(v=other))
    assert dataset_print(Held(v="a" * 5000)) == dataset_print(Held(v="a" * 4999 + "b"))
    assert dataset_print(Held(v="a" * 5000)) != dataset_print(Held(v="a" * 5001))


def test_the_same_samples_in_another_order():
    names = [f"{n}.png" for n in range(20)]
    bag, order = bag_and_order(Held(files=names))
    assert bag_and_order(Held(files=names)) == (bag, order)
    backwards = bag_and_order(Held(files=names[::-1]))
    assert backwards[0] == bag
    assert backwards[1] != order
    assert bag_and_order(Held(files=[*names[:-1], "other"]))[0] != bag
    assert bag_and_order(Held(files=names, n=3)) == (bag, order)  # settings are no samples
    x = torch.arange(40).reshape(20, 2)
    tensors = bag_and_order(TensorDataset(x))
    assert bag_and_order(TensorDataset(x.flip(0)))[0] == tensors[0]
    assert bag_and_order(TensorDataset(x.flip(0)))[1] != tensors[1]
    assert bag_and_order(TensorDataset(x.flip(1)))[0] != tensors[0]
    assert bag_and_order(TensorDataset(x, x)) != tensors


def test_datasets_whose_samples_cannot_be_told():
    names = [f"{n}.png" for n in range(20)]
    assert bag_and_order(Held()) is None
    assert bag_and_order(Held(files=names[:-1])) is None  # no list of samples
    assert bag_and_order(Held(files=[object()] * 20)) is None
    assert bag_and_order(Held(files=names, x=torch.eye(20).to_sparse())) is None
    assert bag_and_order(Held(x=torch.tensor(20.0))) is None
    assert bag_and_order(object()) is None
    assert bag_and_order(TensorDataset(torch.empty(0, 3))) is None

    class Many(Held):
        def __len__(self):
            return samples_module.MOST_ITEMS + 1

    assert bag_and_order(Many(files=[0] * (samples_module.MOST_ITEMS + 1))) is None

    class Few(Held):
        def __len__(self):
            return DATA - 1

    assert bag_and_order(Few(files=[0] * (DATA - 1))) is None
    assert bag_and_order(Few(x=torch.arange(DATA - 1))) is not None


# ---- random numbers


def test_states_of_a_new_block():
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    torch.rand(1), random.random(), np.random.rand()
    before = random_states()
    assert before.keys() == {"torch", "random", "numpy"}
    torch.rand(700), [random.random() for _ in range(400)], np.random.rand(400)
    drawn = {name: count for name, (_, count, _) in draws_between(before, random_states()).items()}
    assert drawn["torch"] == 624 - 1 + (701 - 624)
    assert drawn["random"] == 624 - 2 + (802 - 624)
    assert drawn["numpy"] == 624 - 2 + (802 - 624)


def test_a_generator_that_was_seeded_anew_was_not_drawn_backwards():
    torch.manual_seed(2)
    torch.rand(9)
    before = random_states()
    torch.manual_seed(2)
    torch.rand(2)
    assert draws_between(before, random_states())["torch"][1] == 1


def test_gauss_and_numpys_own_generators():
    random.seed(3)
    before = random_states()
    random.gauss(0, 1)  # keeps a second number for the next time
    one = random_states()
    random.gauss(0, 1)
    assert draws_between(one, random_states())["random"][1] >= 1
    assert one["random"] != before["random"]
    np.random.seed(3)
    np.random.randn()
    first = random_states()
    np.random.randn()
    assert random_states()["numpy"] != first["numpy"]


def test_without_numpy(monkeypatch):
    monkeypatch.delitem(sys.modules, "numpy.random")
    assert random_states().keys() == {"torch", "random"}


def test_a_generator_that_only_one_look_knows():
    before, after = random_states(), random_states()
    del after["numpy"]
    assert draws_between(before, after).keys() == {"torch", "random"}


@pytest.mark.parametrize(
    ("draws", "least", "enough", "expected"),
    [
        ([("s", 8), ("t", 8)], [8, 8], 2, ["torch"]),
        ([("s", 8), ("t", 7)], [8, 8], 2, []),
        ([("s", 8), ("t", 7)], [8, 8], 1, ["torch"]),
        ([("s", 8), ("t", 8)], [8, 9], 2, []),
    ],
)
def test_how_often_the_same_numbers_were_drawn(draws, least, enough, expected):
    draws = [(*draw, "block") for draw in draws]
    entries = [{"torch": draw, "random": (f"{number}", 0, "")} for number, draw in enumerate(draws)]
    assert same_draws({0: entries, 1: entries}, least, enough) == expected
    seeded = [{"torch": (*draw[:2], "another")} for draw in draws]  # by each sample's number
    assert same_draws({0: entries, 1: seeded}, least, enough) == []
    other = [{"torch": ("x", 9, "block")} for _ in draws]
    assert same_draws({0: entries, 1: entries, 2: other}, least, enough) == []
    assert same_draws({0: entries, 1: [{}, {}]}, least, enough) == []
    assert same_draws({0: entries, 1: []}, least, enough) == []


# ---- checksums and settings


def test_a_checksum_is_the_weighted_sum_of_words():
    """Words weigh (n * 0x9E3779B1 + 0x7F4A7C15) | 1, modulo 2^32."""
    tensor = torch.tensor([3, -5, 7], dtype=torch.int32)
    weights = [(n * 0x9E3779B1 + 0x7F4A7C15) | 1 for n in range(3)]
    expected = sum(w * v for w, v in zip(weights, [3, -5, 7], strict=True)) % (1 << 32)
    assert fingerprint([tensor]) == f"{expected:x}"
    assert fingerprint([tensor.to(torch.int16)]) == f"{expected:x}"
    assert fingerprint([tensor, None, tensor]) == f"{expected:x},-,{expected:x}"


def test_wide_numbers_count_whole():
    wide = torch.tensor([1 << 40])
    assert fingerprint([wide]) != fingerprint([torch.tensor([0])])
    assert fingerprint([torch.tensor(1j)]) != fingerprint([torch.tensor(0j)])
    conj = torch.tensor([1 + 2j]).conj()
    assert fingerprint([conj]) == fingerprint([torch.tensor([1 - 2j])])
    assert fingerprint([torch.tensor(True)]) != fingerprint([torch.tensor(False)])


def test_tensors_that_hold_no_values():
    assert fingerprint([torch.empty(3, device="meta")]) == "0"
    quantized = torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)
    assert fingerprint([quantized]) == "0"

    class Sharded:
        def detach(self):
            return self

        def to_local(self):
            return torch.tensor([1.0])

    assert fingerprint([Sharded()]) == fingerprint([torch.tensor([1.0])])


def test_pieces_of_a_large_tensor_weigh_differently(monkeypatch):
    from ddp_helpers.sanitizer.compare import fingerprint as module

    monkeypatch.setattr(module, "CHUNK", 4)
    monkeypatch.setattr(module, "SMALL", 0)
    module._weights.cache_clear()
    parts = [torch.tensor(part, dtype=torch.int32) for part in ([1, 2, 3, 4], [5, 6, 7, 8], [9])]
    sums = [int(fingerprint([part]), 16) for part in parts]
    together = (sums[0] + 3 * sums[1] + 5 * sums[2]) % (1 << 32)
    assert fingerprint([torch.cat(parts)]) == f"{together:x}"
    monkeypatch.undo()
    module._weights.cache_clear()


def test_small_tensors_side_by_side_have_the_checksums_that_each_has_alone(monkeypatch):
    from ddp_helpers.sanitizer.compare import fingerprint as module

    kinds = (torch.float32, torch.float64, torch.bfloat16, torch.uint8, torch.bool)
    tensors = [torch.arange(1 + 7 * i).to(kinds[i % len(kinds)]) for i in range(12)]
    tensors[3:3] = [None, torch.empty(0), torch.randn(3, 4).t(), torch.tensor(1 + 2j)]
    together = fingerprint(tensors)
    assert together == ",".join(fingerprint([tensor]) for tensor in tensors)
    monkeypatch.setattr(module, "SIDE_BY_SIDE", 30)  # several groups
    assert fingerprint(tensors) == together
    monkeypatch.setattr(module, "SMALL", 0)  # each for itself
    assert fingerprint(tensors) == together


def test_a_checksum_leaves_tensors_as_they_are():
    tensors = [torch.arange(5.0), torch.arange(5.0, dtype=torch.float64), torch.ones(3)]
    for given in (tensors, tensors[:1], tensors[1:2]):
        fingerprint(given)
    assert [tensor.sum() for tensor in tensors] == [10, 10, 3]


def test_settings_of_an_optimizer():
    group = {"lr": 0.1, "betas": (0.9, 0.99), "nesterov": True, "name": "a", "maximize": None}
    parameter = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([{"params": [parameter]}], lr=0.1)
    optimizer.param_groups[0] |= group | {"tensor": torch.tensor(2.0), "many": torch.ones(2)}
    optimizer.param_groups[0] |= {"mixed": [1, "a"], "list": [1, 2.5]}
    (found,) = settings(optimizer)
    assert found["lr"] == 0.1
    assert found["betas"] == [0.9, 0.99]
    assert found["nesterov"] is True
    assert (found["tensor"], found["list"]) == (2.0, [1, 2.5])
    assert not {"name", "many", "mixed", "params"} & found.keys()


def test_the_first_setting_that_differs():
    both = {0: [{"lr": 1, "decay": 2}, {"lr": 3}], 1: [{"lr": 1, "decay": 2}, {"lr": 4}]}
    assert first_setting(both) == (1, "lr")
    assert first_setting({0: [{"lr": 1, "decay": 2}], 1: [{"lr": 1, "decay": 3}]}) == (0, "decay")
    assert first_setting({0: [{"lr": 1}], 1: [{"lr": 1.0}]}) == (0, "lr")
    assert first_setting({0: [{"lr": 1}], 1: [{}]}) == (0, "lr")
    assert first_setting({0: [{"lr": 1}], 1: []}) is None


def test_the_first_place_that_differs():
    assert first_difference(["a,b", "a,b,c"]) is None  # one that is shorter ends the search
    assert first_difference(["a,b", "x,b", "a,b"]) == 0
    assert first_difference(["a,b", "a,b", "a,x"]) == 1
    assert first_difference([]) is None


@pytest.mark.parametrize(
    ("values", "odd"),
    [
        ("aab", (2,)),
        ("abb", (0,)),
        ("ab", (0, 1)),
        ("abc", (0, 1, 2)),
        ("aabb", (0, 1, 2, 3)),
        ("aabc", (2, 3)),
        ("aaa", ()),
        ("a", ()),
    ],
)
def test_whose_value_is_odd(values, odd):
    assert odd_ranks(dict(reversed(list(enumerate(values))))) == odd


# ---- places


def test_the_readers_own_frames():
    def inner():
        return user_frames(1)

    frames, called = inner()
    assert [frame.f_code.co_name for frame in frames][-2:] == [
        "test_the_readers_own_frames",
        "inner",
    ]
    assert called == ""
    stack = places(frames)
    assert innermost(stack)[0] == __file__
    assert innermost(stack)[2] == "inner"
    assert user_frames(2)[0]
    assert innermost(()) is None


def library(package, name, file="library.py"):
    """A function of this name in a file of a package; it calls what it is given."""
    filename, made = os.path.join(os.path.dirname(package.__file__), file), {}
    exec(compile(f"def {name}(call):\n    return call()\n", filename, "exec"), made)
    return made[name]


@pytest.mark.skipif("mutmut" in sys.modules, reason="its own frames stand between")
def test_the_function_that_the_reader_called():
    reduce, inner = library(torch, "all_reduce"), library(torch, "_inner")
    frames, called = reduce(lambda: inner(lambda: user_frames(1)))
    assert called == ""  # the lambda between is the reader's own
    look = functools.partial(user_frames, 1)
    frames, called = reduce(functools.partial(inner, look))
    assert called == "all_reduce"
    assert frames[-1].f_code.co_name == "test_the_function_that_the_reader_called"
    frames, called = library(json, "dump")(functools.partial(reduce, look))
    assert called == "all_reduce"  # another library's functions are no name for a collective
    skipped = library(torch, "wrapper", "distributed/c10d_logger.py")
    assert skipped(look)[1] == ""


def test_what_cleans_up_is_named_so():
    clean_up = library(ddp_helpers, "cleanup_distributed")
    look = functools.partial(user_frames, 1)
    assert clean_up(look)[1] == CLEAN_UP
    assert library(ddp_helpers, "other")(look)[1] == ""


def written(tmp_path, text):
    path = tmp_path / "train.py"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("test", "expected"),
    [
        ("rank == 0", True),
        ("is_main_process()", True),
        ("self.is_master", True),
        ("args.leader", True),
        ("primary", True),
        ("chief", True),
        ("LOCAL_RANK", True),
        ("step % 10 == 0", False),
    ],
)
def test_conditions_on_the_rank(tmp_path, test, expected):
    path = written(tmp_path, f"def f():\n    if {test}:\n        call()\n    other()\n")
    assert asks_for_rank([(path, 3, "f")]) is expected
    assert asks_for_rank([(path, 4, "f")]) is False
    assert asks_for_rank([(path, 4, "f"), (path, 3, "f")]) is expected
    assert asks_for_rank([]) is False
    assert asks_for_rank([("/no/such/file.py", 3, "f")]) is False


# ---- the graph


def test_what_is_under_a_loss():
    first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    assert leaves([(first * 2).sum(), (second * first).sum()]) == {id(first), id(second)}
    assert leaves([(first.detach() * second).sum()]) == {id(second)}
    assert leaves([torch.ones(())]) == set()
    assert number_of(torch.ones(1)) is None
    one = first * 2
    two = second * 3
    assert number_of(two) == number_of(one) + 1
    numbers = {number_of(one), number_of(two)}
    assert reached([], numbers) == set()
    assert reached([torch.ones(1), one], numbers) == {number_of(one)}
    assert reached([one.sum() + one.mean()], {number_of(one)}) == {number_of(one)}
    assert reached([one.sum()], set()) == set()
    assert reached([one.sum()], {number_of(one), 1 << 62}) == {number_of(one)}


X = torch.arange(12.0).reshape(4, 3)
Y = torch.tensor([0, 1, 2, 0])
TERMS = [
    (lambda out: F.cross_entropy(out, Y), [(4, 1 / 4)]),
    (lambda out: F.cross_entropy(out, Y, reduction="sum"), [(4, 1.0)]),
    (lambda out: F.cross_entropy(out, Y, ignore_index=0), [(2, 1 / 2)]),
    (lambda out: F.mse_loss(out, X), [(12, 1 / 12)]),
    (lambda out: F.mse_loss(out, X, reduction="sum"), [(12, 1.0)]),
    (lambda out: F.binary_cross_entropy(out.sigmoid(), X * 0), [(12, 1 / 12)]),
    (lambda out: out.mean(), [(12, 1 / 12)]),
    (lambda out: out.sum(), [(12, 1.0)]),
    (lambda out: out[0].sum(), [(3, 1.0)]),
    (lambda out: -out.mean(), [(12, -1 / 12)]),
    (lambda out: out.mean() * 6, [(12, 1 / 2)]),
    (lambda out: 6 * out.mean(), [(12, 1 / 2)]),
    (lambda out: torch.tensor(6.0) * out.mean(), [(12, 1 / 2)]),
    (lambda out: out.mean() * torch.tensor(6.0), [(12, 1 / 2)]),
    (lambda out: out.mean() / 2, [(12, 1 / 24)]),
    (lambda out: out.mean() / torch.tensor(2.0), [(12, 1 / 24)]),
    (lambda out: 2 / out.mean(), []),
    (lambda out: out.mean() / 0.0, []),
    (lambda out: out.mean() * 0.0, [(12, 0.0)]),
    (lambda out: out.mean() + out.sum(), [(12, 1 / 12), (12, 1.0)]),
    (lambda out: out.mean() - out.sum(), [(12, 1 / 12), (12, -1.0)]),
    (lambda out: torch.add(out.mean(), out.sum(), alpha=3), [(12, 1 / 12), (12, 3.0)]),
    (lambda out: torch.sub(out.mean(), out.sum(), alpha=3), [(12, 1 / 12), (12, -3.0)]),
    (lambda out: out.mean() + 1, [(12, 1 / 12)]),
    (lambda out: out.mean().double(), [(12, 1 / 12)]),
    (lambda out: out.mean().clone(), [(12, 1 / 12)]),
    (lambda out: out.sum(1).mean(), [(4, 1 / 4)]),
    (lambda out: out.mean().exp(), []),
    (lambda out: out.mean() * out.sum(), []),
    (lambda out: F.smooth_l1_loss(out, X), [(12, 1 / 12)]),
    (lambda out: F.huber_loss(out, X), [(12, 1 / 12)]),
    (lambda out: F.l1_loss(out, X * 0), [(12, 1 / 12)]),
    (lambda out: F.cross_entropy(out[None].permute(0, 2, 1), Y[None]), [(4, 1 / 4)]),
    (lambda out: F.nll_loss(out.t()[None, :, :, None], Y[None, :, None]), [(4, 1 / 4)]),
    (lambda out: F.cross_entropy(out, Y * 0 - 100), []),
]  # fmt: skip


@needs(SAVED_DATA)
@pytest.mark.parametrize("number", range(len(TERMS)))
def test_the_terms_of_a_loss(number):
    loss, expected = TERMS[number]
    out = X.clone().requires_grad_() * 1
    found = loss_terms(loss(out))
    assert [term.count for term in found] == [count for count, _ in expected]
    assert [term.weight for term in found] == pytest.approx([weight for _, weight in expected])
    doubled = loss_terms(loss(out), 2.0)
    assert [term.weight for term in doubled] == pytest.approx([2 * w for _, w in expected])


def test_a_loss_of_very_many_terms():
    out = torch.ones(2, requires_grad=True)
    loss = sum(out.mean() for _ in range(20))
    assert len(loss_terms(loss)) == 16
    assert loss_terms(out.mean()) == [Term(2, 0.5)]
