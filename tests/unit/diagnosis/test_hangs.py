"""Ranks that do not end: the cause is read from where each stands, and says who and what to do."""

import pytest

from ddp_helpers.diagnosis import Diagnosis, diagnose
from ddp_helpers.diagnosis.slips import find_slips
from ddp_helpers.evidence.records import Frame, LastCall, RankError, RankResult

LINE = Frame("train.py", 7, "train", "...")


def inside(function, file="torch/distributed/distributed_c10d.py"):
    return Frame(f"/site/{file}", 1, function, "", False)


def standing(rank, *frames, calls=0):
    last_call = LastCall(calls, "all_reduce", LINE) if calls else None
    return RankResult(rank, exit_code=None, stack=(LINE, *frames), last_call=last_call)


FORKED = inside("poll", "multiprocessing/popen_fork.py")
LOADER = inside("_try_get_data", "torch/utils/data/dataloader.py")
SAME = (
    "all ranks must make the same collectives in the same order: look for one under "
    "`if rank == ...`, or for loops of different lengths"
)
CALLS_DIFFER = (
    "let every rank make the same calls (under nccl, and with async_op=True, a rank waits at "
    "the line that needs the result), or give launch() a larger timeout="
)
COME = (
    "let every rank make that call: look for an `if rank == ...` around it, a slow rank, "
    "or ranks with different numbers of batches"
)
CHILD = (
    'start children with "spawn" or "forkserver", or before the threads; '
    "for a loader try num_workers=0"
)
STUCK = (
    "for a child process that does not end: a fork of a process with threads or CUDA in use often "
    "freezes"
)
HALVES = (
    "let one half of the ranks send while the other half receives, or use dist.batch_isend_irecv"
)


@pytest.mark.parametrize(
    ("ranks", "kind", "cause", "advice"),
    [
        pytest.param(
            [RankResult(0), RankResult(1)],
            "never-began",
            "no rank had begun its function: the machine is busy, or the limit is short",
            "try again with a larger timeout=",
            id="no rank has begun",
        ),
        pytest.param(
            [standing(0), standing(1)],
            "takes-longer",
            "no rank waits for another: the work itself takes longer than the limit",
            "give launch() a larger timeout=",
            id="all are busy",
        ),
        pytest.param(
            [standing(0, calls=3), standing(1), standing(2, calls=3)],
            "calls-differ",
            "no rank stands in a collective, but they have not called equally many "
            "(rank 0: 3, rank 1: 0, rank 2: 3): one is missing, or the work takes longer than the "
            "limit",
            CALLS_DIFFER,
            id="one has called less",
        ),
        pytest.param(
            [standing(0, FORKED), standing(1, inside("barrier"))],
            "child-stuck",
            f"rank 0 waits {STUCK}",
            CHILD,
            id="a child of one",
        ),
        pytest.param(
            [standing(0, FORKED), standing(1, LOADER)],
            "child-stuck",
            f"ranks 0 and 1 wait {STUCK}",
            CHILD,
            id="children of two",
        ),
        pytest.param(
            [
                standing(2, inside("barrier")),
                standing(0, inside("all_reduce")),
                standing(1, inside("barrier")),
            ],
            "different-collective",
            "the ranks wait in different calls (barrier on ranks 2 and 1, all_reduce on rank 0)",
            SAME,
            id="two calls, in the order in which they are met",
        ),
        pytest.param(
            [standing(0, inside("barrier")), standing(1), standing(2, inside("barrier"))],
            "rank-did-not-come",
            "ranks 0 and 2 wait in barrier, and not all ranks came",
            COME,
            id="one does not come",
        ),
        pytest.param(
            [standing(0, inside("all_reduce")), RankResult(1)],
            "rank-did-not-come",
            "rank 0 waits in all_reduce, and not all ranks came",
            COME,
            id="one has not even begun",
        ),
        pytest.param(
            [standing(0, inside("init_process_group")), standing(1, inside("init_process_group"))],
            "rank-missing",
            "all ranks wait in init_process_group for more ranks than were started",
            "leave world_size to the launcher, or start as many ranks as it says",
            id="too few were started",
        ),
        pytest.param(
            [standing(0, inside("recv")), standing(1, inside("recv"))],
            "all-wait",
            "every rank waits in recv, and none sends",
            HALVES,
            id="all receive",
        ),
        pytest.param(
            [standing(0, inside("send")), standing(1, inside("send"))],
            "all-wait",
            "every rank waits in send, and none receives",
            HALVES,
            id="all send",
        ),
    ],
)
def test_where_the_ranks_stand_tells_the_cause(ranks, kind, cause, advice):
    assert diagnose(ranks, hang=True) == [Diagnosis(kind, cause, advice)]
    assert diagnose(ranks) == []  # before a limit ran out nobody is late


