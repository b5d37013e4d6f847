"""`report()` costs little, says what it was told, and never waits long."""

import socket
import time

import pytest

from ddp_helpers.ranks import progress, wire
from ddp_helpers.ranks.messages import Report
from ddp_helpers.ranks.progress import report


@pytest.fixture
def launcher(monkeypatch):
    """The launcher's end, and a clock that a test sets."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    monkeypatch.setattr(progress, "_last_sent", 0.0)
    progress.connect(theirs)
    with ours, theirs:
        yield ours
    progress.connect(None)


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def heard(launcher):
    found = []
    try:
        while True:
            found.append(wire.read_message(launcher.recv(wire.LONGEST_MESSAGE)))
    except BlockingIOError:
        return found


def test_outside_of_a_launch_it_does_nothing():
    assert report(step=1) is None


@pytest.mark.parametrize(
    ("told", "arrives"),
    [
        ({"step": 3}, Report(3, None, None)),
        ({"step": 3, "total": 9, "loss": 0.5}, Report(3, 9, 0.5)),
        ({"step": 3.0, "total": 9.0, "loss": 2}, Report(3, 9, 2.0)),
        ({"step": 0, "total": 9, "loss": float("nan")}, Report(0, 9, "nan")),
        ({"step": 1, "loss": float("-inf")}, Report(1, None, "-inf")),
    ],
)
def test_what_is_told_arrives(launcher, told, arrives):
    report(**told)
    (found,) = heard(launcher)
    assert found == arrives
    assert type(found.step) is int
    assert found.loss is None or type(found.loss) is type(arrives.loss)


def test_more_than_a_reader_can_see_is_left_out(launcher, clock):
    for milliseconds in range(100):
        clock[0] = 1000 + milliseconds / 1000
        report(step=milliseconds, total=1000)
    assert [found.step for found in heard(launcher)] == [0, 34, 68]


def test_the_moment_counts_from_the_last_one_that_was_sent(launcher, clock):
    report(step=1)
    clock[0] += 1 / progress.MOST_PER_SECOND
    report(step=2)
    assert [found.step for found in heard(launcher)] == [1, 2]


def test_the_last_one_is_always_told(launcher, clock):
    for step in range(1, 6):
        report(step=step, total=5)
    assert [found.step for found in heard(launcher)] == [1, 5]


def fill(launcher):
    while True:
        try:
            wire.send_report(progress._link, Report(0))
        except BlockingIOError:
            return


def test_a_busy_launcher_loses_one(launcher):
    fill(launcher)
    report(step=77)
    assert 77 not in [found.step for found in heard(launcher)]


def test_for_the_last_one_it_waits_a_moment(launcher, monkeypatch):
    monkeypatch.setattr(progress, "LAST_ONE_WAITS", 0.05)
    fill(launcher)
    started = time.monotonic()
    report(step=5, total=5)
    assert 0.04 < time.monotonic() - started < 5
    fill(launcher)
    monkeypatch.setattr(progress, "LAST_ONE_WAITS", 30)
    started = time.monotonic()
    report(step=5, total=6)  # not the last
    heard(launcher)
    report(step=6, total=6)
    assert time.monotonic() - started < 20
    assert heard(launcher)[-1].step == 6
