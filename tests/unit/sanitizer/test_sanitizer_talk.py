"""How ranks compare notes: two or three sessions in one process, over a store that is a dict."""

import functools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pytest
from one_process import DictStore, impatient, left, sessions  # noqa: F401  # a fixture

from ddp_helpers.evidence.records import Finding
from ddp_helpers.sanitizer.compare.records import CallBefore, CallRecord, TensorKind
from ddp_helpers.sanitizer.talk import exchange as exchange_module
from ddp_helpers.sanitizer.talk import ledger as ledger_module
from ddp_helpers.sanitizer.talk import meeting
from ddp_helpers.sanitizer.talk import sequence as sequence_module
from ddp_helpers.sanitizer.talk.channel import Channel, Gone
from ddp_helpers.sanitizer.talk.exchange import Exchange
from ddp_helpers.sanitizer.talk.ledger import Ledger, brief
from ddp_helpers.sanitizer.talk.meeting import off_unless_all_meet
from ddp_helpers.sanitizer.talk.notes import tell_notes_once
from ddp_helpers.sanitizer.talk.sequence import CallSequence, describe
from ddp_helpers.sanitizer.talk.session import (
    DEFAULT_TIMEOUT,
    FAILED,
    LEFT,
    Options,
    SanitizerError,
    Session,
)

pytestmark = pytest.mark.usefixtures("impatient")


def note(cause, kind="slow", serious=False):
    return Finding(kind, cause, "mend it", serious=serious)


# ---- the channel


def test_records_are_read_by_rank():
    zero, one = (session.line for session in sessions(2))
    assert zero.read("a", [0, 1], int) is None
    assert not zero.here("a", [0])
    zero.publish("a", 3)
    assert zero.read("a", [0, 1], int) is None
    assert zero.read_those_here("a", [0, 1], int) == {0: 3}
    one.publish("a", 4)
    assert zero.read("a", [1, 0], int) == {1: 4, 0: 3}
    assert one.here("a", [0, 1])
    assert not one.here("b", [0])
    zero.forget("a")
    assert one.read_those_here("a", [0, 1], int) == {1: 4}
    assert one.read("a", [], int) == {}
    assert not one.here("a", [])  # nobody has left nothing


def test_a_wait_ends_when_all_have_come():
    zero, one = (session.line for session in sessions(2))
    timer = threading.Timer(0.02, lambda: one.publish("a", 4))
    timer.start()
    assert zero.wait("a", [1], int, 5.0) == {1: 4}
    assert zero.wait("a", [], int, 0.0) == {}


def test_a_wait_has_a_limit_and_names_who_is_missing():
    zero, one = (session.line for session in sessions(3)[:2])
    one.publish("a", 4)
    started = time.monotonic()
    with pytest.raises(Gone) as gone:
        zero.wait("a", [1, 2], int, 0.02)
    assert (gone.value.ranks, gone.value.why) == ([2], "limit")
    assert str(gone.value) == "limit: [2]"
    assert time.monotonic() - started >= 0.02


def test_a_wait_ends_when_it_is_hopeless():
    (zero, *_) = sessions(2)
    asked = []
    answers = iter([None, "ended"])
    with pytest.raises(Gone) as gone:
        zero.line.wait("a", [1], int, 5.0, lambda ranks: asked.append(ranks) or next(answers))
    assert (gone.value.ranks, gone.value.why) == ([1], "ended")
    assert asked == [[1], [1]]


def test_a_store_that_fails_is_given_up():
    store = DictStore()
    line = Channel(store, 0, 2)
    line.publish("a", 1)
    assert not line.lost
    store.broken = True
    line.publish("b", 1)
    assert line.lost
    store.broken = False
    assert not line.here("a", [0])
    assert line.read("a", [0], int) is None
    with pytest.raises(Gone) as gone:
        line.wait("a", [0], int, 5.0)
    assert gone.value.why == "store"


# ---- a session's end


def test_a_group_ends_in_two_phases():
    """First all leave their last records, then all compare."""
    zero, one = sessions(2)
    told = []
    zero.at_end.append(lambda: told.append((zero.have_left_all([1]), left(zero))))
    zero.at_last.append(lambda: told.append(left(zero)))
    one.group_ends()
    line = zero.channel
    zero.group_ends()
    assert told == [("ended", ["end/1", "last/1"]), ["end/1", "last/0", "last/1"]]
    assert line.read("end", [0, 1], str) == {0: LEFT, 1: LEFT}
    assert zero.channel is None
    zero.group_ends()  # once is enough
    assert len(told) == 2


