"""What is read out of a log: errors whole, without marks, colours and the launchers' wrappers."""

import pytest

from ddp_helpers.diagnosis import Diagnosis, diagnose, diagnose_text, is_consequence
from ddp_helpers.diagnosis.known_lines import line_means, recognise_exit_code
from ddp_helpers.diagnosis.log_marks import read
from ddp_helpers.diagnosis.log_text import LONGEST_MESSAGE, find_errors
from ddp_helpers.evidence.records import RankError, RankResult


@pytest.mark.parametrize(
    ("line", "rank", "rest"),
    [
        ("[rank1]: ValueError: bad", "1", "ValueError: bad"),
        ("[rank 12] ValueError: bad", "12", "ValueError: bad"),
        ("[default3]:ValueError: bad", "3", "ValueError: bad"),
        ("[node-7.x:4]: ValueError: bad", "4", "ValueError: bad"),
        ("[5]: ValueError: bad", "5", "ValueError: bad"),
        ("[5] ValueError: bad", "", "ValueError: bad"),  # an item of a list, or a thread
        ("[5]<stderr>:ValueError: bad", "5", "ValueError: bad"),
        ("6: ValueError: bad", "6", "ValueError: bad"),
        ("\x1b[31m[rank1]: Value\x1b[0mError: bad", "1", "ValueError: bad"),
        ("ValueError: 7: bad", "", "ValueError: 7: bad"),
        ("7:bad", "", "7:bad"),
        ("[rank]: x", "", "[rank]: x"),
    ],
)
def test_a_mark_tells_the_rank_and_is_taken_off(line, rank, rest):
    (read_line,) = read([(7, line)])
    assert (read_line.number, read_line.rank, read_line.text) == (7, rank, rest)


TRACE = "Traceback (most recent call last):\n"


@pytest.mark.parametrize(
    ("log", "errors"),
    [
        ("ValueError: bad", ["ValueError: bad"]),
        ("torch.distributed.DistStoreError: bad", ["DistStoreError: bad"]),
        ("socket.gaierror: [Errno -2] x", ["gaierror: [Errno -2] x"]),
        ("KeyboardInterrupt", ["KeyboardInterrupt"]),
        ("SystemExit: 3", ["SystemExit: 3"]),
        ("MyException:", ["MyException"]),
        ("ValueError: \n  second line\n", ["ValueError: second line"]),
        ("ValueError: one\ntwo\n\n", ["ValueError: one\ntwo"]),
        ("ValueError: one\nValueError: one\n", ["ValueError: one"]),
        ("ValueError: one\nKeyError: 'x'\n", ["ValueError: one", "KeyError: 'x'"]),
        ("the ValueError: mentioned", []),
        ("ValueError was raised", []),
        ("error: bad", []),
    ],
)
def test_an_error_is_a_type_and_its_message(log, errors):
    assert find_errors(log) == errors


@pytest.mark.parametrize(
    "line",
    [
        TRACE,
        "Exception raised from doWait at TCPStore.cpp:1",
        "frame #0: std::function",
        "During handling of the above exception, another exception occurred:",
        "The above exception was the direct cause of the following exception:",
        "-- Process 1 terminated with the following error:",
        '  File "train.py", line 3, in main',
        "============",
        "------------",
        "terminate called without an active exception",
    ],
)
def test_a_message_ends_where_a_traceback_or_the_launchers_frame_begins(line):
    assert find_errors(f"ValueError: one\ntwo\n{line}\nthree\n") == ["ValueError: one\ntwo"]


def test_a_message_has_so_many_lines_and_no_more():
    lines = [f"line {n}" for n in range(LONGEST_MESSAGE + 3)]
    (error,) = find_errors("\n".join(["ValueError: x", *lines]))
    assert error.splitlines() == ["ValueError: x", *lines[:LONGEST_MESSAGE]]


@pytest.mark.parametrize(
    "wrapper",
    [
        "torch.multiprocessing.spawn.ProcessRaisedException: \n\n-- Process 1 terminated",
        "torch.multiprocessing.spawn.ProcessExitedException: process 1 terminated",
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n====",
    ],
)
def test_the_wrappers_of_launchers_are_no_errors(wrapper):
    assert find_errors(f"{wrapper}\nKeyError: 'x'\n") == ["KeyError: 'x'"]
    assert find_errors(wrapper) == []


