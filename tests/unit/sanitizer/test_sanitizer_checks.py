"""The checks' own judgement, from records and objects made by hand; no ranks are started."""

import os
from array import array
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from one_process import impatient, sessions  # noqa: F401  # a fixture
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from ddp_helpers.evidence.sent_calls import tensors_in
from ddp_helpers.sanitizer.checks.causes import Causes
from ddp_helpers.sanitizer.checks.checkpoints import (
    Access,
    CheckpointChecker,
    FilesRecord,
    clash,
    path_of,
)
from ddp_helpers.sanitizer.checks.collectives import CollectiveChecker
from ddp_helpers.sanitizer.checks.data_checks import (
    Peers,
    ShareChecker,
    about_sampler,
    kind_of,
    share_record,
)
from ddp_helpers.sanitizer.checks.ddp_compare import DdpComparison
from ddp_helpers.sanitizer.checks.epochs import EpochChecker
from ddp_helpers.sanitizer.checks.evaluations import EvaluationChecker
from ddp_helpers.sanitizer.checks.first_steps import (
    FirstStepsRecord,
    StepInputs,
    judge_first_steps,
)
from ddp_helpers.sanitizer.checks.loading import LoadingChecker, common_prefix
from ddp_helpers.sanitizer.checks.start import StartChecker, told_world
from ddp_helpers.sanitizer.checks.unwrapped import LooseRecord
from ddp_helpers.sanitizer.compare.callsite import CLEAN_UP
from ddp_helpers.sanitizer.compare.graph import Term
from ddp_helpers.sanitizer.compare.records import (
    BackwardRecord,
    CallBefore,
    CallRecord,
    Doing,
    Edit,
    Edits,
    ModelState,
    ParameterKind,
    PassEnd,
    StepCount,
    StepRecord,
    TensorKind,
)
from ddp_helpers.sanitizer.compare.shares import SPLIT, SamplerRecord
from ddp_helpers.sanitizer.talk.session import SanitizerError, Session
from ddp_helpers.sanitizer.watch.ddp_calls import BACKWARD, BUFFERS, WRAP
from ddp_helpers.sanitizer.watch.order import Moment
from ddp_helpers.sanitizer.watch.passes import (
    Pass,
    add_indices,
    root_dataset,
    root_indices,
    shuffles,
)
from ddp_helpers.sanitizer.watch.worker_watch import WorkerBatch, batch_size_of
from ddp_helpers.sanitizer.watch.wrapped import Registry

pytestmark = pytest.mark.usefixtures("impatient")

PLACE = ("train.py", 7, "train")
WHERE = "train.py, line 7, in train"


def found_by(call):
    with pytest.raises(SanitizerError) as error:
        call()
    return error.value.finding


# ---- collectives: two ranks' calls side by side


def call(op="allreduce", **changes):
    usual = CallRecord(op, "all_reduce", (PLACE,), 0, reduce="SUM", tensors=(kind(),))
    return replace(usual, **changes)


def kind(dtype="float32", shape=(3,)):
    return TensorKind(dtype, shape)


UNLIKE = [
    ({"op": "barrier", "called": "barrier"}, "different-collective", "call different collectives"),
    ({"root": 1}, "different-source", "name different roots in one all_reduce"),
    ({"reduce": "MAX"}, "different-reduce-op", "different operations in one all_reduce"),
    ({"tensors": (kind("int64"),)}, "different-dtype", "different dtypes to one all_reduce"),
    ({"tensors": (kind(shape=(4,)),)}, "different-shape", "different shapes to one all_reduce"),
    ({"tensors": ()}, "different-dtype", "bring different dtypes"),
    ({"model": 1}, "different-collective", "at different models"),
    ({"mode": "evaluation"}, "different-collective", "one model in different modes"),
    ({"ranks": (0,)}, "different-collective", "ask for different groups"),
]


@pytest.mark.parametrize(("changes", "name", "words"), UNLIKE)
def test_calls_that_differ(changes, name, words):
    session = Session()
    session.step = 3
    checker = CollectiveChecker(session)
    records = {2: call(), 0: call(), 1: call(**changes)}
    found = checker.compare(records, ())
    assert found.kind == name
    assert words in found.cause
    assert found.ranks == (1,)
    assert (found.step, str(found.place)) == (3, WHERE)
    if {"model", "mode", "ranks"} & changes.keys():  # a line about a call does not tell these
        assert len(found.details) == 1
    else:
        assert found.details[0].startswith("ranks 0 and 2: all_reduce(SUM) of float32 (3,)")
        assert found.details[1].startswith("rank 1: ")
        assert len(found.details) == 2
    assert checker.compare({0: call(), 1: call()}, ()) is None


def test_the_most_basic_difference_is_told():
    found = CollectiveChecker(Session()).compare(
        {0: call(), 1: call("broadcast", root=0, tensors=(kind("int64", (9,)),))}, ()
    )
    assert found.kind == "different-collective"
    assert "`if rank == ...`" in found.advice


def test_a_clean_up_is_not_named_as_the_call():
    records = {1: call("barrier", called=CLEAN_UP), 0: call()}
    assert CollectiveChecker(Session()).compare(records, ()).cause == (
        "the ranks call different collectives"
    )
    roots = {1: call(called=CLEAN_UP, root=1), 0: call(called="broadcast", root=0)}
    assert "in one broadcast" in CollectiveChecker(Session()).compare(roots, ()).cause
    for record in (0, 1):
        roots[record] = replace(roots[record], called=CLEAN_UP, stack=())
    found = CollectiveChecker(Session()).compare(roots, ())
    assert "in one call" in found.cause
    assert found.place is None


@pytest.fixture
def two_lines(tmp_path):
    """Calls of one function at lines of which a rank seems to pass both: (rank 0's, rank 1's)."""
    path = tmp_path / "train.py"
    path.write_text("def train():\n    all_reduce()\n    all_reduce()\n    all_reduce()\n")
    at = lambda line: call(stack=((str(path), line, "train"),))
    return lambda *lines: {rank: at(line) for rank, line in enumerate(lines)}


def test_calls_at_places_that_exclude_each_other_are_only_suspect(two_lines):
    checker = CollectiveChecker(session := Session())
    assert checker.compare(two_lines(2, 3), ()) is None
    checker.at_end()
    (note,) = session.findings
    assert (note.kind, note.serious) == ("different-call-site", False)
    assert note.advice.startswith("if other numbers come out than expected: ")
    assert CollectiveChecker(Session()).compare(two_lines(2, 2), ()) is None


