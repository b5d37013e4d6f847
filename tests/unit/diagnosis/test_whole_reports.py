"""Whole reports, as a reader gets them: who failed, where, why and what to do, line by line."""

import signal
from dataclasses import replace

import pytest

from ddp_helpers.diagnosis.failure_report import (
    LONGEST,
    MOST_LINES,
    MOST_RANKS,
    MOST_STANDING,
    failure_report,
    find_causes,
    signal_in_words,
)
from ddp_helpers.evidence.records import Finding, Frame, LastCall, RankError, RankResult

LINE = Frame("cell In[4]", 7, "train", "dist.all_reduce(x)")
BARE = Frame("cell In[4]", 8, "train")
INSIDE = Frame("/x/torch/distributed/distributed_c10d.py", 2900, "all_reduce", "", False)
MACHINERY = Frame("worker.py", 3, "run", "fn()", is_user=False, is_launcher=True)
GONE = "[pair.cc:553] Connection closed by peer [127.0.0.1]:45275"
OK = {"exit_code": 0}


def raised(rank, text, at=1.0, frame=LINE):
    kind, _, message = text.partition(": ")
    frames = (frame,) if frame else ()
    error = RankError(kind, message, f"Traceback ...\n{text}", frames, at)
    return RankResult(rank, exit_code=1, error=error)


def lost(rank, at=0.5):
    return raised(rank, f"RuntimeError: {GONE}", at)


def standing(rank, *stack, **kind):
    return RankResult(rank, exit_code=None, stack=stack, **kind)


def report(*ranks, **kind):
    return failure_report(ranks, **kind).splitlines()


# ---- a rank failed


def test_an_exception_its_line_and_what_became_of_the_others():
    known = "ValueError: trying to initialize the default process group twice!"
    assert report(
        raised(0, known, at=2.0), lost(1, at=3.0), standing(2, LINE, INSIDE), standing(3)
    ) == [
        "rank 0 failed: ValueError: trying to initialize the default process group twice!",
        "  at cell In[4], line 7, in train",
        "    dist.all_reduce(x)",
        "rank 1 then lost the connection",
        "rank 2 waited in all_reduce at cell In[4], line 7, in train, and was ended",
        "rank 3 was still starting, and was ended",
        "why: the process group was started twice",
        "what to do: start it once, or call dist.destroy_process_group() in between",
        "full traceback: print(sys.last_value.result[0].traceback)",
    ]


def test_ranks_that_failed_alike_are_told_together_and_in_order():
    ranks = [raised(2, "ValueError: bad", at=1.0), raised(0, "ValueError: bad", at=2.0)]
    assert report(*ranks, raised(1, "KeyError: 'x'", at=3.0)) == [
        "ranks 0 and 2 failed: ValueError: bad",
        "  at cell In[4], line 7, in train",
        "    dist.all_reduce(x)",
        "also, rank 1 failed: KeyError: 'x'",
        "full traceback: print(sys.last_value.result[2].traceback)",
    ]


def test_where_no_line_is_known_none_is_told():
    assert report(raised(0, "ValueError: bad", frame=None)) == [
        "rank 0 failed: ValueError: bad",
        "full traceback: print(sys.last_value.result[0].traceback)",
    ]
    assert report(raised(0, "ValueError: bad", frame=BARE))[1:] == [
        "  at cell In[4], line 8, in train",
        "full traceback: print(sys.last_value.result[0].traceback)",
    ]


def test_an_end_without_a_traceback_promises_none():
    assert report(RankResult(0, exit_code=7, returned=False), RankResult(1, **OK)) == [
        "rank 0 ended with exit code 7 before its function returned (os._exit?)"
    ]
    assert report(RankResult(0, exit_code=0, returned=False))[0] == (
        "rank 0 ended with exit code 0 before its function returned (os._exit?)"
    )


def test_sys_exit_is_told_as_such():
    assert report(raised(0, "SystemExit: 3"))[0] == "rank 0 called sys.exit(3)"


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (9, "SIGKILL (killed from outside)"),
        (11, "SIGSEGV (a crash in compiled code)"),
        (6, "SIGABRT (compiled code gave up; its message is in the rank's output)"),
        (15, "SIGTERM (somebody asked it to end)"),
        (7, "SIGBUS (a bad memory access; perhaps /dev/shm is full)"),
        (2, "SIGINT"),
        (99, "signal 99"),
    ],
)
def test_a_signal_has_its_name_and_what_it_means(number, words):
    assert signal_in_words(number) == words
    assert report(RankResult(3, exit_code=-number))[0] == f"rank 3 was ended by {words}"


