"""The calls of a rank, as its launcher reads them."""

import os

import pytest

from ddp_helpers.evidence import timed_calls
from ddp_helpers.evidence.patches import Patches
from ddp_helpers.evidence.timed_calls import SLOT, SLOTS, TimedCalls, read_timed_calls


@pytest.fixture
def file():
    number = os.memfd_create("calls")
    yield number
    os.close(number)


def read(file, names=None):
    return read_timed_calls(os.pread(file, 1 << 20, 0), names or {})


def test_nothing_was_called(file):
    assert read(file) == ()


@pytest.fixture
def group():
    import torch.distributed as dist

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist
    dist.destroy_process_group()


@pytest.fixture
def watch(file, group):
    patches = Patches()
    TimedCalls(file).install(patches)
    yield group
    patches.undo()


def test_a_call_is_noted_with_its_bytes_its_group_and_its_line(watch, file):
    import torch

    watch.all_reduce(torch.ones(3))
    watch.broadcast(torch.ones(2, dtype=torch.float64), 0)
    first, second = read(file, {__file__: "cell In[1]"})
    assert (first.name, first.bytes, first.peer, first.group, first.place) == (
        *("all_reduce", 12, None, (0,), 0),
    )
    assert first.frame.filename == "cell In[1]"
    assert first.began == first.waited <= first.done <= second.began
    assert (second.name, second.bytes, second.peer, second.place) == ("broadcast", 16, 0, 1)


def test_an_asynchronous_call_waits_when_somebody_waits(watch, file):
    import torch

    work = watch.all_reduce(torch.ones(3), async_op=True)
    (flying,) = read(file)
    assert (flying.waited, flying.done) == (None, None)
    work.wait()
    (done,) = read(file)
    assert done.began < done.waited <= done.done


def test_a_call_that_raises_is_never_done(watch, file):
    import torch

    with pytest.raises(RuntimeError):  # gloo has no sum of such numbers
        watch.all_reduce(torch.ones(2, dtype=torch.int16))
    (only,) = read(file)
    assert (only.name, only.done) == ("all_reduce", None)


def test_a_backward_is_noted(watch, file):
    import torch

    torch.ones(2, requires_grad=True).sum().backward()
    (only,) = read(file)
    assert (only.name, only.kind) == ("backward", "alone")
    assert only.done >= only.began


def test_the_last_calls_are_kept_in_the_order_in_which_they_began(watch, file):
    import torch

    for _ in range(SLOTS + 5):
        watch.barrier()
    watch.all_reduce(torch.ones(1))
    calls = read(file)
    assert len(calls) == SLOTS
    assert calls[-1].name == "all_reduce"
    assert [call.place for call in calls] == list(range(6, SLOTS + 6))


def test_a_record_that_is_too_long_loses_its_place_and_not_its_times(file):
    noted = TimedCalls(file)
    noted._write(0, ["all_reduce", "f" * SLOT, 1, "g", "all", 4, None, [0], 0, 1.0, 1.0, 2.0])
    (only,) = read(file)
    assert (only.name, only.bytes, only.began, only.done) == ("all_reduce", 4, 1.0, 2.0)


def test_half_a_record_of_a_rank_that_died_is_left_out(file):
    TimedCalls(file)._write(0, ["barrier", "", 0, "", "all", 0, None, [], 0, 1.0, 1.0, 2.0])
    os.pwrite(file, b'[1, "all_re', timed_calls.BEGIN + SLOT)
    assert [call.name for call in read(file)] == ["barrier"]