def test_who_comes_to_the_others_line_proves_that_a_call_was_too_many(two_lines):
    checker = CollectiveChecker(Session())
    checker.compare(two_lines(2, 3), ())
    found = checker.compare(two_lines(3, 4), ())
    assert (found.kind, found.serious) == ("different-call-site", True)
    assert found.cause == "the ranks are at different all_reduce calls, one of them is too many"
    assert [line.rpartition(", line ")[2] for line in found.details] == [
        "2, in train",
        "3, in train",
    ]


def test_ranks_that_change_places_are_no_evidence(two_lines):
    checker = CollectiveChecker(session := Session())
    checker.compare(two_lines(2, 3), ())
    assert checker.compare(two_lines(3, 2), ()) is None
    checker.forget_all()
    checker.at_end()
    assert session.findings == []


def test_the_other_rank_ended_when_this_one_came_to_its_line(two_lines):
    checker = CollectiveChecker(Session())
    checker.explain_ddp = lambda *given: given
    checker.compare(two_lines(2, 3), ())
    here, elsewhere = two_lines(3, 4).values()
    assert checker.explain_end(here, [1], []).kind == "different-call-site"
    assert checker.explain_end(elsewhere, [1], []) == (elsewhere, [1], [])


def test_who_explains_is_asked_first():
    checker = CollectiveChecker(Session())
    asked = []
    checker.explain.append(lambda records, frames: asked.append((records, frames)))
    checker.explain.append(lambda records, frames: "the cause")
    records = {0: call(), 1: call("barrier")}
    assert checker.compare(records, (1,)) == "the cause"
    assert asked == [(records, (1,))]


def test_tensors_in_whatever_holds_them():
    one, two = torch.ones(1), torch.ones(2)
    assert [t.numel() for t in tensors_in(([one, (two,)], {"a": [one]}, "text", 3))] == [1, 2, 1]
    assert list(tensors_in(None)) == []


class FakeGroup:
    group_name = "world"

    def size(self):
        return 2


@pytest.fixture
def group(monkeypatch):
    monkeypatch.setattr(dist, "get_process_group_ranks", lambda group: [0, 1])
    return FakeGroup()


def test_a_call_is_shown_before_it_is_made(group, monkeypatch):
    """Rank 1 has announced its call; rank 0's is patched, compared, and then made."""
    zero, one = sessions(2)
    made = []
    monkeypatch.setattr(dist.ProcessGroup, "allreduce", lambda *given: made.append(given) or "work")
    checker, other = CollectiveChecker(zero), CollectiveChecker(one)
    told = []
    checker.listeners.append(lambda name, args, called: told.append((name, args)))
    checker.put_patches()
    try:
        tensors, options = [torch.ones(2)], dist.AllreduceOptions()
        theirs = CallRecord("allreduce", "allreduce", (), 0, "SUM", None, (kind(shape=(2,)),))
        other.sequence.event("world", [0, 1], theirs, blocking=False)
        assert dist.ProcessGroup.allreduce(group, tensors, options) == "work"
        assert len(made) == 1
        assert told == [("allreduce", (tensors, options))]
        mine = zero.line.read("call/world/0", [0], CallRecord)[0]
        assert (mine.op, mine.reduce, mine.root) == ("allreduce", "SUM", None)
        assert mine.tensors == (kind(shape=(2,)),)
        assert mine.stack[-1][2] == "test_a_call_is_shown_before_it_is_made"
        differs = replace(theirs, tensors=(kind(shape=(5,)),))
        other.sequence.event("world", [0, 1], differs, blocking=False)
        found = found_by(lambda: dist.ProcessGroup.allreduce(group, tensors, options))
        assert found.kind == "different-shape"
        assert len(made) == 1  # it would have hung, or worse
        checker.joining = lambda: True
        dist.ProcessGroup.allreduce(group, tensors, options)
        zero.channel = None
        dist.ProcessGroup.allreduce(group, tensors, options)
        assert len(made) == 3
    finally:
        zero.patches.undo()


def test_new_groups_are_compared(monkeypatch):
    zero, one = sessions(2)
    made = []
    monkeypatch.setattr(dist, "new_group", lambda *args, **kwargs: made.append(args))
    checker, other = CollectiveChecker(zero), CollectiveChecker(one)
    checker.put_patches()
    try:
        theirs = CallRecord("new_group", "new_group", (), 0, ranks=(0, 1))
        other.sequence.event("new_group", [0, 1], theirs, blocking=False)
        dist.new_group([1, 0])
        other.sequence.event("new_group", [0, 1], theirs, blocking=False)
        dist.new_group()
        dist.new_group([0], use_local_synchronization=True)
        assert made == [([1, 0],), (None,), ([0],)]
        other.sequence.event("new_group", [0, 1], theirs, blocking=False)
        found = found_by(lambda: dist.new_group([0]))
        assert found.cause == "the ranks ask for different groups"
        assert len(made) == 3
    finally:
        zero.patches.undo()


# ---- DDP's own calls

STATE = ModelState(3, 9, "aa,bb")


def backward(*terms, states=None, **changes):
    made = BackwardRecord("0", states or {0: STATE}, tuple(Term(*term) for term in terms))
    usual = CallRecord(BACKWARD, "backward of a DDP model", (PLACE,), 4, backward=made)
    return replace(usual, **changes)


def buffers(mode="training", **changes):
    usual = CallRecord(BUFFERS, "forward of a DDP model", (PLACE,), 4, model=0, mode=mode)
    return replace(usual, **changes)


def wrap(*parameters, **changes):
    signature = tuple(ParameterKind(*parameter) for parameter in parameters)
    usual = CallRecord(WRAP, "DistributedDataParallel(...)", (PLACE,), 4, model=0)
    return replace(usual, signature=signature, **changes)


def comparison(weights=lambda backwards, records: None):
    return DdpComparison(Session(), weights)


def test_calls_that_are_not_ddps_are_left_to_others():
    assert comparison().compare({0: call(), 1: call("barrier")}, ()) is None
    assert comparison().compare({0: buffers(), 1: buffers()}, ()) is None


def test_weights_are_asked_about_before_a_backward():
    asked = []
    weights = lambda backwards, records: asked.append((backwards, records)) or "weights"
    records = {1: backward(), 0: backward()}
    assert comparison(weights).compare(records, ()) == "weights"
    ((backwards, given),) = asked
    assert backwards == {rank: records[rank].backward for rank in (0, 1)}
    assert given is records
    other = backward(states={0: STATE, 1: STATE})
    assert comparison(weights).compare({0: backward(), 1: other}, ()) is None
    swapped = [backward(states=states) for states in ({0: STATE, 1: STATE}, {1: STATE, 0: STATE})]
    assert comparison(weights).compare(dict(enumerate(swapped)), ()) == "weights"


