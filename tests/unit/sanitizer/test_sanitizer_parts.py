"""The pure parts of the sanitizer: places in the code, checksums, causes, the loss's graph."""

import linecache
import random
import textwrap
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F
from torch_age import needs

from ddp_helpers.sanitizer.checks.causes import Causes
from ddp_helpers.sanitizer.checks.loading import common_prefix
from ddp_helpers.sanitizer.compare.callsite import crossed, left_loop
from ddp_helpers.sanitizer.compare.fingerprint import (
    CHUNK,
    fingerprint,
    first_difference,
    first_setting,
    odd_ranks,
)
from ddp_helpers.sanitizer.compare.fingerprint import settings as settings_of
from ddp_helpers.sanitizer.compare.graph import leaves, loss_terms, number_of, reached
from ddp_helpers.sanitizer.compare.records import Edits, StepRecord
from ddp_helpers.sanitizer.talk.session import Session
from ddp_helpers.torch_private import SAVED_DATA

quick = settings(max_examples=60, deadline=None)


# ---- places: A and B mark the lines at which two ranks stand


def stacks(text, **variables):
    """The two stacks within `run()`, and a frame in which its variables have these values."""
    text = textwrap.dedent(text).strip("\n") + "\n"
    name = f"<source {abs(hash(text))}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    lines = {mark: [] for mark in "AB"}
    for number, line in enumerate(text.splitlines(), start=1):
        for mark in "AB":
            if line.endswith(f"# {mark}"):
                function = (
                    "helper" if number < text[: text.find("def run")].count("\n") + 1 else "run"
                )
                lines[mark].append((name, number, function))
    code = {"f_globals": {}, "f_locals": variables}
    frame = type("Frame", (), code)()
    return lines["A"], lines["B"], [frame]


CROSSED = {
    "one line after the other": """
        def run():
            call()  # A
            call()  # B
        """,
    "one of them under a condition": """
        def run():
            if first:
                call()  # A
            call()  # B
        """,
    "in a loop of another length": """
        def run():
            for i in range(n):
                call()  # A
            call()  # B
        """,
    "before and within a loop": """
        def run():
            call()  # A
            while more:
                call()  # B
        """,
    "the body and the else of a loop": """
        def run():
            for i in range(n):
                call()  # A
            else:
                call()  # B
        """,
    "in a with block": """
        def run():
            with thing:
                call()  # A
            call()  # B
        """,
    "try and its finally": """
        def run():
            if x:
                call()  # A
            for i in range(3):
                if y:
                    pass
                call()  # B
        """,
}
APART = {
    "the arms of one condition": """
        def run():
            if first:
                call()  # A
            else:
                call()  # B
        """,
    "elif": """
        def run():
            if first:
                call()  # A
            elif second:
                call()  # B
        """,
    "deep within the arms": """
        def run():
            if first:
                for i in range(3):
                    call()  # A
            else:
                with thing:
                    call()  # B
        """,
    "an arm that leaves": """
        def run():
            if first:
                call()  # A
                return
            call()  # B
        """,
    "an arm that goes on with the next turn": """
        def run():
            for i in range(3):
                if first:
                    call()  # A
                    continue
                call()  # B
        """,
    "cases": """
        def run():
            match kind:
                case 1:
                    call()  # A
                case _:
                    call()  # B
        """,
    "an exception's way": """
        def run():
            try:
                call()  # A
            except ValueError:
                call()  # B
        """,
    "one call over two lines": """
        def run():
            call(1,  # A
                 2)  # B
        """,
    "two conditions that can't be known": """
        def run():
            if ask(1):
                call()  # A
            if ask(2):
                call()  # B
        """,
}


@pytest.mark.parametrize("name", CROSSED)
def test_calls_that_do_not_match(name):
    mine, theirs, frames = stacks(CROSSED[name])
    assert crossed(frames, mine, theirs)
    assert crossed(frames, theirs, mine)


@pytest.mark.parametrize("name", APART)
def test_calls_that_may_well_match(name):
    mine, theirs, frames = stacks(APART[name])
    assert not crossed(frames, mine, theirs)
    assert not crossed(frames, theirs, mine)


@pytest.mark.parametrize(("value", "expected"), [(True, True), (False, False)])
def test_a_condition_whose_value_is_known(value, expected):
    text = """
        def run():
            if mine:
                call()  # A
            if other and not third:
                call()  # B
        """
    mine, theirs, frames = stacks(text, mine=True, other=value, third=False)
    assert crossed(frames, mine, theirs) is expected


