"""The text of a failure: short, the cause first, never the consequence as the cause."""

import signal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddp_helpers.diagnosis import diagnose, is_consequence
from ddp_helpers.diagnosis.failure_report import LONGEST, MOST_LINES, failure_report, find_causes
from ddp_helpers.diagnosis.rule_files import peer_is_gone
from ddp_helpers.evidence.records import Frame, RankError, RankResult, name_ranks
from ddp_helpers.evidence.waits import waiting_in

PEER_IS_GONE = peer_is_gone()
GONE = (
    "[.../pair.cc:553] Connection closed by peer [127.0.0.1]:45275. This is typically caused by "
    "a remote worker crashing. GLHF!"
)
LINE = Frame("cell In[4]", 7, "train", "dist.all_reduce(x)")
INSIDE = Frame("/x/torch/distributed/distributed_c10d.py", 2900, "all_reduce", "", False)


def error(message="bad label", kind="ValueError", at=1.0):
    return RankError(kind, message, f"Traceback ...\n{kind}: {message}", (LINE,), at)


def ended(rank, stack=()):
    """A rank that was well, and that the launcher ended."""
    return RankResult(rank, exit_code=None, stack=tuple(stack))


texts = st.text(max_size=2000)
errors = st.builds(
    error,
    message=texts | st.sampled_from([f"[pair.cc:553] {text}" for text in PEER_IS_GONE]),
    kind=st.sampled_from(["ValueError", "RuntimeError", "SystemExit", "DistBackendError"]),
    at=st.floats(0, 1e6),
)
stacks = st.sampled_from([(), (LINE,), (LINE, INSIDE)])
outcomes = st.one_of(
    st.builds(lambda e: {"error": e, "exit_code": 1}, errors),
    st.builds(lambda c: {"exit_code": c, "returned": False}, st.integers(-64, 255)),
    st.just({"exit_code": 0}),
    st.builds(lambda s: {"exit_code": None, "stack": s}, stacks),
)


runs = st.lists(outcomes, min_size=1, max_size=70).map(
    lambda found: [RankResult(number, **kind) for number, kind in enumerate(found)]
)


@given(ranks=runs, how=st.sampled_from(["failed", "late", "stranded"]))
def test_any_report_is_short_and_begins_with_what_happened(ranks, how):
    if how == "failed" and not find_causes(ranks):
        return  # all were well when they were ended: that is no failure
    report = failure_report(
        ranks, timeout=5.0 if how == "late" else None, stranded=how == "stranded"
    )
    lines = report.splitlines()
    assert 1 <= len(lines) <= MOST_LINES
    assert all(len(line) < 2 * LONGEST for line in lines[:1])
    if how == "failed":
        assert lines[0].startswith("rank")


@given(ranks=runs)
def test_a_consequence_is_the_cause_only_if_there_is_nothing_else(ranks):
    causes = find_causes(ranks)
    own = [
        rank
        for rank in ranks
        if (rank.error and not is_consequence(rank.error))
        or (rank.error is None and rank.exit_code not in (None, 0))
        or (rank.exit_code == 0 and not rank.returned)
    ]
    if own:
        assert all(rank in own for rank in causes)


def test_where_only_the_connection_was_lost_the_rank_that_left_comes_first():
    ranks = [
        RankResult(0, exit_code=1, error=error(GONE, "RuntimeError")),
        RankResult(1, exit_code=0, returned=True),
    ]
    lines = failure_report(ranks).splitlines()
    assert lines[0] == "rank 1 had finished: rank 0 lost the connection to another rank"
    assert lines[1].startswith("  at cell In[4], line 7")
    assert "Connection closed" not in "\n".join(lines)


@given(ranks=st.lists(st.sampled_from(PEER_IS_GONE), min_size=1, max_size=9))
def test_torchs_text_for_a_lost_peer_is_never_quoted(ranks):
    lost = [error(f"[pair.cc:553] {text}", "RuntimeError") for text in ranks]
    failed = [RankResult(n, exit_code=1, error=e) for n, e in enumerate(lost)]
    report = failure_report(failed)
    assert not any(text in report for text in PEER_IS_GONE)


def test_the_first_own_failure_comes_first():
    ranks = [
        RankResult(0, exit_code=1, error=error(GONE, "RuntimeError", at=1.0)),
        RankResult(1, exit_code=1, error=error("second", at=3.0)),
        RankResult(2, exit_code=1, error=error("first", at=2.0)),
        ended(3, (LINE, INSIDE)),
    ]
    lines = failure_report(ranks).splitlines()
    assert lines[0] == "rank 2 failed: ValueError: first"
    assert lines[1:3] == ["  at cell In[4], line 7, in train", "    dist.all_reduce(x)"]
    assert lines[3] == "also, rank 1 failed: ValueError: second"
    assert lines[4] == "rank 0 then lost the connection"
    assert lines[5].startswith("rank 3 waited in all_reduce at cell In[4], line 7")
    assert "Connection closed" not in "\n".join(lines)


@pytest.mark.parametrize(("code", "word"), [(-9, "SIGKILL"), (-11, "SIGSEGV"), (7, "exit code 7")])
def test_ends_without_an_exception_are_put_in_words(code, word):
    assert word in failure_report([RankResult(0, exit_code=code), ended(1)]).splitlines()[0]


@pytest.mark.parametrize(("out_of_memory", "text"), [(True, "memory ran out"), (False, "outside")])
def test_out_of_memory_is_told_from_evidence(out_of_memory, text):
    killed = RankResult(0, exit_code=-signal.SIGKILL, out_of_memory=out_of_memory)
    assert text in diagnose([killed])[0].cause


def test_what_is_not_recognised_is_left_alone():
    assert diagnose([RankResult(0, exit_code=1, error=error("something new"))]) == []


def test_names_and_waits():
    assert [name_ranks(r) for r in ([1], [0, 2], [0, 1, 2])] == [
        "rank 1",
        "ranks 0 and 2",
        "ranks 0, 1 and 2",
    ]
    assert waiting_in((LINE, INSIDE)) == "all_reduce"
    assert waiting_in((LINE,)) is None


def in_thread(name, error):
    return (
        f"Exception in thread {name}:\nTraceback (most recent call last):\n"
        f'  File "/x/data.py", line 3, in read\n    step()\n{error}\n'
    )


LOST_THREAD = in_thread("Thread-3 (read)", "ValueError: row 17 has no label")


def test_a_thread_that_died_is_told_before_where_its_rank_waits():
    ranks = [RankResult(0), RankResult(1, output=f"step 3\n{LOST_THREAD}")]
    lines = failure_report(ranks, timeout=10).splitlines()
    assert lines[1] == (
        "rank 1 had lost a thread: ValueError: row 17 has no label (in thread Thread-3 (read)), "
        "at /x/data.py, line 3, in read"
    )


@pytest.mark.parametrize(
    "output",
    [
        in_thread("Thread-1 (_pin_memory_loop)", "ConnectionResetError: [Errno 104] Connection"),
        in_thread("QueueFeederThread", "OSError: [Errno 9] Bad file descriptor"),
        in_thread(
            "Thread-3 (read)", "torch.distributed.DistBackendError: Connection reset by peer"
        ),
        LOST_THREAD.replace("Exception in thread", "[rank7]: Exception in the thread"),
    ],
)
def test_a_thread_that_broke_as_its_rank_ended_is_not_told(output):
    assert "a thread" not in failure_report(
        [RankResult(0), RankResult(1, output=output)], timeout=9
    )
    ok = RankResult(1, exit_code=0, output=LOST_THREAD)
    assert "a thread" not in failure_report([RankResult(0), ok], timeout=9)