def test_a_rank_that_does_not_wrap():
    found = comparison().compare({0: wrap(), 1: call("barrier", called="barrier"), 2: wrap()}, ())
    assert (found.kind, found.ranks) == ("different-models", (1,))
    assert found.cause == "rank 1 does not wrap a model where the others do"
    assert len(found.details) == 3
    assert found.details[1] == f"rank 1: barrier(SUM) of float32 (3,) at {WHERE}"
    assert (found.step, str(found.place)) == (0, WHERE)


W, B = ("weight", (3, 2), "float32", True), ("bias", (3,), "float32", True)


@pytest.mark.parametrize(
    ("theirs", "place", "name", "told"),
    [
        ((W, ("bias", (4,), "float32", True)), 1, "bias", "`bias`, float32 (4,)"),
        ((("weight", (3, 2), "float16", True), B), 0, "weight", "`weight`, float16 (3, 2)"),
        ((W, ("bias", (3,), "float32", False)), 1, "bias", "`bias`, float32 (3,), frozen"),
        ((W,), 1, "bias", "no such parameter"),
        ((W, B, ("more", (), "int64", True)), 2, "more", "`more`, int64 ()"),
    ],
)
def test_models_that_differ(theirs, place, name, told):
    found = comparison().compare({0: wrap(W, B), 1: wrap(*theirs), 2: wrap(W, B)}, ())
    assert (found.kind, found.ranks, found.step) == ("different-models", (1,), 4)
    assert found.cause == (
        f"the ranks wrap different models: the first difference is parameter {place}, `{name}`"
    )
    assert found.details[1] == f"rank 1: {told}"
    assert len(found.details) == 3


def test_models_that_are_alike():
    assert comparison().compare({0: wrap(W, B), 1: wrap(W, B)}, ()) is None


def test_losses_that_are_means_over_different_numbers():
    found = comparison().compare({0: backward((8, 1 / 8)), 1: backward((4, 1 / 4))}, ())
    assert (found.kind, found.ranks) == ("uneven-batch-weights", (0, 1))
    assert found.cause.endswith("as if they were equal: 8 on rank 0, 4 on rank 1")
    assert "drop_last=True" in found.advice
    second = comparison().compare(
        {0: backward((8, 0.1), (8, 1 / 8)), 1: backward((8, 0.2), (4, 1 / 4))}, ()
    )
    assert "8 on rank 0, 4 on rank 1" in second.cause
    odd = {0: backward((8, 1 / 8)), 1: backward((8, 1 / 8)), 2: backward((4, 1 / 4))}
    assert comparison().compare(odd, ()).ranks == (2,)


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (((8, 0.25),), ((4, 0.25),)),  # scaled, so that each element counts the same
        (((8, 0.25),), ((4, 0.2502),)),
        (((8, 1 / 8),), ((8, 1 / 4),)),
        (((8, 1 / 8),), ()),
        ((), ()),
    ],
)
def test_losses_that_are_even(mine, theirs):
    assert comparison().compare({0: backward(*mine), 1: backward(*theirs)}, ()) is None


def test_how_unlike_the_weights_of_elements_may_be():
    weights = [0.25, 0.2504]
    records = {rank: backward((8 - rank, weight)) for rank, weight in enumerate(weights)}
    assert comparison().compare(records, ()).kind == "uneven-batch-weights"


def test_the_end_of_a_rank_before_ddps_calls():
    explain = comparison().explain_end
    found = explain(wrap(), [1], ["a detail"])
    assert (found.kind, found.ranks, found.details) == ("different-models", (1,), ("a detail",))
    assert found.cause == "rank 1 ended without the wrap that other ranks make"
    for record in (backward(), buffers("training")):
        found = explain(record, [1, 2], [])
        assert (found.kind, found.ranks) == ("uneven-batch-counts", (1, 2))
        assert found.cause == "ranks 1 and 2 ended while others still train"
        assert "Join([ddp])" in found.advice
    found = explain(buffers("evaluation"), [1], [])
    assert found.kind == "different-collective"
    assert found.cause == "rank 1 ended while others still evaluate through the DDP wrapper"
    assert "`ddp.module(...)`" in found.advice
    assert explain(call(), [1], []) is None


@pytest.fixture
def loop(tmp_path):
    """Two places in a training script: in its loop, and after it."""
    path = tmp_path / "train.py"
    path.write_text(
        "def train():\n    for x in data:\n        step(x)\n    barrier()\n"
        "    if rank:\n        more()\n"
    )
    return {
        name: ((str(path), line, "train"),) for name, line in (("in", 3), ("after", 4), ("if", 6))
    }


def test_a_rank_that_left_the_loop(loop):
    trains = [backward(stack=loop["in"]), buffers("training", stack=loop["in"])]
    leaves = call("barrier", called="barrier", stack=loop["after"])
    for trainer in trains:
        found = comparison().compare({0: trainer, 1: leaves}, ())
        assert (found.kind, found.ranks) == ("uneven-batch-counts", (1,))
        assert found.cause == "rank 1 left the training loop while others still train"
        assert len(found.details) == 2
    evaluates = buffers("evaluation", stack=loop["in"])
    assert comparison().compare({0: evaluates, 1: leaves}, ()) is None
    last = backward(stack=loop["after"])
    assert comparison().compare({0: trains[0], 1: last}, ()).ranks == (1,)
    alone = replace(buffers("evaluation", stack=loop["if"]), doing=Doing(2, 9, True, 0, True))
    trainer = replace(trains[0], doing=Doing(3, 1))
    found = comparison().compare({0: trainer, 1: alone}, ())
    assert (found.kind, found.ranks) == ("different-collective", (1,))
    assert "the model of rank 1 is in evaluation mode while rank 0 trains" in found.cause
    assert "or rank 1 had fewer batches" not in found.cause
    unseen = replace(alone, doing=Doing(evaluates=True))
    found = comparison().compare({0: trains[0], 1: unseen}, ())
    assert "; or rank 1 had fewer batches, and went on to evaluate" in found.cause
    cleans = call("barrier", called=CLEAN_UP, stack=())
    assert comparison().compare({0: trains[0], 1: cleans}, ()).ranks == (1,)


def test_a_rank_that_had_fewer_batches_and_went_on_to_evaluate(loop):
    trainer = backward(stack=loop["in"])
    trainer = replace(trainer, doing=Doing(2, 10))
    ended = replace(buffers("evaluation", stack=loop["after"]), doing=Doing(2, 9, True, 0, True))
    assert comparison().compare({0: trainer, 1: ended}, ()).kind == "uneven-batch-counts"
    for doing in (Doing(2, 10), Doing(2, 11), Doing(3, 9)):  # it is not behind
        barrier = replace(call("barrier", called="barrier", stack=loop["after"]), doing=doing)
        assert comparison().compare({0: trainer, 1: barrier}, ()) is None