def test_only_the_connection_was_lost():
    assert report(lost(0), lost(2), RankResult(1, **OK), RankResult(3, **OK)) == [
        "ranks 1 and 3 had finished: ranks 0 and 2 lost the connection to another rank",
        "  at cell In[4], line 7, in train",
        "    dist.all_reduce(x)",
        "why: ranks 1 and 3 finished while ranks 0 and 2 still waited for it",
        "what to do: every rank must make the same collective calls: look for one under "
        "`if rank == 0`, or for ranks with different numbers of batches",
        "full traceback: print(sys.last_value.result[0].traceback)",
    ]
    assert report(lost(0), standing(1, LINE))[0] == "rank 0 lost the connection to another rank"


def test_a_rank_that_failed_itself_is_no_rank_that_lost_the_connection():
    assert report(raised(0, "ValueError: bad"), RankResult(1, **OK))[0] == (
        "rank 0 failed: ValueError: bad"
    )
    assert report(RankResult(0, exit_code=-11), RankResult(1, **OK))[0].startswith("rank 0 was")


def test_a_rank_that_the_launcher_ended_is_never_a_cause():
    well, killed = standing(0, LINE), RankResult(1, exit_code=-9)
    assert find_causes([well, killed, RankResult(2, **OK)]) == [killed]
    assert find_causes([lost(0), lost(1)]) == [lost(0), lost(1)]
    assert find_causes([lost(0), killed]) == [killed]


def test_a_rank_that_died_comes_before_those_that_raised():
    ranks = [raised(0, "ValueError: bad", at=0.1), RankResult(1, exit_code=-11)]
    assert [rank.rank for rank in find_causes(ranks)] == [1, 0]
    assert report(*ranks)[:2] == [
        "rank 1 was ended by SIGSEGV (a crash in compiled code)",
        "also, rank 0 failed: ValueError: bad",
    ]


def test_of_a_first_rank_that_died_and_one_that_raised_the_traceback_is_offered():
    ranks = [RankResult(0, exit_code=-11), raised(1, "ValueError: bad")]
    assert report(*ranks)[-1] == "full traceback: print(sys.last_value.result[0].traceback)"


# ---- limits


def test_a_few_ranks_get_a_line_each_and_the_others_are_counted():
    ended = [standing(rank, LINE) for rank in range(1, 8)]
    lines = report(raised(0, "ValueError: bad"), *ended)
    assert lines[3:8] == [
        *(f"rank {n} was at cell In[4], line 7, in train, and was ended" for n in (1, 2, 3, 4)),
        "3 more ranks were ended",
    ]
    lines = report(raised(0, "ValueError: bad"), *ended[:MOST_RANKS])
    assert not any("more ranks" in line for line in lines)
    assert sum("and was ended" in line for line in lines) == MOST_RANKS


def test_other_failures_get_a_line_each_up_to_a_limit():
    ranks = [raised(rank, f"ValueError: bad {rank}", at=rank) for rank in range(9)]
    assert [line for line in report(*ranks) if line.startswith("also")] == [
        f"also, rank {rank} failed: ValueError: bad {rank}" for rank in (1, 2, 3, 4)
    ]


def test_a_long_message_is_cut_and_only_its_first_line_is_told():
    fits = "x" * (LONGEST - len("ValueError: "))
    assert report(raised(0, f"ValueError: {fits}"))[0] == f"rank 0 failed: ValueError: {fits}"
    shown = f"ValueError: {fits}"[: LONGEST - 3]
    assert report(raised(0, f"ValueError: {fits}y"))[0] == f"rank 0 failed: {shown}..."
    assert report(raised(0, "ValueError: one\ntwo"))[0] == "rank 0 failed: ValueError: one"


def test_no_report_is_longer_than_a_screen():
    assert MOST_LINES == 20
    many = Finding("kind", "cause", "advice", details=tuple(map(str, range(50))))
    failed = replace(raised(0, "SanitizerError: found"), findings=(many,))
    assert len(report(failed)) == MOST_LINES
    last = LastCall(3, "barrier", LINE)
    ranks = [standing(rank, BARE, last_call=last) for rank in range(30)]
    assert len(report(*ranks, timeout=5.0)) == 1 + 2 * MOST_STANDING + 2