@pytest.mark.parametrize(
    ("condition", "expected"),
    [
        ("get_rank() == 0", True),
        ("dist.get_rank() == 0", True),
        ("get_rank() == 1", False),
        ("get_rank(group) == 0", False),  # with arguments it may do anything
        ("get_rank(group=group) == 0", False),
        ("ask() == 0", False),
        ("rank in (0, 1)", True),
        ("not rank and limit > 2.5", True),
        ("unknown", False),
        ("[rank for rank in (1,)]", False),
    ],
)
def test_conditions_that_can_be_told(condition, expected):
    text = f"""
        def run():
            if mine:
                call()  # A
            if {condition}:
                call()  # B
        """
    ask = lambda *given, **more: 0
    known = {"mine": True, "group": 1, "rank": 0, "limit": 3, "dist": SimpleNamespace(get_rank=ask)}
    mine, theirs, (frame,) = stacks(text, **known)
    frame.f_globals.update(get_rank=ask, ask=ask)
    assert crossed([frame], mine, theirs) is expected
    assert not crossed([], mine, theirs)  # there is no frame to look at


class Touchy:
    """Whatever is done with it is counted."""

    touched = 0

    @property
    def ready(self):
        Touchy.touched += 1
        return True

    def __gt__(self, other):
        Touchy.touched += 1
        return True

    def __bool__(self):
        Touchy.touched += 1
        return True

    def __getattr__(self, name):
        Touchy.touched += 1
        return True


def test_looking_at_conditions_runs_nothing_of_the_readers():
    def get_rank():
        Touchy.touched += 1
        return 0

    for condition in ("it.ready", "it > 1", "it", "it.missing", "not it", "it.plain == 3"):
        text = f"""
            def run():
                if mine:
                    call()  # A
                if {condition} or get_rank() == 5:
                    call()  # B
            """
        it = Touchy()
        vars(it)["plain"] = 3
        mine, theirs, frames = stacks(text, mine=True, it=it, get_rank=get_rank)
        assert crossed(frames, mine, theirs) is (condition == "it.plain == 3")
    assert Touchy.touched == 0


def test_methods_of_one_name():
    mine, theirs, frames = stacks("""
        class Leader:
            def run(self):
                call()  # A

        class Worker:
            def run(self):
                call()  # B
        """)
    mine, theirs = ([(name, line, "run") for name, line, _ in stack] for stack in (mine, theirs))
    assert not crossed(frames, mine, theirs)


def test_cases_are_conditions_that_cannot_be_told():
    text = """
        def run():
            if mine:
                call()  # A
            match kind:
                case 1:
                    call()  # B
        """
    mine, theirs, frames = stacks(text, mine=True, kind=1)
    assert not crossed(frames, mine, theirs)


def test_code_that_cannot_be_read_is_no_evidence():
    mine, theirs, frames = stacks("%magic\ndef run():\n    call()  # A\n    call()  # B\n")
    assert not crossed(frames, mine, theirs)
    assert not crossed([], [("/no/such/file.py", 1, "f")], [("/no/such/file.py", 2, "f")])
    assert not crossed([], [], [])