def test_a_forward_without_a_backward():
    trainer = replace(backward(), doing=Doing(idle=1))
    for other in (call("barrier", called="barrier"), buffers("training")):
        skipped = replace(other, doing=Doing(idle=2))
        found = comparison().compare({0: trainer, 1: skipped}, ())
        assert (found.kind, found.ranks) == ("steps-differ", (1,))
        assert "rank 1 ran a forward of the wrapped model without a backward" in found.cause
        assert found.advice.startswith("decide together")


def test_a_rank_that_left_a_librarys_loop():
    """No loop is to be seen: both were at this place before, and only one is there again."""
    before = CallBefore(BACKWARD, (PLACE,))
    trainer = backward(before=before)
    other = call("barrier", called="barrier", stack=(("train.py", 9, "train"),), before=before)
    assert comparison().compare({0: trainer, 1: other}, ()).ranks == (1,)
    for changed in (None, CallBefore("allreduce", (PLACE,)), CallBefore(BACKWARD, ())):
        assert comparison().compare({0: trainer, 1: replace(other, before=changed)}, ()) is None
        assert comparison().compare({0: replace(trainer, before=changed), 1: other}, ()) is None


# ---- causes


def step(**changes):
    usual = StepRecord(
        "SGD", (0, 1), "aa,bb", ({"lr": 0.1},), 3, 1, 0, False, Edits(), (PLACE,), 2, "cc,dd"
    )
    return replace(usual, **changes)


def cause_of(first, second, *more):
    return Causes(Session()).of_step(dict(enumerate((first, second, *more))), ["w", "b"])


def test_words_for_settings():
    found = cause_of(step(), step(settings=({"lr": 0.2},)))
    assert found.cause == (
        "SGD works with different `lr`: 0.1 on rank 0, 0.2 on rank 1 (optimizer step 2, counted "
        "from 0)"
    )
    assert (found.ranks, found.step, str(found.place)) == ((0, 1), 2, WHERE)
    assert "scheduler.step(metric)" in found.advice
    two = [step(settings=({"lr": 0.1}, {"lr": lr})) for lr in (0.1, 0.3)]
    assert (
        "different `lr` (parameter group 1): 0.1 on rank 0, 0.3 on rank 1" in cause_of(*two).cause
    )


def test_words_for_skipped_steps():
    ahead = cause_of(step(synced=4), step(), step())
    assert (ahead.kind, ahead.ranks) == ("steps-differ", (0,))
    assert "rank 0 skipped an optimizer step that the other ranks took" in ahead.cause
    assert "all-reduce the check that decides" in ahead.advice
    assert cause_of(step(synced=4), step()).ranks == (0,)  # who averaged more has skipped a step


def test_words_for_gradients():
    other = step(grads="aa,xx")
    plain = cause_of(step(), other)
    assert "the gradients differ between ranks when the optimizer steps" in plain.cause
    assert "the first is `b`" in plain.cause
    assert "clip by the norm" in plain.advice
    past = cause_of(step(since=0), replace(other, since=0))
    assert past.cause.startswith("no gradient was averaged on ranks 0 and 1: the loss did not come")
    assert "`ddp(x)`, not from `ddp.module(x)`" in past.advice
    part = cause_of(step(), replace(other, elsewhere=1))
    assert part.cause.startswith("a part of the gradients was not averaged on rank 1")
    inside = cause_of(step(in_no_sync=True), replace(other, since=0))
    assert inside.kind == "ended-inside-no-sync"
    assert inside.ranks == (0,)
    assert "ran inside no_sync() on rank 0" in inside.cause
    assert "`b`" in inside.cause
    assert "the last batch before every step" in inside.advice
    by_place = step(grads="aa", which=(1,)), step(grads="xx", which=(1,))
    assert "the first is `b`" in cause_of(*by_place).cause


def test_words_for_edits():
    edit = Edits((1,), Edit("load_state_dict", ("load.py", 3, "load")))
    found = cause_of(step(), step(after="cc,xx", edits=edit))
    assert found.kind == "changed-after-wrap"
    assert found.cause.startswith(
        "weights changed after the wrap on rank 1 only (by load_state_dict), and not by an "
        "optimizer step; the first that differs is `b`"
    )
    assert found.details == ("rank 1: load_state_dict at load.py, line 3, in load",)
    assert "before DistributedDataParallel(...)" in found.advice
    both = cause_of(step(edits=edit), step(after="cc,xx", edits=edit))
    assert "on ranks 0 and 1 (by load_state_dict)" in both.cause
    unknown = cause_of(step(), step(after="cc,xx", edits=Edits((1,))))
    assert "on rank 1 only, and not by" in unknown.cause
    assert unknown.details == ()
    with_gradients = cause_of(step(), step(after="cc,xx", edits=edit, grads="aa,xx"))
    assert with_gradients.kind == "gradients-differ"


def test_words_for_weights_after_a_step():
    found = cause_of(step(), step(after="xx,dd"), step())
    assert (found.kind, found.ranks) == ("weights-differ", (1,))
    assert "after an optimizer step whose gradients and settings were equal" in found.cause
    assert "`w`" in found.cause
    assert "momentum" in found.advice
    assert found.details == ()


def test_words_for_numbers_of_steps():
    causes = Causes(Session())
    counts = {rank: StepCount(steps, 9, 7) for rank, steps in ((1, 4), (0, 5))}
    found = causes.of_steps(counts, counts)
    assert (found.kind, found.ranks, found.step, found.place) == ("steps-differ", (1,), 7, None)
    assert "optimizer steps on one model: 5 on rank 0, 4 on rank 1" in found.cause
    three = {rank: StepCount(steps, 9, 7) for rank, steps in enumerate((5, 6, 5))}
    assert causes.of_steps(three, three).ranks == (1,)
    same = {rank: StepCount(5, 9, 7) for rank in range(2)}
    assert causes.of_steps(same, same) is None


def test_words_for_weights_that_differ_before_a_backward():
    causes = Causes(Session())
    records = {rank: backward() for rank in range(3)}
    states = dict.fromkeys(range(3), STATE) | {2: ModelState(3, 9, "aa,xx")}
    found = causes.of_weights(states, records, "b")
    assert (found.kind, found.ranks, found.step) == ("weights-differ", (2,), 4)
    assert "differ between ranks since optimizer step 2, though gradients" in found.cause
    assert "the first is `b`" in found.cause
    assert "optimizer's state" in found.advice
    fresh = {rank: replace(state, steps=0) for rank, state in states.items()}
    found = causes.of_weights(fresh, records, "b")
    assert "from the wrap on" in found.cause
    assert "init_sync=True" in found.advice
    edited = states | {1: replace(STATE, edits=Edits((0,)))}
    found = causes.of_weights(edited, records, "b")
    assert (found.kind, found.ranks) == ("changed-after-wrap", (1,))
    ends = {r: PassEnd("aa", 3, Edits((0,) if r else ()), (PLACE,), 8) for r in range(2)}
    assert causes.of_weights(ends, ends, "b").step == 8


