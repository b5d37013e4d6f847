"""The order in which the checks are told is stated in wiring.py, and nowhere else."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch.distributed.algorithms.join import Join
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from ddp_helpers.evidence.collective_methods import INPUTS, POINT_TO_POINT
from ddp_helpers.sanitizer.talk.session import Session
from ddp_helpers.sanitizer.wiring import connect, make, put_patches

SESSION = ("on_group", "at_end", "at_last")
EVENTS = (
    "before_wrap", "after_wrap", "before_forward", "after_forward", "before_backward",
    "after_backward", "before_step", "after_step", "after_join",
)  # fmt: skip
PASSES = ("on_start", "on_begin", "after_index", "on_batch", "on_end")


def lists(parts):
    """All lists of callbacks by name."""
    found = {name: getattr(parts.session, name) for name in SESSION}
    found |= {name: getattr(parts.events, name) for name in EVENTS}
    found |= {name: getattr(parts.passes, name) for name in PASSES}
    return found | {"listeners": parts.calls.listeners, "explain": parts.calls.explain}


def names(calls):
    return [call.__qualname__ for call in calls]


def patched():
    """Some of the functions of torch that are stood in for."""
    methods = [getattr(dist.ProcessGroup, name, None) for name in (*INPUTS, *POINT_TO_POINT)]
    others = [DataLoader.__iter__, DistributedDataParallel.__init__, Join.__enter__]
    functions = [torch.save, torch.load, torch.autograd.backward, torch.nn.init.ones_]
    return [*methods, *others, *functions, dist.new_group]


@pytest.fixture
def parts():
    """The parts, connected."""
    made = make(Session())
    connect(made)
    return made


def test_no_constructor_registers_or_patches_anything():
    before = patched()
    parts = make(Session())
    assert not any(lists(parts).values())
    assert patched() == before


def test_the_order_is_not_that_of_the_constructors(parts):
    expected = {name: names(calls) for name, calls in lists(parts).items()}
    session = Session()
    late, early = make(session), make(session)
    some = [field.name for field in dataclasses.fields(early)][::2]
    mixed = dataclasses.replace(late, **{name: getattr(early, name) for name in some})
    connect(mixed)
    assert {name: names(calls) for name, calls in lists(mixed).items()} == expected


def test_every_list_is_filled_once(parts):
    for name, calls in lists(parts).items():
        assert calls, f"nobody is told at {name}"
        told = [call.__wrapped__ for call in calls if hasattr(call, "__wrapped__")]
        assert len(told) == len(set(told)), f"somebody is told twice at {name}"


BEFORE = [
    # list, who must be told, before whom
    ("at_end", "FirstStepsChecker.at_end", "PassRecorder.close_all"),
    ("at_end", "CallSequence.look_at_pending", "WeightsChecker.at_end"),
    ("at_end", "PassRecorder.close_all", "ShareChecker.leave"),
    ("at_last", "Ledger.finish", "Exchange.finish"),
    ("at_last", "Exchange.finish", "SlowChecker.at_last"),
    ("on_group", "PassRecorder.forget_all", "StartChecker.look"),
    ("on_group", "CheckpointChecker.forget", "StartChecker.look"),
    ("before_backward", "DdpCalls.backward_begins", "GradientChecker.backward_begins"),
    ("after_backward", "DdpCalls.backward_ends", "Order.went_back"),
    ("after_wrap", "DdpCalls.wrapped", "SlowChecker.wrapped"),
    ("before_step", "WeightsChecker.step_begins", "EpochChecker.stepping"),
    ("before_step", "WeightsChecker.step_begins", "UnwrappedChecker.step_begins"),
    ("after_step", "DdpCalls.stepped", "WeightsChecker.step_ends"),
    ("after_step", "PassRecorder.stepped", "FirstStepsChecker.stepped"),
    ("on_batch", "FirstStepsChecker.delivered", "EvaluationChecker.delivered"),
    ("on_end", "WeightsChecker.pass_ends", "ShareChecker.ended"),
    ("before_step", "WeightsChecker.step_begins", "NumbersChecker.step_begins"),
    ("after_step", "WeightsChecker.step_ends", "UnchangedChecker.step_ends"),
    ("after_backward", "DdpCalls.backward_ends", "KeptGradientChecker.went_back"),
    ("on_end", "EpochChecker.ended", "ShareChecker.ended"),
]


@pytest.mark.parametrize(("moment", "first", "second"), BEFORE)
def test_who_is_told_first(parts, moment, first, second):
    told = names(lists(parts)[moment])
    assert told.index(first) < told.index(second)


@pytest.mark.parametrize("moment", [name for name in EVENTS if name != "before_step"])
def test_ddps_own_calls_come_first_at_each_moment(parts, moment):
    assert names(lists(parts)[moment])[0].startswith("DdpCalls.")


def test_what_tells_the_others_of_a_fault(parts):
    told = []
    parts.calls.sequence.give_up = lambda: told.append("quiet")
    connect(parts)
    broken = parts.session.guarded("DDP's communication", lambda: 1 / 0)
    assert broken() is None
    assert broken() is None
    assert told == ["quiet"]
    (finding,) = parts.session.findings
    assert finding.kind == "sanitizer-fault"
    assert not finding.serious
    assert "check of DDP's communication failed itself (ZeroDivisionError" in finding.cause


def test_patches_are_put_and_taken_back():
    before = patched()
    parts = make(Session())
    put_patches(parts)
    try:
        assert all(new is not old for new, old in zip(patched(), before, strict=True) if old)
    finally:
        parts.session.patches.undo()
    assert patched() == before


def test_the_order_of_a_collective_is_noted_before_it_is_compared():
    """Whoever patches last is called first."""
    parts, seen = make(Session()), []
    parts.session.channel = object()  # it is only asked whether it is there
    parts.calls.listeners.append(lambda *_: seen.append(dict(parts.order.entered)))
    parts.calls.joining = lambda: True  # nothing is compared with other ranks then
    group = SimpleNamespace(group_name="world", size=lambda: 1)
    original = dist.ProcessGroup.barrier
    dist.ProcessGroup.barrier = lambda *_: seen.append("torch")
    try:
        put_patches(parts)
        dist.ProcessGroup.barrier(group)
    finally:
        parts.session.patches.undo()
        dist.ProcessGroup.barrier = original
    assert seen == [{"world": 1}, "torch"]
    assert not parts.session.findings