def test_an_abort_has_the_type_that_was_thrown_and_its_what():
    thrown = "terminate called after throwing an instance of 'gloo::transport::IoException'"
    assert find_errors(f"{thrown}\n  what():  bad\n") == ["IoException: bad"]
    assert find_errors(f"{thrown}\nother\n  what():  bad\n") == ["IoException: bad"]
    assert find_errors(f"{thrown}\nother\nother\n  what():  bad\n") == ["IoException: "]
    assert find_errors(f"[rank0]: {thrown}\n[rank1]: what():  x\n") == ["IoException: "]
    assert find_errors(f"x: {thrown}") == ["IoException: "]


def test_a_warning_of_nccl_is_an_error_in_either_form():
    told = ["ncclWarning: [WARN] Duplicate GPU"]
    assert find_errors("host:1:9 [0] init.cc:871 NCCL WARN Duplicate GPU") == told
    assert find_errors("[2026-01-01 10:00:00] NCCL host WARN Duplicate GPU") == told
    assert find_errors("x NCCL WARN Duplicate GPU") == told
    assert find_errors("NCCL INFO Duplicate GPU") == []


def test_errors_of_several_ranks_come_in_the_order_of_the_log():
    log = "[rank1]: ValueError: one\n[rank0]: KeyError: 'two'\n[rank1]: more\n[rank1]: OSError: x\n"
    assert find_errors(log) == ["ValueError: one\nmore", "KeyError: 'two'", "OSError: x"]


# ---- what is not recognised

READ = "read the first error of the first rank that failed: later ones often follow from it"


def unknown(shown):
    return Diagnosis("not-recognised", f"not recognised; {shown}", READ)


def test_what_is_not_recognised_shows_the_first_error():
    log = f"{TRACE}ValueError: bad label\nsecond line\n\nKeyError: 'x'\n"
    assert diagnose_text(log) == [unknown("first error: ValueError: bad label")]
    long = "ValueError: " + "x" * 300
    assert diagnose_text(long) == [unknown(f"first error: {long[:200]}")]


def test_without_any_error_the_exit_code_and_the_last_line_are_shown():
    assert diagnose_text("epoch 1\n  epoch 2  \n\n", 3) == [
        unknown("exit code 3, last line: epoch 2")
    ]
    assert diagnose_text(" \n", 3) == [unknown("exit code 3, last line: (no output)")]
    assert diagnose_text("y" * 300, 1) == [unknown(f"exit code 1, last line: {'y' * 200}")]


def test_an_error_that_is_known_hides_none_that_is_not():
    log = "[rank0]: ValueError: bad label\n[rank1]: OSError: [Errno 24] Too many open files\n"
    other, known = diagnose_text(log, 1)
    assert known.kind == "too-many-files"
    assert other == unknown("first error: ValueError: bad label")


GONE = "RuntimeError: [pair.cc:553] Connection closed by peer [127.0.0.1]:45275"
LATE = "RuntimeError: [unbound_buffer.cc:78] Timed out waiting 6000ms for recv"


def test_a_consequence_is_told_only_where_there_is_nothing_else():
    assert [found.kind for found in diagnose_text(GONE)] == ["peer-gone"]
    assert [found.kind for found in diagnose_text(f"{GONE}\n{LATE}\n", 1)] == [
        "peer-gone",
        "peer-did-not-come",
    ]
    assert diagnose_text(f"{GONE}\n{GONE}2\n") == diagnose_text(GONE)
    assert [found.kind for found in diagnose_text(GONE, -9)] == ["killed"]
    assert [found.kind for found in diagnose_text(f"{GONE}\nKeyError: 'x'")] == ["not-recognised"]
    killed = f"{GONE}\nsrun: error: node7: task 3: Killed\n"
    assert [found.kind for found in diagnose_text(killed, 1)] == ["killed"]


# ---- exit codes, and ranks that printed their last words


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (-9, "killed"),
        (128 + 9, "killed"),
        (-11, "crashed"),
        (128 + 7, "shm-full"),
        (-7, "shm-full"),
        (9, None),
        (-6, "gave-up"),
        (-12, None),
        (0, None),
        (128, None),
        (None, None),
    ],
)
def test_a_signal_is_known_from_either_form_of_its_exit_code(code, kind):
    found = recognise_exit_code(code)
    assert (found and found.kind) == kind


def test_a_signal_and_its_line_in_a_log_mean_the_same():
    assert recognise_exit_code(-9) == line_means("killed")
    assert diagnose_text("process 1 terminated with signal SIGSEGV") == [recognise_exit_code(-11)]