# ---- samplers and shares

DATA = TensorDataset(torch.arange(40.0).reshape(20, 2))


class Own(Sampler):
    def __init__(self, **held):
        self.__dict__.update(held)

    def __iter__(self):
        return iter(range(20))


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (SequentialSampler(DATA), "plain"),
        (RandomSampler(DATA), "random"),
        (RandomSampler(DATA, replacement=True), "replacement"),
        (RandomSampler(DATA, num_samples=5), "replacement"),
        (WeightedRandomSampler([1.0, 2.0], 2), "replacement"),
        (SubsetRandomSampler([1, 2]), "plain"),
        (DistributedSampler(DATA, 2, 0), "distributed"),
        (Own(), "own"),
        ([1, 2], "own"),
    ],
)
def test_kinds_of_samplers(sampler, expected):
    assert kind_of(sampler, DATA) == expected


def a_pass(sampler=None, data=DATA, batches=(), key="loop#0", **changes):
    """A pass that has delivered these batches."""
    sampler = SequentialSampler(data) if sampler is None else sampler
    loader = DataLoader(data, 4, sampler=sampler)
    done = Pass(lambda: loader, data, sampler, key, (PLACE,), lambda: None, 0, steps=1)
    done.epoch = getattr(sampler, "epoch", None)
    for indices in batches:
        add_indices(done, indices)
        done.contents.add(indices, data[indices] if not isinstance(data, Subset) else ())
        done.delivered += len(indices)
        done.batches += 1
    for name, value in changes.items():
        setattr(done, name, value)
    return done


def test_what_is_told_of_a_distributed_sampler():
    sampler = DistributedSampler(DATA, 3, 1, seed=5)
    sampler.set_epoch(2)
    assert about_sampler(a_pass(sampler)) == SamplerRecord(
        "distributed", padding=1, dropped=0, share=7, replicas=(3, 1), seed=5, epoch=2,
        drop_last=False, formula=True,
    )  # fmt: skip
    dropping = DistributedSampler(DATA, 3, 0, drop_last=True)
    found = about_sampler(a_pass(dropping, drop_last=True))
    assert (found.padding, found.dropped, found.share, found.drop_last) == (0, 2, 6, True)


@pytest.mark.parametrize(
    ("sampler", "formula"),
    [
        (Own(), True),
        (Own(rank=1), True),
        (Own(indices=[1, 2]), False),
        (Own(indices=(1, 2)), False),
        (Own(indices=range(3)), False),
        (Own(indices=array("q", [1, 2])), False),
        (Own(indices=torch.arange(3)), False),
        (Own(indices=[1]), True),
        (Own(names=["a", "b"]), True),
        ([1, 2], False),
    ],
)
def test_samplers_that_were_given_indices(sampler, formula):
    found = about_sampler(a_pass(sampler))
    assert (found.kind, found.formula, found.replicas) == ("own", formula, None)


def test_the_record_of_a_pass():
    record = share_record(a_pass(batches=[[0, 1, 2], [3, 0]], complete=True, joined=True))
    assert (record.batches, record.steps, record.complete, record.joined) == (2, 1, True, True)
    assert record.place == PLACE
    found = record.samples
    assert (found.count, found.twice, found.length, found.batch) == (5, 1, 20, 3)
    assert found.outer == found.inner
    assert found.dataset == found.root
    assert found.dataset.data
    assert found.bag is not None
    assert sorted(found.contents) == [0, 1, 2, 3]
    assert found.sampler.kind == "plain"
    assert share_record(a_pass(batches=[[0]], key="loop#1")).samples.bag is None
    assert share_record(a_pass()).samples is None
    assert share_record(a_pass(indices=None)).samples is None


def test_the_record_of_a_pass_over_a_part():
    part = Subset(Subset(DATA, range(10, 20)), [9, 0, 5])
    assert root_dataset(part) is DATA
    assert root_indices(part, array("q", [0, 1])).tolist() == [19, 10]
    found = share_record(a_pass(data=part, batches=[[0, 1]])).samples
    assert found.length == 3
    assert found.outer != found.inner
    assert found.dataset != found.root
    assert found.order == share_record(a_pass(batches=[[19, 10]])).samples.order
    assert sorted(found.contents) == [10, 19]


@pytest.mark.parametrize(
    ("sampler", "expected"),
    [
        (DistributedSampler(DATA, 2, 0), True),
        (DistributedSampler(DATA, 2, 0, shuffle=False), False),
        (RandomSampler(DATA), True),
        (SubsetRandomSampler([1]), True),
        (SequentialSampler(DATA), False),
        (Own(shuffle=True), False),
        (Own(shuffle=True, set_epoch=print), True),
        (Own(shuffle=False, set_epoch=print), False),
    ],
)
def test_whose_order_should_change(sampler, expected):
    assert shuffles(sampler) is expected


def two_shares():
    made = sessions(2)
    peers = [SimpleNamespace(ranks=[0, 1]) for _ in made]
    return made, [ShareChecker(*pair) for pair in zip(made, peers, strict=True)]


def test_shares_are_compared_when_the_next_pass_begins():
    (first, _), (zero, one) = two_shares()
    for checker in (one, zero):
        checker.ended(a_pass(batches=[list(range(20))], complete=True))
    first.step = 6
    one.next_begins(None)
    found = found_by(lambda: zero.next_begins(None))
    assert (found.kind, found.ranks, found.step) == ("same-data-on-every-rank", (0, 1), 6)
    assert str(found.place) == WHERE
    assert found.advice == SPLIT


def test_all_that_is_wrong_with_shares_is_kept_and_the_first_raised():
    (first, _), (zero, one) = two_shares()
    one.ended(a_pass(batches=[[0, 1]], complete=True, steps=1))
    one.leave()
    zero.ended(a_pass(batches=[[0], [1]], complete=True, steps=2))
    found = found_by(zero.leave)
    assert found.kind == "same-data-on-every-rank"
    assert [f.kind for f in first.findings] == ["same-data-on-every-rank", "uneven-batch-counts"]


