"""What the explorables compute, against real ranks that do it."""

import pytest

from ddp_helpers import launch
from ddp_helpers.widgets import (
    accumulation,
    collectives,
    fault_lab,
    monitor,
    one_step,
    overlap,
    ring,
)

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


def gradients_of_both_ways(name, batch):
    """This rank's gradients by threads and by DDP, from the explorable's own steps."""
    from concurrent.futures import ThreadPoolExecutor
    from copy import deepcopy

    import torch

    from ddp_helpers import process_group

    with process_group("gloo") as pg, ThreadPoolExecutor(2) as pool:
        torch.manual_seed(0)
        model = one_step.model_named(name).double()
        ddp = torch.nn.parallel.DistributedDataParallel(deepcopy(model))
        images = torch.randn(batch, 1, 28, 28, dtype=torch.float64)
        labels = torch.randint(0, 10, (batch,))
        whole = deepcopy(model)
        torch.nn.functional.cross_entropy(whole(images), labels).backward()
        replicas = [deepcopy(model) for _ in range(2)]
        one_step.threads_step(model, replicas, images, labels, pool)
        share = [tensor.chunk(2)[pg.rank] for tensor in (images, labels)]
        one_step.ddp_step(ddp, *share, pg.rank, [])
        nets = (whole, model, ddp)
        return [[p.grad for p in net.parameters()] for net in nets]


@pytest.mark.parametrize("name", one_step.MODELS)
def test_both_measured_steps_give_the_gradients_of_the_whole_batch(name):
    import torch

    for whole, threads, ddp in launch(
        gradients_of_both_ways, 2, args=(name, 16), echo=False, timeout=60
    ).values:
        for theirs in (threads, ddp):
            for one, other in zip(whole, theirs, strict=True):
                torch.testing.assert_close(one, other, atol=1e-12, rtol=0)


def test_a_measured_step_has_each_part_of_each_worker_in_order():
    found = one_step.run("60 thin layers", workers=2, batch=64, moment=0)
    threads, ddp = found["DataParallel"], found["DDP"]
    assert {part.worker for part in threads.parts} == {"thread 0", "thread 1"}
    assert {part.worker for part in ddp.parts} == {"rank 0", "rank 1"}
    names = [part.name for part in threads.parts if part.worker == "thread 0"]
    assert names == ["hand out", "copy weights", "forward", "collect", "backward", "collect"]
    for rank in ("rank 0", "rank 1"):
        parts = {part.name: part for part in ddp.parts if part.worker == rank}
        assert set(parts) == {"forward", "backward", "average"}
        assert parts["forward"].stop <= parts["backward"].start <= parts["average"].start
        assert parts["average"].stop <= parts["backward"].stop + 1  # backward waits for it
    for step in (threads, ddp):
        assert 0 < max(part.stop for part in step.parts) == step.ms < 10_000


def test_smaller_buckets_make_more_all_reduces():
    few = overlap.run(layers=4, width=128, batch=16, bucket_mib=25.0, ranks=2)
    many = overlap.run(layers=4, width=128, batch=16, bucket_mib=0.05, ranks=2)
    assert [len(timeline.steps[-1].all_reduces) for timeline in few] == [1, 1]
    assert [len(timeline.steps[-1].all_reduces) for timeline in many] == [4, 4]
    words = overlap.draw(4, 128, 16, 0.05, 2, many).words
    assert "4 all-reduces in a step" in words


def test_a_watched_training_tells_every_step_of_every_rank():
    watch = monitor.watched(ranks=2, epochs=1, batch_size=128, slow_ms=0)
    assert not watch.failed
    for one in watch.ranks:
        assert (one.step, one.total, one.how) == (16, 16, "done")
        assert one.losses[-1][1] < one.losses[0][1]
        assert one.steps_per_second() > 0


def test_a_watched_training_can_be_stopped():
    watch = monitor.Watch([monitor.OfRank() for _ in range(2)])

    def stop_after_a_few():
        watch.stop = watch.stop or watch.ranks[1].step > 3

    watch.news = stop_after_a_few
    monitor.watched(ranks=2, epochs=10, batch_size=16, slow_ms=20, watch=watch)
    assert not watch.failed
    assert all(one.how == "ended" and 0 < one.step < one.total for one in watch.ranks)


def test_a_training_that_fails_is_told():
    watch = monitor.watched(ranks=1, epochs=1, batch_size=0, slow_ms=0)
    assert watch.failed.startswith("LaunchError: rank 0 failed: ValueError")


def test_a_fault_and_its_mend_run_on_real_ranks():
    seen = fault_lab.run("silently wrong", "no_set_epoch", "faulty", "...")
    assert "epoch-not-advanced" in seen.kinds
    words = fault_lab.draw("silently wrong", "no_set_epoch", "faulty", "...", seen).words
    assert words.startswith("Ran on 2 real ranks (faulty): rank 0 ")
    mended = fault_lab.run("silently wrong", "no_set_epoch", "mended", "...")
    assert all(fault_lab.how_it_ended(rank) == "returned" for rank in mended.result.ranks)
