"""Seats: what is enough, and what is not."""

import math
from dataclasses import replace

import pytest

from ddp_helpers.classroom import room as classroom
from ddp_helpers.classroom.seats import SeatCost, measure

MIB, GIB = 2**20, 2**30
COST = SeatCost(500 * MIB, 400 * MIB, 5, 13, 7, 90, 40, 0)
ROOM = classroom.Room(16, 64 * GIB, 8 * GIB, 28_000, 30_000, 1e6, 4096)


def row(name, seats=30, **changes):
    return classroom.judge(seats, COST, replace(ROOM, **changes))[name]


def test_a_large_machine_seats_thirty():
    report = classroom.judge(30, COST, replace(ROOM, cores=32, threads=math.inf))
    assert report.ok
    assert report.summary == "7 pass, 0 warn, 0 fail"
    assert "no limit there" in report["Processes"].value


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("Memory", {"memory": 8 * GIB}),
        ("/dev/shm", {"shm": 64 * MIB}),
        ("Ports", {"ports": 100}),
        ("Processes", {"threads": 256}),
        ("Open files", {"files": 1000}),
        ("Open files of one", {"files_of_a_process": 64}),
    ],
)
def test_what_is_missing_is_named_with_a_way_out(name, changes):
    assert row(name).status == "pass"
    found = row(name, **changes)
    assert found.status == "fail"
    assert found.advice


def test_memory_says_how_many_seats_fit():
    # 8 GiB less a tenth: the first seat takes 500 MiB, each further one 400
    seats = 1 + int((0.9 * 8192 - 500) // 400)
    found = row("Memory", memory=8 * GIB)
    assert f"About {seats} seats fit" in found.advice
    assert "a further seat adds 400 MiB, measured" in found.value
    assert row("Memory", seats=seats, memory=8 * GIB).status == "pass"
    assert row("Memory", seats=seats + 4, memory=8 * GIB).status == "fail"


def test_few_cores_make_everybody_wait_but_fail_nobody():
    found = row("CPU cores", cores=2)
    assert found.status == "warn"
    assert "up to 30 times as long" in found.advice
    assert row("CPU cores", cores=30).status == "pass"


@pytest.mark.parametrize("seats", [0, -1, True, 2.5])
def test_seats_must_be_a_number(seats):
    with pytest.raises(ValueError, match="expected a whole number, at least 1"):
        classroom.check(seats)


@pytest.mark.usefixtures("no_process_left")
def test_a_seat_is_measured_with_real_ranks():
    cost = measure()
    assert cost.processes >= 4  # a kernel, its fork server, two ranks
    assert 50 * MIB < cost.memory <= cost.first_memory * 1.5
    assert cost.threads >= cost.processes
    assert cost.sockets >= 2
    assert cost.files > cost.most_files > 10


def test_the_room_is_looked_at():
    room = classroom.look()
    assert room.cores >= 1
    assert room.memory > 0
    assert room.ports > 1000