def test_passes_that_are_not_compared():
    (first, _), (zero, one) = two_shares()
    for checker in (one, zero):
        checker.ended(a_pass(batches=[list(range(20))], complete=True, steps=0))  # an evaluation
        checker.leave()
        checker.ended(a_pass(complete=True))
        checker.leave()
        checker.ended(a_pass(batches=[list(range(20))], complete=True))
        checker.forget()
        checker.leave()
    assert first.findings == []


def test_what_is_left_of_a_pass():
    made, (zero, _) = two_shares()
    seen = []
    zero.exchange.leave = lambda name, record, ranks, compare: seen.append(record)
    for together in (True, False):
        zero.are_together = lambda together=together: together
        done = a_pass(batches=[[1, 2]])
        done.got(2, "hash")
        done.got(1, None)
        zero.ended(done)
        zero.leave()
    assert [record.together for record in seen] == [True, False]
    assert (seen[0].rows, seen[0].inputs) == (2, ("hash", "?"))
    zero.peers.ranks = []
    zero.ended(a_pass(batches=[[1]]))
    zero.leave()
    assert len(seen) == 2
    assert made


def test_peers_are_those_of_the_smallest_wrap(monkeypatch):
    groups = ["default"]
    world = SimpleNamespace(pg_map=groups)
    monkeypatch.setattr(dist.distributed_c10d, "_world", world)
    monkeypatch.setattr(dist, "get_process_group_ranks", lambda group: group)
    peers = Peers(sessions(3)[0])
    assert peers.ranks == [0, 1, 2]
    groups.append("another")  # tensor parallel ranks may have the same data on purpose
    assert peers.ranks == []
    for ranks, expected in (([0, 1, 2], [0, 1, 2]), ([0, 2], [0, 2]), ([0, 1], [0, 2])):
        peers.wrapped(SimpleNamespace(process_group=ranks))
        assert peers.ranks == expected
    peers.forget()
    assert peers.ranks == []


# ---- epochs


class Recorder:
    current = None


class Steps:
    """Stands for an optimizer, which can be held weakly."""


def epochs(*passes, optimizer=None):
    """Let these passes end one after the other; what was found."""
    session, optimizer = Session(), optimizer or Steps()
    checker = EpochChecker(session, Recorder())
    for done in passes:
        done.optimizers.add(optimizer)
        checker.ended(done)
    return session


def shuffled(order, epoch=None, sampler=None, **changes):
    chosen = sampler or DistributedSampler(DATA, 2, 0)
    return a_pass(chosen, batches=[list(order)], epoch=epoch, **changes)


def test_a_shuffle_that_repeats():
    found = found_by(lambda: epochs(shuffled([3, 1, 2], 0), shuffled([3, 1, 2], 0)))
    assert (found.kind, found.ranks) == ("epoch-not-advanced", (0,))
    assert found.cause == (
        "DistributedSampler gives the same order in every training pass: its epoch stayed 0"
    )
    assert found.advice == "call sampler.set_epoch(epoch) with a new number before each epoch"
    assert str(found.place) == WHERE


def test_a_shuffle_without_a_number():
    sampler = RandomSampler(DATA)
    order = [5, 3, 1, 2, 4, 7, 6, 0]
    found = found_by(lambda: epochs(*[shuffled(order, sampler=sampler) for _ in range(2)]))
    assert found.cause == "RandomSampler gives the same order in every training pass"
    assert found.advice.startswith("seed its generator once")
    few = [shuffled(order[:7], sampler=sampler) for _ in range(2)]
    assert epochs(*few).findings == []


def test_passes_that_do_not_belong_together():
    same = lambda **changes: shuffled([3, 1, 2], 0, **changes)
    assert epochs(same(), same(key="other#0")).findings == []
    assert epochs(same(), shuffled([3, 2, 1], 0), same(steps=0)).findings == []
    assert epochs(same(), shuffled([3, 1, 2], 1)).findings == []
    fixed = SequentialSampler(DATA)
    assert epochs(*[shuffled(range(9), sampler=fixed) for _ in range(2)]).findings == []
    session = Session()
    checker = EpochChecker(session, Recorder())
    for done in (same(), same()):
        done.optimizers.add(Steps())  # each with an optimizer of its own, which is gone then
        checker.ended(done)
    assert session.findings == []


def test_one_sampler_in_two_loops():
    sampler = DistributedSampler(DATA, 2, 0)
    both = [shuffled([3, 1], 0, sampler, key=key) for key in ("one#0", "two#0")]
    assert found_by(lambda: epochs(*both)).kind == "epoch-not-advanced"


def test_a_shuffle_is_told_at_the_first_step():
    session, optimizer, passes = Session(), Steps(), Recorder()
    checker = EpochChecker(session, passes)
    checker.stepping(optimizer)
    before = shuffled([3, 1, 2, 0], 0)
    before.optimizers.add(optimizer)
    checker.ended(before)
    passes.current = shuffled([3, 1], 0, steps=1)
    checker.stepping(optimizer)
    passes.current.steps, passes.current.epoch = 0, None
    checker.stepping(optimizer)
    passes.current.epoch = 0
    assert found_by(lambda: checker.stepping(optimizer)).kind == "epoch-not-advanced"
    checker.forget()
    checker.stepping(optimizer)


# ---- evaluations


def evaluation(size, sums, gathers=False, reduce=None, ranks=2, rank=1, **changes):
    """One rank's pass over padded data, then sums of these numbers; what is found in the end."""
    session = sessions(ranks)[rank]
    checker, data = EvaluationChecker(session), TensorDataset(torch.zeros(size))
    sampler = DistributedSampler(data, ranks, rank, shuffle=False)
    done = a_pass(sampler, data, [list(sampler)], **{"steps": 0, **changes})
    originals = {name: getattr(dist.ProcessGroup, name) for name in ("allreduce", "allgather")}
    for name in originals:
        setattr(dist.ProcessGroup, name, lambda *_: None)
    checker.put_patches()
    try:
        checker.delivered(done, None)
        for number in sums:
            options = dist.AllreduceOptions()
            options.reduceOp = reduce or dist.ReduceOp.SUM
            dist.ProcessGroup.allreduce(None, [torch.as_tensor(number)], options)
        if gathers:
            dist.ProcessGroup.allgather(None, [])
        checker.decide()
    finally:
        session.patches.undo()
        for name, original in originals.items():
            setattr(dist.ProcessGroup, name, original)
    return session.findings


def test_a_padded_evaluation():
    found = found_by(lambda: evaluation(5, [3]))
    assert (found.kind, found.ranks) == ("padded-evaluation", (1,))
    assert found.cause == (
        "1 sample counts twice in an evaluation: DistributedSampler gave 6 places to 5 samples, "
        "so that all ranks have 3"
    )
    assert "len(dataset)" in found.advice
    assert str(found.place) == WHERE
    many = found_by(lambda: evaluation(5, [2], ranks=4, rank=3))
    assert many.cause.startswith("3 samples count twice")


