"""Records as text: what comes back is what was sent, and a record can hold only what comes back."""

import math
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddp_helpers.sanitizer.compare.graph import Term
from ddp_helpers.sanitizer.compare.records import (
    BackwardRecord,
    CallBefore,
    CallRecord,
    Edit,
    Edits,
    ModelState,
    ParameterKind,
    StepRecord,
    TensorKind,
    WaitRecord,
)
from ddp_helpers.sanitizer.talk.codec import decode, encode

PLACE = ("train.py", 7, "train")
EDITS = Edits((0, 3), Edit("load_state_dict", PLACE))
CALL = CallRecord(
    "allreduce",
    "all_reduce",
    (PLACE, PLACE),
    5,
    reduce="SUM",
    root=0,
    tensors=(TensorKind("float32", (2, 3)), TensorKind("int64", ())),
    ranks=(0, 1),
    signature=(ParameterKind("weight", (3,), "float32", trainable=False),),
    backward=BackwardRecord("0", {0: ModelState(1, 2, "ab,-", EDITS), 7: ModelState(0, 0, "")}, ()),
    before=CallBefore("barrier", ()),
)
RECORDS = [
    CALL,
    CallRecord("barrier", "barrier", (), 0),
    BackwardRecord("1", {}, (Term(8, 0.125), Term(1, -1e-300))),
    WaitRecord((1,), "0", 3, CALL),
    StepRecord(
        "SGD",
        (1,),
        "-,ab",
        ({"lr": 0.1, "betas": [0.9, 0.999]}, {}),
        3,
        1,
        0,
        True,
        EDITS,
        (PLACE,),
        9,
    ),
]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: type(record).__name__)
def test_a_record_comes_back_as_it_was(record):
    back = decode(encode(record).encode(), type(record))
    assert back == record
    assert repr(back) == repr(record)  # tuples and numbers of the same kinds: it is compared so


@dataclass(frozen=True)
class One:
    value: float


@dataclass(frozen=True)
class Many:
    ones: tuple[One, ...]
    by_name: dict[str, One]
    by_number: dict[int, tuple[int, str]]
    perhaps: One | None
    pairs: tuple[tuple[str, int], ...]
    flags: tuple[bool, ...] | None = None


def test_kinds_of_fields():
    """Of classes that were never seen before: what is known of a class is kept."""

    @dataclass(frozen=True)
    class Leaf:
        value: float

    @dataclass(frozen=True)
    class Tree:
        leaf: Leaf
        leaves: tuple[Leaf, ...]
        pair: tuple[Leaf, Leaf]
        by_name: dict[str, Leaf]
        by_number: dict[int, Leaf]
        numbers: dict[int, str]
        names: dict[str, int]
        lists: dict[str, tuple[int, ...]]
        perhaps: Leaf | None
        never: Leaf | None
        place: tuple[str, int] | None
        anything: object

    one, two = Leaf(0.5), Leaf(-1.0)
    record = Tree(
        one,
        (one, two),
        (two, one),
        {"a": one, "b": two},
        {1: one, 2: two},
        {3: "c"},
        {"d": 4},
        {"e": (5, 6)},
        two,
        None,
        ("f", 7),
        [8, "g"],
    )
    text = encode(record)
    assert text == (
        '[[0.5],[[0.5],[-1.0]],[[-1.0],[0.5]],{"a":[0.5],"b":[-1.0]},{"1":[0.5],"2":[-1.0]},'
        '{"3":"c"},{"d":4},{"e":[5,6]},[-1.0],null,["f",7],[8,"g"]]'
    )
    back = decode(text, Tree)
    assert back == record
    assert repr(back) == repr(record)


numbers = st.floats(allow_nan=False) | st.integers()
ones = st.builds(One, numbers)
pairs = st.tuples(st.text(), st.integers())
many = st.builds(
    Many,
    st.lists(ones).map(tuple),
    st.dictionaries(st.text(), ones),
    st.dictionaries(st.integers(), st.tuples(st.integers(), st.text())),
    st.none() | ones,
    st.lists(pairs).map(tuple),
    st.none() | st.lists(st.booleans()).map(tuple),
)


@given(many)
def test_any_record_comes_back(record):
    back = decode(encode(record), Many)
    assert back == record
    assert repr(back) == repr(record)


@pytest.mark.parametrize("value", ["left", True, 3, 0.5, None])
def test_plain_values_travel_too(value):
    back = decode(encode(value), type(value))
    assert (back, type(back)) == (value, type(value))


def test_numbers_that_are_none():
    assert math.isnan(decode(encode(One(math.nan)), One).value)
    assert decode(encode(One(-math.inf)), One) == One(-math.inf)


def test_names_of_fields_do_not_travel():
    assert encode(One(1.5)) == "[1.5]"
    assert encode(Many((One(1),), {"a": One(2)}, {3: (4, "b")}, None, (("c", 5),))) == (
        '[[[1]],{"a":[2]},{"3":[4,"b"]},null,[["c",5]],null]'
    )


@dataclass(frozen=True)
class Unfit:
    value: set[int]


@dataclass(frozen=True)
class Mixed:
    value: tuple[One, int]


@dataclass(frozen=True)
class Either:
    value: One | Many | None


@pytest.mark.parametrize("kind", [Unfit, Mixed, Either])
def test_a_field_that_could_not_come_back_is_refused(kind):
    with pytest.raises(TypeError, match=r"in a record: expected str, int, .*dataclass"):
        encode(kind(None))
    with pytest.raises(TypeError, match="in a record: expected"):
        decode("[null]", kind)


def test_a_record_of_another_shape_is_refused():
    with pytest.raises(TypeError, match="positional argument"):
        decode("[1, 2]", One)