def test_two_causes_are_explained_and_no_third():
    texts = [
        "ValueError: trying to initialize the default process group twice!",
        "AssertionError: Torch not compiled with CUDA enabled",
        "OSError: [Errno 24] Too many open files",
    ]
    lines = report(*(raised(n, text, at=n) for n, text in enumerate(texts)))
    assert [line for line in lines if line.startswith("why: ")] == [
        "why: the process group was started twice",
        "why: CUDA was asked for, and this machine or this PyTorch build has none",
    ]


# ---- ranks hang


def test_a_hang_says_where_each_rank_stands():
    last = LastCall(2, "barrier", BARE)
    ranks = [
        standing(0, LINE, INSIDE, last_call=last),
        standing(1, LINE, last_call=last),
        standing(2, MACHINERY),
        standing(3),
        standing(4, LINE, stopped=True),
        standing(5, BARE),
        RankResult(6, **OK),
    ]
    assert report(*ranks, timeout=2.5)[:-2] == [
        "the ranks did not end within 2.5 s, and were ended",
        "rank 6 had finished",
        "rank 0 waited in all_reduce at cell In[4], line 7, in train: dist.all_reduce(x)",
        "rank 1 was at cell In[4], line 7, in train: dist.all_reduce(x)",
        "  its last collective was barrier (its call number 2) at cell In[4], line 8, in train",
        "rank 2 was on its way into its function, or out of it",
        "rank 3 was still starting",
        "rank 4 was paused from outside (SIGSTOP: `kill -CONT` wakes it): dist.all_reduce(x)",
        "rank 5 was at cell In[4], line 8, in train",
    ]


def test_a_rank_in_foreign_code_stands_at_its_innermost_line():
    library = Frame("/site/numpy/core.py", 4, "sort", "sort()", is_user=False)
    deeper = replace(library, line=5)
    assert report(standing(0, library, deeper), timeout=1.0)[1] == (
        "rank 0 was at /site/numpy/core.py, line 5, in sort"
    )


def test_ranks_that_wait_for_one_that_ended_are_no_matter_of_time():
    lines = report(standing(0, LINE, INSIDE), RankResult(1, **OK), stranded=True)
    assert lines == [
        "a rank waited for others that had already ended",
        "rank 1 had finished",
        "rank 0 waited in all_reduce at cell In[4], line 7, in train: dist.all_reduce(x)",
        "why: rank 1 finished while rank 0 still waited for it",
        "what to do: every rank must make the same collective calls: look for one under "
        "`if rank == 0`, or for ranks with different numbers of batches",
    ]
    # without a limit that ran out, nothing is said about work that takes long
    assert report(standing(0, LINE), stranded=True) == [
        "a rank waited for others that had already ended",
        "rank 0 was at cell In[4], line 7, in train: dist.all_reduce(x)",
    ]


def test_a_hang_is_told_by_where_ranks_stand_and_by_no_traceback():
    lines = report(raised(0, "ValueError: bad"), standing(1, LINE, INSIDE), timeout=1.0)
    assert lines[0] == "the ranks did not end within 1 s, and were ended"
    assert not any(line.startswith("full traceback") for line in lines)


# ---- the sanitizer ended the run

SERIOUS = Finding("weights-differ", "rank 1 has other weights", "broadcast them", place=LINE)
SECOND = Finding("other-order", "the orders differ", "use one order")
SLOW = Finding("slow", "slow", "hurry", serious=False)


def test_a_finding_that_ended_the_run_is_the_report():
    failed = replace(
        raised(1, "SanitizerError: rank 1 has other weights"), findings=(SLOW, SERIOUS, SECOND)
    )
    assert report(standing(0, LINE), failed) == [
        "sanitizer: rank 1 has other weights",
        "  at cell In[4], line 7, in train",
        "    dist.all_reduce(x)",
        "what to do: broadcast them",
        "[weights-differ]",
        "also: the orders differ [other-order]",
    ]