def test_a_session_that_failed_compares_nothing():
    zero, one = sessions(2)
    zero.at_end.append(lambda: pytest.fail("it must not be told"))
    zero.at_last.append(lambda: pytest.fail("it must not be told"))
    zero.group_ends(FAILED)
    assert zero.channel is None
    assert one.what_became_of([0, 1]) == {0: FAILED}
    assert one.have_ended([0]) == "ended"
    assert one.have_ended([1]) is None
    assert one.have_left_all([0]) == "ended"


@pytest.mark.parametrize(("last", "raised"), [((), "first"), (("third", "fourth"), "third")])
def test_what_is_raised_of_several_findings_at_the_end(last, raised):
    (zero, _) = sessions(2)
    told = []

    def find(cause):
        told.append(cause)
        zero.found(note(cause, serious=True))

    zero.at_end += [lambda: find("first"), lambda: find("second")]
    zero.at_last += [functools.partial(find, cause) for cause in last]
    with pytest.raises(SanitizerError) as error:
        zero.group_ends()
    assert error.value.finding.cause == raised
    assert told == ["first", "second", *last]
    assert zero.channel is None


def test_the_end_of_a_group_is_not_entered_twice():
    (zero, _) = sessions(2)
    zero.at_end.append(zero.group_ends)  # a clean-up within a clean-up
    zero.group_ends()
    assert zero.channel is None


def test_gathering():
    zero, one, two = sessions(3)
    two.line.publish("names", "c")
    one.line.publish("names", "b")
    assert zero.gather("names", "a", 5.0) == {0: "a", 1: "b", 2: "c"}
    assert zero.gather("others", "a", 0.01) == {0: "a"}
    one.line.publish("end", FAILED)
    assert zero.gather("third", "a", 5.0) == {0: "a"}  # nobody waits for a rank that failed
    assert Session().gather("names", "a") == {0: "a"}


def test_a_session_of_its_own():
    alone = Session(Options(3), {"x.py": "cell In[1]"})
    assert alone.options.every == 3
    assert (alone.rank, alone.world_size, alone.step, alone.timeout) == (0, 1, 0, DEFAULT_TIMEOUT)
    assert alone.what_became_of([0, 1]) == {}
    assert alone.have_left_all([1]) is None
    alone.group_ends()
    assert str(alone.frame(("x.py", 3, "f"))) == "cell In[1], line 3, in f"
    assert alone.frame_of(None) is None
    assert Session().options == Options(1)


@pytest.mark.parametrize("every", [0, True, 1.5, "2"])
def test_options_are_checked(every):
    with pytest.raises(ValueError, match=f"every={every!r}: expected a whole number, at least 1"):
        Options(every)


def test_a_fork_leaves_the_channel_alone():
    (zero, _) = sessions(2)
    zero.in_child()
    assert zero.channel is None


def test_findings_are_kept_once():
    session = Session()
    session.found(note("a"))
    session.found(note("a"))
    session.found(note("b"))
    session.found(note("a", kind="other"))
    assert [(f.kind, f.cause) for f in session.findings] == [
        ("slow", "a"), ("slow", "b"), ("other", "a"),
    ]  # fmt: skip
    for _ in range(2):
        with pytest.raises(SanitizerError, match="mend it"):
            session.found(note("c", serious=True))
    assert len(session.findings) == 4


def test_what_is_printed(capsys):
    session = Session()
    serious, raised = note("a", serious=True), note("b", serious=True)
    session.findings += [serious, raised, note("c"), note("d")]
    session.told = {("slow", "d")}
    session.print_findings(SanitizerError(raised))
    assert [line for line in capsys.readouterr().err.splitlines() if "sanitizer" in line] == [
        "sanitizer: a", "sanitizer, a note: c",
    ]  # fmt: skip


def test_a_fault_is_told_once_and_switches_its_check_off():
    session = Session()
    calls = []

    def check(number):
        calls.append(number)
        if number:
            raise KeyError("gone")
        return "fine"

    safe, other = session.guarded("data", check), session.guarded("others", check)
    assert safe(0) == "fine"
    assert safe(1) is None
    assert safe(0) is None
    assert other(0) == "fine"
    assert calls == [0, 1, 0]
    (finding,) = session.findings
    assert finding.kind == "sanitizer-fault"
    assert not finding.serious
    assert "check of data failed itself (KeyError: 'gone', test_sanitizer_talk.py:" in finding.cause
    assert safe.__name__ == "check"
    assert finding.advice == "report it; your run goes on and is not concerned"


