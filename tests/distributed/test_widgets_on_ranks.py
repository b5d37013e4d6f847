"""What the explorables compute, against real ranks that do it."""

import pytest

from ddp_helpers import launch
from ddp_helpers.widgets import accumulation, collectives, ring

pytestmark = pytest.mark.usefixtures("no_process_left")


def follow(schedule):
    """All-reduce by sends and receives of a schedule: this rank's chunks after each step."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    rank, ranks = dist.get_rank(), dist.get_world_size()
    chunks = torch.full((ranks, 5), 2.0**rank)  # a sum tells whose numbers are in it
    seen = []
    for step in schedule:
        work, rooms = [], []
        before = chunks.clone()
        for send in step:
            for chunk in send.chunks:
                if send.source == rank:
                    work.append(dist.isend(before[chunk], send.target, tag=chunk))
                if send.target == rank:
                    rooms.append((send, chunk, torch.zeros(5)))
                    work.append(dist.irecv(rooms[-1][2], send.source, tag=chunk))
        for one in work:
            one.wait()
        for send, chunk, room in rooms:
            chunks[chunk] = chunks[chunk] + room if send.adds else room
        seen.append(chunks[:, 0].int().tolist())
    theirs = torch.full((ranks, 5), 2.0**rank)
    dist.all_reduce(theirs)
    dist.barrier()
    dist.destroy_process_group()
    return seen, torch.equal(chunks, theirs)


@pytest.mark.parametrize("ranks", [2, 3, 5])
@pytest.mark.parametrize("way", [ring.ring_schedule, ring.naive_schedule])
def test_real_ranks_that_follow_the_schedule_hold_what_is_drawn(way, ranks):
    schedule = way(ranks)
    values = launch(follow, ranks, args=(schedule,), echo=False, timeout=60).values
    assert [equal for _, equal in values] == [True] * ranks  # as torch's own all_reduce
    for step in range(len(schedule)):
        drawn = ring.held_after(schedule, ranks, step + 1)
        for rank in range(ranks):
            real = [{r for r in range(ranks) if total >> r & 1} for total in values[rank][0][step]]
            assert [set(whose) for whose in drawn[rank]] == real


@pytest.mark.parametrize(
    ("op", "after"),
    [
        ("broadcast", [(10, 11)] * 3),
        ("all_reduce", [(60, 63)] * 3),
        ("reduce", [(60, 63), (), ()]),
        ("all_gather", [(10, 11, 20, 21, 30, 31)] * 3),
        ("gather", [(10, 11, 20, 21, 30, 31), (), ()]),
        ("scatter", [(10, 11), (12, 13), (14, 15)]),
        ("reduce_scatter", [(60, 63), (66, 69), (72, 75)]),
        (
            "all_to_all",
            [(10, 11, 20, 21, 30, 31), (12, 13, 22, 23, 32, 33), (14, 15, 24, 25, 34, 35)],
        ),
    ],
)
def test_each_collective_gives_each_rank_its_answer(op, after):
    assert op in collectives.OPS
    moved = collectives.run(op, ranks=3, count=2, kib=64)
    assert [row.after for row in moved] == after
    assert [list(row.before) for row in moved] == [
        collectives.numbers(op, rank, 3, 2) for rank in range(3)
    ]


def test_the_bytes_are_those_of_the_ring():
    """gloo's all_reduce of a large tensor: each rank sends 2 (n - 1) / n of it."""
    moved = collectives.run("all_reduce", ranks=4, count=2, kib=1024)
    if moved[0].sent is None:
        pytest.skip("this kernel does not count bytes of a connection")
    for row in moved:
        assert row.sent / 2**20 == pytest.approx(2 * 2 * 3 / 4, rel=0.02)


def test_a_root_sends_and_a_leaf_of_a_gather_does_not_receive():
    moved = collectives.run("gather", ranks=2, count=1, kib=1024)
    if moved[0].sent is None:
        pytest.skip("this kernel does not count bytes of a connection")
    assert moved[0].sent < 10_000
    assert moved[1].sent / 2**20 == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("way", accumulation.WAYS)
@pytest.mark.parametrize(("steps", "accumulate", "ranks"), [(2, 3, 2), (3, 1, 3)])
def test_ranks_talk_when_it_is_drawn(way, steps, accumulate, ranks):
    counted = accumulation.run(steps, accumulate, ranks, way, mib=1)
    assert counted == [accumulation.talks(steps, accumulate, way)] * ranks