@pytest.mark.parametrize(
    "frame",
    [
        inside("poll", "multiprocessing/popen_spawn_posix.py"),
        inside("_get_data", "mine/dataloader.py"),
        inside("__init__", "torch/utils/data/dataloader.py"),
    ],
)
def test_what_only_looks_like_a_wait_for_a_child_is_none(frame):
    assert [found.kind for found in diagnose([standing(0, frame)], hang=True)] == ["takes-longer"]


def test_a_loader_that_waits_for_its_worker_is_known_by_either_function():
    for function in ("_get_data", "_try_get_data"):
        frame = inside(function, "torch/utils/data/dataloader.py")
        assert diagnose([standing(0, frame)], hang=True)[0].kind == "child-stuck"


# ---- not the stacks alone


def gone(rank, text="[pair.cc:553] Connection closed by peer"):
    return RankResult(rank, exit_code=1, error=RankError("RuntimeError", text, "", (LINE,)))


def test_a_rank_that_ended_early_is_named_with_those_that_waited():
    ranks = [RankResult(0, exit_code=0), gone(1), standing(2, inside("barrier"))]
    ended_early = Diagnosis(
        "rank-ended-early",
        "rank 0 finished while ranks 1 and 2 still waited for it",
        "every rank must make the same collective calls: look for one under `if rank == 0`, "
        "or for ranks with different numbers of batches",
    )
    assert diagnose(ranks) == [ended_early]
    assert diagnose(ranks, hang=True) == [ended_early]  # and not also as one that did not come


def test_messages_both_ways_name_another_rank_on_each_and_that_is_right():
    def at(rank, name):
        call = LastCall(3, name, LINE, "0 of 2", "float32 (5,)", peer=1 - rank)
        return RankResult(rank, exit_code=None, stack=(LINE, inside(name)), last_call=call)

    found = find_slips([at(0, "broadcast"), at(1, "broadcast")])
    assert [diagnosis.kind for diagnosis in found] == ["different-roots"]
    assert find_slips([at(0, "batch_isend_irecv"), at(1, "batch_isend_irecv")]) == []


def test_nobody_ended_early_while_another_rank_has_its_own_trouble():
    waits, done = standing(1, inside("barrier")), RankResult(0, exit_code=0)
    assert diagnose([done, waits, standing(2)]) == []
    assert diagnose([done, waits, RankResult(2, exit_code=3)]) == []
    own = RankResult(2, exit_code=1, error=RankError("ValueError", "bad", ""))
    assert diagnose([done, waits, own]) == []
    assert diagnose([standing(0, inside("barrier")), waits]) == []


def test_a_busy_rank_that_the_others_gave_up_on_is_named():
    late = [
        gone(0, "[x.cc:78] Timed out waiting 500ms for recv"),
        gone(2, "[x.cpp:1] Socket Timeout"),
    ]
    told = Diagnosis(
        "rank-did-not-come",
        "ranks 1 and 3 did not come to the collective within the group's limit",
        "prepare data once and before the run, or give process_group() a larger timeout=",
    )
    busy = [standing(1), standing(3), RankResult(4)]
    assert diagnose([*late, *busy]) == [told]
    assert diagnose([*late, *busy], hang=True) == [told]
    for one in late:
        assert diagnose([one, *busy]) == [told]


def test_nobody_came_late_where_another_reason_is_known():
    impatient = gone(0, "[x.cc:78] Timed out waiting 500ms for recv")
    assert diagnose([impatient, standing(1, inside("barrier"))]) == []
    assert diagnose([gone(0), standing(1)]) == []  # the peer is gone, and nobody lost patience
    own = RankResult(2, exit_code=1, error=RankError("ValueError", "bad", ""))
    assert diagnose([impatient, standing(1), own]) == []
    assert diagnose([impatient, RankResult(1)]) == []  # it stands nowhere