def test_what_a_check_finds_is_no_fault():
    session = Session()
    safe = session.guarded("data", lambda: session.found(note("a", serious=True)))
    for _ in range(2):
        with pytest.raises(SanitizerError):
            safe()


# ---- notes


def test_a_note_of_several_ranks_is_told_by_the_lowest():
    zero, one, two = sessions(3)
    for session in (zero, one, two):
        tell_notes_once(session)
    zero.found(note("all"))
    zero.findings.append(note("serious", serious=True))
    for session in (one, two):
        session.found(note("all"))
        session.findings.append(note("serious", serious=True))
    two.found(note("mine"))
    for session in (zero, one, two):
        session.group_ends()
    assert zero.told == set()
    assert one.told == {("slow", "all")}
    assert two.told == {("slow", "all")}


# ---- exchange


@dataclass(frozen=True)
class Number:
    value: int

    @property
    def alike(self):
        return self.value


def exchanges(count=2):
    made = sessions(count)
    return made, [Exchange(session, "numbers", Number) for session in made]


def test_the_lowest_rank_compares():
    _, (zero, one) = exchanges()
    seen = []
    zero.leave("a", Number(1), [0, 1], lambda records: seen.append((0, records)))
    assert seen == []
    one.leave("a", Number(2), [0, 1], lambda records: seen.append((1, records)))
    assert seen == []
    zero.look()
    zero.look()
    assert seen == [(0, {0: Number(1), 1: Number(2)})]


def test_who_takes_no_part_leaves_nothing():
    (first, _), (zero, _) = exchanges()
    refuse = lambda records: pytest.fail("there is nothing to compare")
    zero.leave("a", Number(1), [0], refuse)
    zero.leave("a", Number(1), [1, 2], refuse)
    assert left(first) == []
    first.channel = None
    zero.leave("a", Number(1), [0, 1], refuse)
    zero.look()
    zero.finish()


def test_a_store_does_not_grow_with_the_run():
    made, (zero, one) = exchanges()
    for number in range(exchange_module.KEPT + 3):
        one.leave(str(number), Number(number), [0, 1], lambda records: None)
    assert len(left(made[0])) == exchange_module.KEPT
    assert "numbers/2/1" not in left(made[0])
    assert "numbers/3/1" in left(made[0])
    seen = []
    for number in range(exchange_module.KEPT + 3):
        zero.leave(str(number), Number(0), [0, 1], lambda records: seen.append(records[1].value))
    assert seen == list(range(3, exchange_module.KEPT + 3))


def test_the_end_waits_for_what_is_left():
    (first, second), (zero, one) = exchanges()
    seen = []
    zero.leave("a", Number(1), [0, 1], seen.append)
    zero.leave("b", Number(1), [0, 1], seen.append)
    timer = threading.Timer(0.005, lambda: one.leave("a", Number(2), [0, 1], seen.append))
    timer.start()
    zero.finish()
    assert seen == [{0: Number(1), 1: Number(2)}]
    zero.finish()  # nothing is open any more
    zero.leave("c", Number(1), [0, 1], seen.append)
    second.line.publish("numbers/c", Number(3))
    second.line.publish("last", True)
    zero.finish()
    assert len(seen) == 2
    zero.leave("d", Number(1), [0, 1], seen.append)
    zero.forget_all()
    second.line.publish("numbers/d", Number(3))
    zero.finish()
    assert len(seen) == 2
    assert first.findings == []


# ---- ledger


def ledgers(count=2):
    made = sessions(count)
    return made, [Ledger(session, "step") for session in made]


def test_each_rank_compares_with_the_lowest():
    _, (zero, one, two) = ledgers(3)
    seen = []
    report = lambda rank: lambda records: seen.append((rank, records))
    zero.leave("a", Number(1), [0, 1, 2], report(0))
    one.leave("a", Number(1), [0, 1, 2], report(1))
    assert seen == []
    two.leave("a", Number(2), [0, 1, 2], report(2))
    assert seen == [(2, {0: Number(1), 1: Number(1), 2: Number(2)})]


