"""Batches as strangers make them: their form stays, and all their tensors are moved."""

import dataclasses
from collections import OrderedDict, UserDict, defaultdict, namedtuple
from types import MappingProxyType

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import PackedSequence, pack_sequence

from ddp_helpers.data import empty_like, to_device
from ddp_helpers.data.batches import form_of, samples_in, tensors_of

Pair = namedtuple("Pair", "x y")


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    x: object
    made: int = dataclasses.field(default=0, init=False)

    def __post_init__(self):
        object.__setattr__(self, "made", self.made + 1)


@dataclasses.dataclass
class Open:
    x: object
    y: object = None


leaves = st.one_of(st.integers(), st.text(max_size=3), st.none(), st.just("tensor"))
batches = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.dictionaries(st.text(max_size=3), inner, max_size=3).map(OrderedDict),
        st.dictionaries(st.text(max_size=3), inner, max_size=3).map(UserDict),
        st.builds(Pair, inner, inner),
        st.builds(Frozen, inner),
        st.builds(Open, inner, inner),
    ),
    max_leaves=8,
)


def fill(batch):
    """The same with a tensor for each "tensor", written by hand."""
    if isinstance(batch, str) and batch == "tensor":
        return torch.ones(3, 2)
    if isinstance(batch, dict | UserDict):
        return type(batch)({name: fill(value) for name, value in batch.items()})
    if isinstance(batch, Pair | Open):
        return type(batch)(fill(batch.x), fill(batch.y))
    if isinstance(batch, Frozen):
        return Frozen(fill(batch.x))
    if isinstance(batch, list | tuple):
        return type(batch)(fill(value) for value in batch)
    return batch


def outline(batch):
    """Types, names and values, with where each tensor lies and its shape."""
    if isinstance(batch, torch.Tensor):
        return batch.device.type, tuple(batch.shape)
    if isinstance(batch, dict | UserDict):
        return type(batch), [(name, outline(value)) for name, value in batch.items()]
    if dataclasses.is_dataclass(batch):
        names = [field.name for field in dataclasses.fields(batch)]
        return type(batch), [(name, outline(getattr(batch, name))) for name in names]
    if isinstance(batch, list | tuple):
        return type(batch), [outline(value) for value in batch]
    return batch


@given(batches)
def test_all_tensors_of_any_batch_are_moved_and_nothing_else_changes(form):
    batch = fill(form)
    before = outline(batch)
    if not tensors_of(batch):
        with pytest.raises(ValueError, match="with no tensor in it"):
            to_device(batch, "meta")
        return
    moved = to_device(batch, "meta")
    assert outline(batch) == before  # the loader may give the same batch again
    there = repr(before).replace("'cpu'", "'meta'")
    assert repr(outline(moved)) == there
    assert repr(outline(empty_like(batch))) == repr(before).replace("(3, 2)", "(0, 2)")


def test_what_moves_by_itself_is_let_do_so():
    packed = pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    moved = to_device({"x": packed}, "meta")["x"]
    assert isinstance(moved, PackedSequence)
    assert moved.data.device.type == "meta"
    assert moved.batch_sizes.device.type == "cpu"  # torch wants it there

    class Graphs:
        def to(self, device):
            return f"on {device}"

    assert to_device((Graphs(), 1), "meta") == ("on meta", 1)


def test_dicts_of_odd_kinds():
    lists = defaultdict(list, x=torch.ones(2))
    moved = to_device(lists, "meta")
    assert moved["new"] == []
    assert "new" not in lists
    assert to_device(MappingProxyType({"x": torch.ones(2)}), "meta")["x"].device.type == "meta"


def test_a_number_for_the_whole_batch_has_no_samples_to_take_away():
    assert empty_like({"x": torch.ones(2), "scale": torch.tensor(3.0)})["scale"] == 3.0


@pytest.mark.parametrize(
    ("batch", "text"),
    [
        ("a text", "a batch of the loader is a str, with no tensor in it"),
        ({"a": "x", "b": 2}, "is a dict of 'a', 'b', with no tensor"),
        ([1, (2, 3)], "is a list of 2, with no tensor"),
        (None, "is None, with no tensor"),
        (object(), r"is an object, with no tensor.* collate_fn, or .* a method \.to\(device\)"),
    ],
)
def test_a_batch_with_nothing_to_move_is_named(batch, text):
    with pytest.raises(ValueError, match=text):
        to_device(batch, "cpu")


def test_samples_are_counted_by_the_first_tensor():
    assert samples_in({"boxes": [torch.ones(3, 4)], "ids": torch.ones(9)}) == 3
    for wrong in (torch.tensor(1.0), "x", {}):
        with pytest.raises(ValueError, match="where a batch of targets was expected"):
            samples_in(wrong)


def test_forms_in_words():
    assert form_of(torch.ones(2, 3)) == "a tensor of shape (2, 3)"
    assert form_of(0.5) == "the float 0.5"
    assert form_of({}) == "a dict of nothing"
    assert form_of(Pair(1, 2)) == "a Pair of 2"