LEFT = {
    "after the loop": (
        """
        def run():
            for batch in batches:
                train()  # A
            report()  # B
        """,
        True,
    ),
    "after the inner loop, in the outer one": (
        """
        def run():
            for epoch in range(3):
                for batch in batches:
                    train()  # A
                report()  # B
        """,
        True,
    ),
    "the outer loop has come round": (
        """
        def run():
            for epoch in range(3):
                begin()  # B
                for batch in batches:
                    train()  # A
        """,
        True,
    ),
    "before the loop": (
        """
        def run():
            begin()  # B
            for batch in batches:
                train()  # A
        """,
        False,
    ),
    "in the same loop": (
        """
        def run():
            while True:
                train()  # A
                report()  # B
        """,
        False,
    ),
    "no loop": (
        """
        def run():
            train()  # A
            report()  # B
        """,
        None,
    ),
    "the loop's else": (
        """
        def run():
            for batch in batches:
                train()  # A
            else:
                report()  # B
        """,
        True,
    ),
    "within a function that is called before": (
        """
        def helper():
            for batch in batches:
                train()  # A

        def run():
            helper()  # A
            report()  # B
        """,
        True,
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_who_has_left_the_loop(name):
    text, expected = LEFT[name]
    trainer, other, _ = stacks(text)
    assert left_loop(trainer[::-1], other) is expected


# ---- checksums

dtypes = st.sampled_from(
    [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.uint8]
)


@quick
@given(dtypes, st.integers(1, 40), st.randoms(use_true_random=False))
def test_any_change_of_one_element_is_seen(dtype, size, chance):
    tensor = torch.tensor([chance.randrange(100) for _ in range(size)]).to(dtype)
    other = tensor.clone()
    place = chance.randrange(size)
    other[place] += 1
    assert fingerprint([tensor]) == fingerprint([tensor.clone()])
    assert fingerprint([tensor]) != fingerprint([other])


@quick
@given(st.permutations(range(6)))
def test_the_order_of_elements_and_of_tensors_counts(order):
    tensor = torch.arange(6.0)
    same = list(order) == sorted(order)
    assert (fingerprint([tensor]) == fingerprint([tensor[order]])) is same
    parts = [torch.tensor([float(i)]) for i in range(6)]
    assert (fingerprint(parts) == fingerprint([parts[i] for i in order])) is same


def test_what_counts_is_the_value_not_the_memory():
    tensor = torch.randn(3, 4)
    assert fingerprint([tensor.t()]) == fingerprint([tensor.t().contiguous()])
    assert fingerprint([tensor.t()]) != fingerprint([tensor])
    square = torch.randn(4, 4)
    assert fingerprint([square]) != fingerprint([square.t()])
    assert fingerprint([tensor[:, :2]]) == fingerprint([tensor[:, :2].clone()])


def test_kinds_of_tensors():
    dense = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
    sparse, other = dense.to_sparse(), (2 * dense).to_sparse()
    assert fingerprint([sparse]) == fingerprint([dense.to_sparse()])
    assert fingerprint([sparse]) != fingerprint([other])
    assert fingerprint([sparse]) != fingerprint([dense.t().to_sparse()])
    assert fingerprint([torch.tensor(1 + 2j)]) != fingerprint([torch.tensor(2 + 1j)])
    assert fingerprint([None, torch.empty(0), torch.tensor(True)]).split(",")[:2] == ["-", "0"]
    assert fingerprint([]) == ""


def test_large_tensors_come_in_pieces():
    tensor = torch.zeros(2 * CHUNK + 5)
    tensor[0] = 1
    other = tensor.roll(CHUNK)  # the same place in the next piece
    assert fingerprint([tensor]) != fingerprint([other])


def test_the_random_state_is_left_alone():
    before = torch.get_rng_state()
    fingerprint([torch.ones(3)])
    assert torch.equal(before, torch.get_rng_state())


# ---- comparison


@quick
@given(st.lists(st.integers(0, 2), min_size=1, max_size=6))
def test_odd_ranks(values):
    by_rank = dict(enumerate(values))
    odd = odd_ranks(by_rank)
    assert (odd == ()) == (len(set(values)) == 1)
    rest = {values[rank] for rank in by_rank if rank not in odd}
    assert len(rest) <= 1  # the others agree, or there are none


def test_differences():
    assert first_difference(["a,b,c", "a,x,c"]) == 1
    assert first_difference(["a,b", "a,b"]) is None
    assert first_setting({0: [{"lr": 0.1}], 1: [{"lr": 0.1}]}) is None
    assert first_setting({0: [{}, {"lr": 0.1}], 1: [{}, {"lr": 0.2}]}) == (1, "lr")


def test_settings_are_plain_numbers():
    parameter = torch.nn.Parameter(torch.ones(2))
    made = torch.optim.Adam([parameter], lr=torch.tensor(0.5), betas=(0.9, 0.99))
    (group,) = settings_of(made)
    assert group["lr"] == 0.5
    assert group["betas"] == [0.9, 0.99]
    assert "params" not in group


# ---- causes


def records(**changes):
    """Records of one step on three ranks; `settings={1: ...}` says what is different on rank 1."""
    usual = StepRecord(
        optimizer="SGD",
        which=(0, 1),
        grads="aa,bb",
        settings=({"lr": 0.1},),
        synced=3,
        since=1,
        elsewhere=0,
        in_no_sync=False,
        edits=Edits(),
        stack=(("train.py", 3, "train"),),
        step=2,
        after="cc,dd",
    )
    made = dict.fromkeys(range(3), usual)
    for key, values in changes.items():
        for rank, value in values.items():
            made[rank] = replace(made[rank], **{key: value})
    return made


GRADS = {1: "aa,xx"}
CAUSES = [
    ({}, None, ()),
    ({"settings": {1: ({"lr": 0.2},)}}, "different-learning-rates", (1,)),
    ({"grads": GRADS}, "gradients-differ", (1,)),
    ({"grads": GRADS, "settings": {1: ({"lr": 0.2},)}}, "different-learning-rates", (1,)),
    ({"grads": GRADS, "in_no_sync": {1: True}}, "ended-inside-no-sync", (1,)),
    ({"grads": GRADS, "since": {0: 0, 1: 0, 2: 0}}, "forward-skipped-ddp", (0, 1, 2)),
    ({"grads": GRADS, "elsewhere": {1: 1}}, "forward-skipped-ddp", (1,)),
    ({"after": {2: "cc,xx"}}, "weights-differ", (2,)),
    ({"after": {2: "cc,xx"}, "edits": {2: Edits((1,))}}, "changed-after-wrap", (2,)),
    ({"synced": {0: 4}, "grads": {0: "xx,yy"}}, "steps-differ", (0,)),
    ({"edits": {2: Edits((1,))}}, None, ()),
    ({"elsewhere": {1: 1}}, None, ()),
]


@pytest.mark.parametrize(("changes", "kind", "ranks"), CAUSES)
def test_the_most_exact_cause(changes, kind, ranks):
    finding = Causes(Session()).of_step(records(**changes), ["w", "b"])
    assert (finding and finding.kind) == kind
    if finding:
        assert finding.ranks == ranks
        assert finding.step == 2
    if kind in ("gradients-differ", "weights-differ"):
        assert "`b`" in finding.cause


def test_a_cause_does_not_depend_on_the_order_of_records():
    made = list(records(grads=GRADS).items())
    causes = set()
    for seed in range(5):
        random.Random(seed).shuffle(made)
        causes.add(str(Causes(Session()).of_step(dict(made), ["w", "b"])))
    assert len(causes) == 1


# ---- the graph under a loss

LOSSES = [
    lambda out, y: F.cross_entropy(out, y),
    lambda out, y: F.cross_entropy(out, y, reduction="sum") / 7,
    lambda out, y: 0.5 * F.mse_loss(out, torch.zeros_like(out)) - out.mean() / 4,
    lambda out, y: torch.tensor(3.0) * F.l1_loss(out, torch.zeros_like(out)),
    lambda out, y: F.binary_cross_entropy_with_logits(out, torch.zeros_like(out)).half().float(),
    lambda out, y: F.smooth_l1_loss(out, torch.zeros_like(out)) + F.huber_loss(out, out.detach()),
    lambda out, y: -out.view(-1).sum().unsqueeze(0),
]


@needs(SAVED_DATA)
@quick
@given(st.sampled_from(LOSSES), st.integers(1, 9), st.floats(0.1, 9))
def test_scaling_a_mean_to_a_sum_gives_each_element_the_same_weight(loss_of, size, scale):
    out = torch.randn(size, 3, requires_grad=True) * 1
    y = torch.zeros(size, dtype=torch.long)
    terms, scaled = loss_terms(loss_of(out, y)), loss_terms(loss_of(out, y) * scale)
    assert terms
    for plain, other in zip(terms, scaled, strict=True):
        assert plain.count == other.count
        assert other.weight == pytest.approx(plain.weight * scale)


@needs(SAVED_DATA)
def test_terms():
    out = torch.randn(8, 3, requires_grad=True) * 1
    y = torch.tensor([-100, 0, 1, 2, 0, 1, 2, 0])
    (term,) = loss_terms(F.cross_entropy(out, y))
    assert (term.count, term.weight) == (7, pytest.approx(1 / 7))
    (term,) = loss_terms(F.cross_entropy(out, y), scale=2.0)
    assert term.weight == pytest.approx(2 / 7)
    assert loss_terms(1 / out.mean()) == []  # not understood, so nothing is said
    assert loss_terms(out.mean() * out.sum()) == []
    assert loss_terms(out) == []
    assert loss_terms(torch.ones(())) == []


@needs(SAVED_DATA)
def test_saved_tensors_of_a_checkpointed_layer_are_not_unpacked():
    from torch.utils.checkpoint import checkpoint

    out = torch.randn(8, 3, requires_grad=True)
    y = torch.zeros(8, dtype=torch.long)
    loss = checkpoint(F.cross_entropy, out, y, use_reentrant=False)
    assert loss_terms(loss) == []
    loss.backward()  # it would complain of a second unpacking
    assert out.grad is not None


def test_what_a_root_depends_on():
    weight = torch.nn.Parameter(torch.ones(3))
    first, second = weight * 2, weight * 3
    wanted = {number_of(first), number_of(second)}
    assert reached([first.sum() * 5], wanted) == {number_of(first)}
    assert reached([(first + second).sum()], wanted) == wanted
    assert reached([first.detach()], wanted) == set()
    assert reached([first], wanted) == {number_of(first)}
    assert leaves([first.sum()]) == {id(weight)}


# ---- names of a state_dict


def test_prefixes():
    names = ["a.weight", "a.bias", "b"]
    assert common_prefix(names, [f"module.{name}" for name in names]) == "module."
    assert common_prefix([f"module.{name}" for name in names], names) == "module."
    deep = [f"module._orig_mod.{name}" for name in names]
    assert common_prefix(names, deep) == "module._orig_mod."
    assert common_prefix(names, ["x", "y"]) == ""