def test_whoever_is_first_compares_later():
    _, (zero, one) = ledgers()
    seen = []
    one.leave("a", Number(2), [0, 1], seen.append)
    one.leave("b", Number(5), [0, 1], seen.append)
    zero.leave("b", Number(4), [0, 1], seen.append)
    one.look()
    assert seen == []  # in their order
    zero.leave("a", Number(1), [0, 1], seen.append)
    one.look()
    assert [records[1].value for records in seen] == [2, 5]


def test_a_record_that_somebody_else_looks_at():
    _, (zero, one) = ledgers()
    seen = []
    zero.leave("a", Number(1), [0, 1], seen.append)
    one.leave("a", Number(2), [0, 1], seen.append, look=False)
    assert seen == []
    one.drop("a")
    one.look()
    assert seen == []
    zero.leave("b", Number(1), [0, 1], seen.append)
    one.leave("b", Number(2), [0, 1], seen.append, look=False)
    one.drop("a")
    one.look()
    assert len(seen) == 1


def test_a_ledger_keeps_so_many_steps():
    made, (zero, one) = ledgers()
    steps = ledger_module.KEPT + 2
    seen = []
    for step in range(steps):
        one.leave(str(step), Number(1), [0, 1], lambda records: seen.append(records))
    assert len(left(made[0])) == ledger_module.KEPT
    assert "step/1/1" not in left(made[0])
    for step in range(steps):
        zero.leave(str(step), Number(0), [0, 1], lambda records: None)
    one.look()
    assert len(seen) == ledger_module.KEPT


def test_who_takes_no_part_in_a_ledger():
    (first, second), (_, one) = ledgers()
    one.leave("a", Number(1), [1], lambda records: None)
    assert left(first) == []
    second.channel = None
    one.leave("a", Number(1), [0, 1], lambda records: None)
    one.look()
    one.finish()


def test_a_finding_ends_the_comparison_of_steps():
    (_, second), (zero, one) = ledgers()
    for name in "ab":
        one.leave(name, Number(1), [0, 1], lambda _: second.found(note("it", serious=True)))
    for name in "ab":
        zero.leave(name, Number(2), [0, 1], lambda _: None)
    with pytest.raises(SanitizerError):
        one.look()
    one.look()  # the rest is a consequence


def test_a_ledger_at_the_end():
    (first, _), (zero, one) = ledgers()
    seen = []
    one.leave("a", Number(1), [0, 1], seen.append)
    one.leave("b", Number(1), [0, 1], seen.append)
    threading.Timer(0.005, lambda: zero.leave("a", Number(2), [0, 1], seen.append)).start()
    one.finish()
    assert seen == [{0: Number(2), 1: Number(1)}]
    one.finish()
    assert len(seen) == 1
    one.leave("c", Number(1), [0, 1], seen.append)
    one.forget_all()
    zero.leave("c", Number(2), [0, 1], seen.append)
    one.finish()
    assert len(seen) == 1
    first.line.publish("last", True)
    assert one.all_of("c", [0, 1], Number, 5.0) == {0: Number(2), 1: Number(1)}
    assert one.all_of("d", [0, 1], Number, 5.0) == {}


def test_numbers_that_are_not_equal_to_themselves_are_alike():
    _, (zero, one) = ledgers()
    nan = Number(float("nan"))
    zero.leave("a", nan, [0, 1], lambda _: None)
    one.leave("a", Number(float("nan")), [0, 1], lambda _: pytest.fail("they are alike"))
    assert brief(nan) == brief(Number(float("nan")))
    assert brief(Number(1)) != brief(Number(2))


# ---- the sequence of calls

PLACE = ("train.py", 7, "train")


def call(op="allreduce", **changes):
    usual = CallRecord(op, op, (PLACE,), 0, reduce="SUM", tensors=(TensorKind("float32", (3,)),))
    return replace(usual, **changes)


def sequences(count=2):
    """For each rank its session, its sequence, and what that was given to compare."""
    made, seen = sessions(count), []

    def compare(records, frames):
        seen.append(records)
        ops = {record.op for record in records.values()}
        return note("calls differ", serious=True) if len(ops) > 1 else None

    return made, [CallSequence(session, compare) for session in made], seen


def test_calls_are_numbered_and_compared():
    made, (zero, one), seen = sequences()
    first = zero.event("world", [0, 1], call(), blocking=False)
    assert (first.number, first.group, first.ranks) == (0, "world", [0, 1])
    assert one.event("world", [0, 1], call()) is None
    assert seen == [{0: call(), 1: call()}]
    zero.settle(None)  # its work is not known yet
    assert len(seen) == 2
    zero.event("world", [0, 1], call("barrier"), blocking=False)
    one.event("world", [0, 1], call("barrier"))
    before = CallBefore("allreduce", (PLACE,))
    assert seen[2][1] == call("barrier", before=before)
    assert seen[2][0].before == before
    assert "call/world/0/1" not in left(made[0])  # all have come further
    assert {"call/world/1/0", "call/world/1/1"} <= set(left(made[0]))