def test_the_watchdog_names_ranks_calls_and_numbers():
    def line(rank, number, call):
        return (
            f"[Rank {rank}] Watchdog caught collective operation timeout: "
            f"WorkNCCL(SeqNum={number}, OpType={call}, NumelIn=1)\n"
        )

    assert diagnose_text(line(0, 3, "ALLREDUCE") + line(1, 3, "BROADCAST")) == [
        Diagnosis(
            "different-collective",
            "the ranks waited in different collectives: rank 0 in ALLREDUCE number 3, rank 1 in "
            "BROADCAST number 3",
            "all ranks must make the same collectives in the same order",
        )
    ]
    killed = "terminated with signal SIGKILL\n"
    assert diagnose_text(killed + line(0, 3, "ALLREDUCE") + line(2, 3, "ALLREDUCE")) == [
        Diagnosis(
            "rank-did-not-come",
            "not all ranks came to a collective: rank 0 in ALLREDUCE number 3, rank 2 in "
            "ALLREDUCE number 3",
            "look at what the silent ranks did: an error, an `if rank == ...`, or slow work; if "
            "none was silent, at the network between them (NCCL_DEBUG=INFO)",
        ),
        line_means("killed"),
    ]


def kinds(*ranks):
    return [found.kind for found in diagnose(ranks)]


TAKEN = "RuntimeError: Address already in use\n"
THROWN = "terminate called after throwing an instance of 'gloo::EnforceNotMet'\n"


def test_the_last_words_of_a_rank_that_died_count():
    assert kinds(RankResult(0, exit_code=2, output=f"KeyError: 1\n{TAKEN}")) == ["port-taken"]
    assert kinds(RankResult(0, exit_code=2, output=f"{TAKEN}KeyError: 1\n")) == []
    assert kinds(RankResult(0, exit_code=2)) == []
    abort = f"{THROWN}  what():  preamble.length <= 8\n"
    assert kinds(RankResult(0, exit_code=-6, output=abort)) == ["collective-mismatch"]
    assert kinds(RankResult(0, exit_code=-11, output=abort)) == ["crashed"]


def test_lines_count_only_if_their_rank_did_not_end_well():
    told = "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of\n"
    assert kinds(RankResult(0, exit_code=0, output=told), RankResult(1, exit_code=3)) == []
    assert kinds(RankResult(0, exit_code=0), RankResult(1, exit_code=3, output=told)) == [
        "out-of-memory"
    ]


def test_a_rank_that_was_killed_is_the_surest_cause_and_memory_surer_still():
    error = RankError("OSError", "[Errno 24] Too many open files", "")
    ranks = [RankResult(0, exit_code=1, error=error), RankResult(1, exit_code=-9)]
    assert kinds(*ranks) == ["killed", "too-many-files"]
    assert diagnose(ranks)[0] == Diagnosis(
        "killed",
        "something outside killed the rank; the system's out-of-memory count did not change",
        "look for a `kill -9`, a scheduler's limit, or a container's limit in `dmesg | tail`",
    )
    without = RankResult(2, exit_code=-9, out_of_memory=True)
    assert diagnose([*ranks, without])[0] == line_means("out-of-memory")
    assert kinds(RankResult(0, exit_code=-11, out_of_memory=True)) == ["crashed"]


def test_one_cause_of_each_kind_is_told_the_first():
    errors = [RankError("RuntimeError", f"{n}/4 clients joined", "", at=n) for n in (2, 1)]
    ranks = [RankResult(n, exit_code=1, error=error) for n, error in enumerate(errors)]
    (found,) = diagnose(ranks)
    assert found.cause == "only 1 of 4 ranks came"


def test_what_a_rank_printed_before_it_raised_is_not_its_cause():
    bad = RankResult(0, exit_code=1, error=RankError("ValueError", "bad", ""), output=TAKEN)
    assert kinds(bad) == []


def test_a_consequence_is_no_cause_even_if_another_rule_knows_its_words():
    text = (
        "NCCL error in: NCCLUtils.cpp:77, unhandled system error, NCCL version 2.19.3\n"
        "ncclSystemError: System call (e.g. socket, malloc) failed.\n"
        "Last error:\nsocketProgress: Connection reset by peer"
    )
    error = RankError("DistBackendError", text, "")
    assert is_consequence(error)
    assert kinds(RankResult(0, exit_code=1, error=error)) == []


def test_the_first_line_of_each_rank_is_the_beginning_of_a_line():
    first = RankResult(0, exit_code=3, output="epoch 1\n")
    killed = RankResult(1, exit_code=3, output="srun: error: node7: task 3: Killed\n")
    assert kinds(first, killed) == ["killed"]