def test_a_sum_that_may_hold_the_repeated_samples():
    (found,) = evaluation(5, [2.5])
    assert (found.kind, found.serious) == ("padded-evaluation", False)
    assert found.cause.startswith("1 sample may count twice in an evaluation: ")
    (found,) = evaluation(5, [2.5], ranks=4, rank=3)
    assert found.cause.startswith("3 samples may count twice")
    (found,) = evaluation(5, [2.5], reduce=dist.ReduceOp.AVG)
    assert not found.serious


def test_a_pass_without_a_distributed_sampler_is_no_padded_evaluation():
    session = sessions(2)[1]
    checker = EvaluationChecker(session)
    checker.delivered(a_pass(steps=0), None)
    checker.decide()
    assert session.findings == []


def test_evaluations_that_are_right():
    assert evaluation(6, [2.5]) == []  # nothing is padded
    assert evaluation(5, [2.5], rank=0) == []
    assert evaluation(5, []) == []  # nothing is summed
    assert evaluation(5, [2.5], gathers=True) == []
    assert evaluation(5, [2.5], steps=1) == []
    assert evaluation(5, [2.5], backwards=1) == []
    assert evaluation(5, [2.5], delivered=2) == []  # it has not come to the repeated ones
    assert evaluation(5, [[0.5, 2]]) == []  # it counts without them
    assert evaluation(5, [2.5], reduce=dist.ReduceOp.MAX) == []


def test_a_count_that_holds_the_repeated_samples():
    assert found_by(lambda: evaluation(5, [2, 3])).kind == "padded-evaluation"
    assert found_by(lambda: evaluation(5, [3], reduce=dist.ReduceOp.AVG))
    large = torch.full((2000,), 3.0)  # weights or outputs, no counts
    (found,) = evaluation(5, [large])
    assert not found.serious


# ---- the first steps


def inputs(*hashes, drawn=None, size=4):
    return tuple(
        StepInputs(text, size, {} if drawn is None else drawn[number])
        for number, text in enumerate(hashes)
    )


def first_steps(*steps, samplers=(None, None), workers=((), ())):
    return {
        rank: FirstStepsRecord(steps[rank], workers[rank], PLACE, samplers[rank])
        for rank in range(2)
    }


def test_the_same_inputs_on_all_ranks():
    steps = inputs("a", "b", "c")
    ((name, cause, advice),) = judge_first_steps(first_steps(steps, steps))
    assert name == "same-data-on-every-rank"
    assert cause == "the model got the same inputs on all ranks, and other ones in each step"
    assert advice == SPLIT + "; or seed + rank where you draw the data"
    sampler = SamplerRecord("distributed", replicas=(2, 0), seed=1, epoch=0)
    given = first_steps(steps, steps, samplers=(sampler, sampler))
    ((_, cause, advice),) = judge_first_steps(given)
    assert cause.endswith("rank=0, num_replicas=2 on rank 1")
    assert advice.startswith("give DistributedSampler num_replicas")


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [("abc", "abe"), ("ab", "ab"), ("aab", "aab"), ("abc", "ab"), ((None, "a", "b", "c"),) * 2],
)
def test_inputs_that_prove_nothing(mine, theirs):
    assert judge_first_steps(first_steps(inputs(*mine), inputs(*theirs))) == []


def draws(phase, count, states="xyz", name="torch"):
    return [{phase: {name: (state, count, "block")}} for state in states]


@pytest.mark.parametrize(
    ("phase", "count", "size", "told"),
    [
        ("load", 4, 4, "while a batch was loaded"),
        ("load", 3, 4, None),  # one number chose for the whole batch
        ("between", 4, 4, "between a batch and the forward"),
        ("between", 1, 1, None),
        ("between", 2, 1, "between a batch and the forward"),
        ("load", 1, 1, "while a batch was loaded"),
    ],
)
def test_the_same_random_numbers(phase, count, size, told):
    steps = [inputs(*"abc", drawn=draws(phase, count), size=size) for _ in range(2)]
    found = judge_first_steps(first_steps(steps[0], steps[1][:2] + inputs("x", drawn=[{}])))
    if told is None:
        assert found == []
        return
    ((name, cause, advice),) = found
    assert name == "identical-random-draws"
    assert cause == f"all ranks drew the same random numbers from torch's default generator {told}"
    assert "torch.manual_seed(seed + rank)" in advice


def test_other_generators_and_other_numbers():
    mine = inputs(*"abc", drawn=draws("load", 9, name="random"))
    theirs = inputs(*"xyz", drawn=draws("load", 9, name="random"))
    ((_, cause, _),) = judge_first_steps(first_steps(mine, theirs))
    assert "from `random` while" in cause
    other = inputs(*"xyz", drawn=draws("load", 9, states="uvw", name="random"))
    assert judge_first_steps(first_steps(mine, other)) == []


def test_the_same_random_numbers_in_workers():
    steps = inputs("a", "b", "c"), inputs("x", "y", "z")
    worker = (WorkerBatch(4, {"numpy": ("s", 4, "block")}),)
    found = judge_first_steps(first_steps(*steps, workers=((worker,), (worker,))))
    ((name, cause, advice),) = found
    assert name == "identical-random-draws"
    assert cause == "all ranks drew the same random numbers from `numpy` in the loader's workers"
    assert "generator=torch.Generator()" in advice
    few = (WorkerBatch(5, {"numpy": ("s", 4, "block")}),)
    assert judge_first_steps(first_steps(*steps, workers=((few,), (worker,)))) == []
    assert judge_first_steps(first_steps(*steps, workers=((worker,), ()))) == []
    assert judge_first_steps(first_steps(*steps, workers=((worker,), ((),)))) == []


def test_sizes_of_batches():
    assert batch_size_of(torch.ones(3, 2)) == 3
    assert batch_size_of(torch.tensor(1.0)) == 1
    assert batch_size_of([torch.ones(4), torch.ones(2)]) == 4
    assert batch_size_of({"x": (torch.ones(5),)}) == 5
    assert batch_size_of([]) == 1
    assert batch_size_of("text") == 1


# ---- files


def moment(clock=1.0, **counts):
    return Moment(dict(counts), dict(counts), {}, clock, 0.0)


def access(what="save", path="/a", begin=None, end=None):
    return Access(what, path, begin or moment(), end, PLACE)


def test_accesses_that_clash():
    saved = access(end=moment(world=3))
    assert clash(access("load"), 1, access())  # it is still being written
    assert clash(access("load", begin=moment(world=3)), 1, saved)
    assert not clash(access("load", begin=moment(world=4)), 1, saved)
    assert not clash(access("load", "/b"), 1, saved)
    assert not clash(access("load"), 1, access("load"))
    assert clash(access("save"), 1, access("load"))
    assert clash(access("save"), 1, access("save"))