def test_calls_that_differ_stop_the_run():
    _, (zero, one), _ = sequences()
    zero.event("world", [0, 1], call("barrier"), blocking=False)
    with pytest.raises(SanitizerError, match="calls differ"):
        one.event("world", [0, 1], call())


def test_groups_are_counted_apart():
    _, (zero, one), seen = sequences()
    zero.event("a", [0, 1], call(), blocking=False)
    zero.event("b", [0, 1], call("barrier"), blocking=False)
    one.event("b", [0, 1], call("barrier"))
    one.event("a", [0, 1], call())
    assert [records[0].op for records in seen] == ["barrier", "allreduce"]
    assert all(records[0].before is None for records in seen)


def test_calls_that_are_not_compared():
    made, (zero, _), seen = sequences()
    assert zero.event("alone", [0], call()) is None
    assert left(made[0]) == []
    zero.give_up()
    assert left(made[0]) == ["quiet/0"]
    assert zero.event("world", [0, 1], call()) is None
    assert left(made[0]) == ["quiet/0"]
    made[0].channel = None
    zero.give_up()
    assert seen == []


def test_an_asynchronous_call_is_compared_when_it_can_be():
    _, (zero, one), seen = sequences()
    work = object()
    pending = zero.event("world", [0, 1], call(), blocking=False)
    pending.work = work
    zero.look_at_pending()
    assert seen == []
    one.event("world", [0, 1], call())
    zero.settle(object())
    assert len(seen) == 1
    zero.settle(work)
    assert len(seen) == 2
    zero.settle(work)
    zero.look_at_pending()
    assert len(seen) == 2


def test_pending_calls_are_looked_at_with_the_next_one():
    _, (zero, one), seen = sequences()
    zero.event("world", [0, 1], call(), blocking=False)
    one.event("world", [0, 1], call())
    zero.event("other", [0, 1], call(), blocking=False)
    assert len(seen) == 2
    zero.forget_all()
    one.event("other", [0, 1], call())
    zero.look_at_pending()
    assert len(seen) == 3
    zero.event("other", [0, 1], call(), blocking=False)  # its number is 0 again
    assert seen[3][0].before is None


def gone_wrong(sequence, record=None, **options):
    with pytest.raises(SanitizerError) as error:
        sequence.event("world", [0, 1], record or call(), **options)
    return error.value.finding


def test_a_rank_that_ended():
    (zero_session, one_session), (zero, one), _ = sequences()
    one.event("world", [0, 1], call("barrier"), blocking=False)
    zero.event("world", [0, 1], call("barrier"))
    one_session.group_ends(LEFT)
    zero_session.step = 4
    found = gone_wrong(zero)
    assert (found.kind, found.ranks, found.step) == ("rank-ended-early", (1,), 4)
    assert found.cause == "rank 1 ended while others wait for it"
    assert "`if rank == ...`" in found.advice
    assert str(found.place) == "train.py, line 7, in train"
    where = "at train.py, line 7, in train"
    assert found.details == (
        f"rank 0: allreduce(SUM) of float32 (3,) {where}",
        f"rank 1: barrier(SUM) of float32 (3,) {where} was its last call in this group",
    )


def test_the_end_may_be_explained_better():
    (_, one_session), (zero, _), _ = sequences()
    asked = []
    other = note("a better cause", kind="other", serious=True)
    zero.explain_end = lambda *given: asked.append(given) or other
    one_session.group_ends(LEFT)
    assert gone_wrong(zero) == other
    ((record, ranks, details),) = asked
    assert (record.op, ranks) == ("allreduce", [1])
    assert details[0].startswith("rank 0: allreduce(SUM)")


def test_a_rank_that_failed_is_told_elsewhere():
    (first, second), (zero, _), seen = sequences()
    second.group_ends(FAILED)
    assert zero.event("world", [0, 1], call()) is None
    assert seen == []
    assert first.findings == []