def test_a_finding_of_a_run_that_failed_otherwise_is_not_its_cause():
    failed = replace(raised(0, "ValueError: bad"), findings=(SERIOUS,))
    assert report(failed)[0] == "rank 0 failed: ValueError: bad"
    assert report(RankResult(0, exit_code=-9, findings=(SERIOUS,)))[0].startswith("rank 0 was")
    unserious = replace(raised(0, "SanitizerError: x"), findings=(SLOW,))
    assert report(unserious)[0] == "rank 0 failed: SanitizerError: x"


def test_the_numbers_of_signals_are_those_of_this_system():
    assert (signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS) == (9, 11, 6, 7)


# ---- whole messages


def of(kind, message, traceback="", *frames):
    error = RankError(kind, message, traceback, frames or (LINE,), 1.0)
    return RankResult(0, exit_code=1, error=error)


TRACE = 'Traceback (most recent call last):\n  File "train.py", line 3, in main\n    run()\n'
DIRECT = "\nThe above exception was the direct cause of the following exception:\n\n"


def test_a_message_of_several_lines_is_told_up_to_a_limit():
    assert report(of("ValueError", "one\ntwo\n\nthree"))[:3] == [
        "rank 0 failed: ValueError: one",
        "  two",
        "  three",
    ]
    lines = report(of("ValueError", "\n".join(map(str, range(20)))))
    assert lines[3:5] == ["  3", "  at cell In[4], line 7, in train"]


def test_notes_stand_in_the_traceback_alone_and_are_told():
    lines = report(of("ValueError", "bad", f"{TRACE}ValueError: bad\nrow 7 of a.csv\n"))
    assert lines[:2] == ["rank 0 failed: ValueError: bad", "  row 7 of a.csv"]


def test_torchs_own_stack_is_no_part_of_a_message():
    text = (
        "no port\nException raised from listen at socket.cpp:1 (most recent call first):\nframe #0"
    )
    assert report(of("DistNetworkError", text))[:2] == [
        "rank 0 failed: DistNetworkError: no port",
        "  at cell In[4], line 7, in train",
    ]


def test_what_an_exception_came_from_is_told():
    chain = f"{TRACE}KeyError: 'x'\n{DIRECT}{TRACE}ValueError: no x\n"
    assert report(of("ValueError", "no x", chain))[:3] == [
        "rank 0 failed: ValueError: no x",
        "  it came from KeyError: 'x'",
        "  at cell In[4], line 7, in train",
    ]


def test_what_came_of_a_lost_connection_is_a_lost_connection():
    chain = f"{TRACE}RuntimeError: {GONE}\n{DIRECT}{TRACE}TrainingFailed: sorry\n"
    assert report(of("TrainingFailed", "sorry", chain))[0] == (
        "rank 0 lost the connection to another rank"
    )


def test_a_loaders_worker_is_told_with_its_own_line():
    original = 'Traceback (most recent call last):\n  File "data.py", line 9, in __getitem__\n'
    message = (
        f"Caught ValueError in DataLoader worker process 0.\nOriginal {original}    int(row)\n"
    )
    text = f"{message}ValueError: bad row 17\n"
    assert report(of("ValueError", text, f"{TRACE}ValueError: {text}"))[:3] == [
        "rank 0 failed: ValueError: bad row 17 (in DataLoader worker process 0)",
        "  at data.py, line 9, in __getitem__",
        "    int(row)",
    ]


def test_the_members_of_a_group_are_told():
    group = (
        "  + Exception Group Traceback (most recent call last):\n"
        '  |   File "train.py", line 3, in main\n'
        "  | ExceptionGroup: g (2 sub-exceptions)\n"
        "  +-+---------------- 1 ----------------\n"
        "    | ValueError: one\n"
        "    +---------------- 2 ----------------\n"
        "    | TypeError: two\n"
    )
    assert report(of("ExceptionGroup", "g (2 sub-exceptions)", group))[:3] == [
        "rank 0 failed: ExceptionGroup: g (2 sub-exceptions)",
        "  ValueError: one",
        "  TypeError: two",
    ]


def test_of_many_keys_a_few_are_told():
    keys = ", ".join(f'"w{n}"' for n in range(9))
    text = f"Error(s) in loading state_dict for Net:\n\tMissing key(s) in state_dict: {keys}. "
    assert report(of("RuntimeError", text))[1] == (
        '  Missing key(s) in state_dict: "w0", "w1", "w2" and 6 more'
    )