def test_the_path_of_a_file(tmp_path):
    real = os.path.realpath(tmp_path / "a.pt")
    assert path_of(str(tmp_path / "b" / ".." / "a.pt")) == real
    assert path_of(tmp_path / "a.pt") == real
    with open(tmp_path / "a.pt", "wb") as file:
        assert path_of(file) == real
    assert path_of(os.devnull) is None
    assert path_of(3) is None
    assert path_of(SimpleNamespace(name=3)) is None


class NoOrder:
    """Nothing orders the ranks."""

    def now(self):
        return moment()


def test_a_file_that_is_read_while_it_is_written(tmp_path):
    zero, one = sessions(2)
    first, second = CheckpointChecker(zero, NoOrder()), CheckpointChecker(one, NoOrder())
    originals = torch.save, torch.load
    path = tmp_path / "model.pt"
    try:
        first.put_patches()
        torch.save({"a": 1}, path)
        assert torch.load(path) == {"a": 1}  # one rank alone orders itself
        accesses = zero.line.read("files", [0], FilesRecord)[0].accesses
        assert [(each.what, each.end) for each in accesses] == [
            ("save", moment()), ("load", moment()),
        ]  # fmt: skip
        zero.patches.undo()
        second.put_patches()
        one.step = 8
        found = found_by(lambda: torch.load(path))
        assert (found.kind, found.ranks, found.step) == ("checkpoint-read-while-written", (1, 0), 8)
        assert found.cause == "rank 1 loads model.pt and rank 0 saves it, and nothing orders them"
        assert found.details[0].startswith("rank 0: torch.save at ")
        assert found.details[1].startswith("rank 1: torch.load at ")
        assert found.place.function == "<lambda>"
        found = found_by(lambda: torch.save({}, path))
        assert found.ranks == (0, 1)
        assert found.cause == "ranks 0 and 1 save to model.pt, and nothing orders them"
        torch.save({}, tmp_path / "other.pt")
        assert one.line.read_those_here("files", [1], object)
        one.channel = None
        torch.load(path)
    finally:
        zero.patches.undo()
        one.patches.undo()
    assert (torch.save, torch.load) == originals


# ---- loads, groups, worlds


@pytest.mark.parametrize(
    ("missing", "unexpected", "prefix"),
    [
        (["a.w", "a.b"], ["module.a.w", "module.a.b"], "module."),
        (["module.a.w"], ["a.w"], "module."),
        (["w"], ["x.y.w"], "x.y."),
        (["w", "v"], ["x.w", "y.v", "y.w"], "y."),
        (["w"], ["w2"], ""),
        ([], [], ""),
    ],
)
def test_prefixes_of_names(missing, unexpected, prefix):
    assert common_prefix(missing, unexpected) == prefix


def test_a_load_in_which_hardly_a_name_fitted():
    session = Session()
    session.step = 4
    checker = LoadingChecker(session, Registry())
    result = lambda missing, extra: SimpleNamespace(missing_keys=missing, unexpected_keys=extra)
    given = {"module.a": 1, "module.b": 2}
    found = found_by(lambda: checker.count_keys(given, result(["a", "b"], list(given))))
    assert found.kind == "few-keys-matched"
    assert found.cause == (
        "load_state_dict(strict=False) loaded 0 of 2 entries: the model has no `module.a`, and "
        "waits for `a`; the prefix `module.` is the likely cause"
    )
    assert "strict=True" in found.advice
    assert "`ddp.module.state_dict()`, the names without a wrapper's prefix" in found.advice
    assert (found.step, found.ranks) == (session.step, ())
    checker.count_keys({}, result(["a"], []))
    checker.count_keys(given, result([], list(given)))
    checker.count_keys({"a": 1, "b": 2}, result(["c"], ["b"]))  # half of them
    head = {"a": 1, "x": 2, "y": 3}
    found = found_by(lambda: checker.count_keys(head, result(["b", "c"], ["x", "y"])))
    assert "loaded 1 of 3 entries: the model has no `x`, and waits for `b`" in found.cause
    assert "prefix" not in found.cause


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"RANK": "1", "WORLD_SIZE": "4"}, (1, 4, "WORLD_SIZE=4")),
        ({"RANK": "1", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "2"}, (1, 2, "LOCAL_WORLD_SIZE=2")),
        ({"SLURM_PROCID": "3", "SLURM_NTASKS": "8"}, (3, 8, "SLURM_NTASKS=8")),
        (
            {"SLURM_STEP_ID": "0", "SLURM_PROCID": "0", "SLURM_NTASKS": "8",
             "SLURM_STEP_NUM_TASKS": "2"},
            (0, 2, "SLURM_NTASKS=2"),
        ),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 0, "")),
        ({"RANK": "1"}, (0, 0, "")),
    ],
)  # fmt: skip
def test_what_a_launcher_says(environment, expected):
    assert told_world(environment) == expected


def test_a_world_that_is_too_small(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    session = Session()
    checker = StartChecker(session)
    found = found_by(checker.look)
    assert (found.kind, found.ranks) == ("smaller-world", (1,))
    assert found.cause == (
        "rank 1 is in a process group of 1 and trains alone, but the launcher started 4 ranks "
        "(WORLD_SIZE=4)"
    )
    assert (found.step, found.place.function) == (0, "found_by")
    checker.look()  # a second group may be smaller
    session.world_size, again = 2, StartChecker(session)
    assert "in a process group of 2, but" in found_by(again.look).cause
    session.world_size = 4
    StartChecker(session).look()


# ---- parameters that nothing averages


def loose(**changes):
    usual = LooseRecord("SGD", ((3,),), "aa", "bb", "bb", False, 9, False, True, (PLACE,), 5)
    return replace(usual, **changes)


def test_what_of_a_record_must_be_alike():
    assert loose().alike == loose(first="x", steps=3, stack=()).alike
    assert loose().alike != loose(now="x").alike
    assert loose().alike != loose(shapes=((4,),)).alike
    assert step().alike == step(stack=(), which=(), edits=Edits((1,))).alike
    for changed in ({"grads": "x"}, {"after": "x"}, {"settings": ()}, {"synced": 4}):
        assert step().alike != step(**changed).alike
    assert StepCount(1, 2, 3).alike == StepCount(1, 2, 4).alike
    assert StepCount(1, 2, 3).alike not in (StepCount(0, 2, 3).alike, StepCount(1, 0, 3).alike)
    assert PassEnd("a", 1, Edits(), (), 2).alike == "a"