def test_a_rank_that_does_not_come():
    (first, _), (zero, _), _ = sequences()
    first.timeout = 0.02
    zero.explain_end = lambda *_: pytest.fail("nobody ended")
    found = gone_wrong(zero, call(stack=()))
    assert (found.kind, found.ranks) == ("rank-did-not-come", (1,))
    assert found.cause == "rank 1 did not come within 0.02 s"
    assert found.place is None
    assert found.details == ("rank 0: allreduce(SUM) of float32 (3,)",)
    assert "waits/0" not in left(first)


def test_a_rank_that_counts_no_more():
    (first, _), (zero, one), seen = sequences()
    one.give_up()
    assert zero.event("world", [0, 1], call()) is None
    assert zero.quiet
    assert seen == []
    assert first.findings == []


def test_a_store_that_is_lost_is_no_finding():
    (first, _), (zero, _), _ = sequences()
    first.line.lost = True
    assert zero.event("world", [0, 1], call()) is None
    assert first.findings == []


def test_ranks_that_wait_for_one_another():
    """Rank 0 waits in one group and rank 1 in another one."""
    _, (zero, one), _ = sequences()
    found = []

    def wait(sequence, group, record):
        try:
            sequence.event(group, [0, 1], record)
        except SanitizerError as error:
            found.append(error.finding)
            sequence.session.group_ends(FAILED)  # so the other one keeps silent, or says the same

    threads = [
        threading.Thread(target=wait, args=(zero, "a", call())),
        threading.Thread(target=wait, args=(one, "b", call("barrier", reduce=None))),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {f.kind for f in found} == {"different-collective"}
    assert {f.cause for f in found} == {"the ranks wait for one another in different calls"}
    where = "at train.py, line 7, in train"
    calls = {
        f"rank 0: allreduce(SUM) of float32 (3,) {where}",
        f"rank 1: barrier of float32 (3,) {where}",
    }
    assert set(found[0].details) == calls


def test_a_wait_that_is_over_is_no_deadlock():
    """What rank 1 said to wait for has come meanwhile."""
    (first, second), (zero, one), _ = sequences()
    first.timeout = 0.05
    wait = sequence_module.WaitRecord((0,), "b", 0, call())
    second.line.publish("waits", wait)
    first.line.publish("call/b/0", call())
    assert gone_wrong(zero).kind == "rank-did-not-come"
    assert one.quiet is False


def test_a_deadlock_over_several_ranks():
    (first, second, third), (zero, *_), _ = sequences(3)
    second.line.publish("waits", sequence_module.WaitRecord((2,), "b", 0, call("barrier")))
    third.line.publish("waits", sequence_module.WaitRecord((0, 1), "c", 0, call()))
    found = gone_wrong(zero)
    assert found.kind == "different-collective"
    assert "rank 1: barrier(SUM)" in found.details[1]
    assert first.findings == [found]


def test_how_a_call_is_told():
    session = Session()
    plain = call(stack=(), reduce=None, tensors=())
    assert describe(session, 2, plain) == "rank 2: allreduce"
    assert describe(session, 0, replace(plain, root=0)) == "rank 0: allreduce(root 0)"
    both = replace(plain, root=1, reduce="MAX")
    assert describe(session, 0, both) == "rank 0: allreduce(MAX, root 1)"
    shapes = [TensorKind("float32", (size,)) for size in range(4)]
    three, four = (replace(plain, tensors=tuple(shapes[:count])) for count in (3, 4))
    listed = "float32 (0,), float32 (1,), float32 (2,)"
    assert describe(session, 0, three) == f"rank 0: allreduce of {listed}"
    assert describe(session, 0, four) == f"rank 0: allreduce of {listed}, ..."


# ---- whether all ranks are watched


def meet(session):
    off_unless_all_meet(session)
    session.on_group[0]()
    return session.channel


def test_ranks_that_are_all_watched_go_on():
    first, last = sessions(2)
    with ThreadPoolExecutor() as threads:
        assert all(threads.map(meet, (first, last)))


def test_a_rank_that_comes_late_is_off_as_the_others_are(monkeypatch, capsys):
    monkeypatch.setattr(meeting, "PATIENCE", 0.01)
    first, late = sessions(2)
    assert meet(first) is None
    said = capsys.readouterr().err
    assert said.startswith("the sanitizer is off: rank 1 is not watched; start all ranks under")
    assert meet(late) is None
    assert capsys.readouterr().err == ""


def test_alone_or_without_a_store_there_is_nobody_to_meet():
    assert meet(Session()) is None
    first, _ = sessions(2)
    first.line._store.broken = True
    assert meet(first) is not None
