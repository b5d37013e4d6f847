"""Seats: what is enough, and what is not."""

import json
import math
import sys
from dataclasses import replace

import pytest

from ddp_helpers import cli
from ddp_helpers.classroom import rights
from ddp_helpers.classroom import room as classroom
from ddp_helpers.classroom.seats import SeatCost, measure
from ddp_helpers.classroom.watch import Held
from ddp_helpers.cluster import namespaces
from ddp_helpers.environment import facts

MIB, GIB = 2**20, 2**30
HELD = Held(400 * MIB, 100 * MIB, 5, 13, 2, 7, 90, 40, 60.0)
COST = SeatCost("06", 45.0, HELD)
ROOM = classroom.Room(16, 64 * GIB, 8 * GIB, 28_000, 30_000, 1e6, 4096)


def row(name, seats=30, **changes):
    return classroom.judge(seats, [COST], replace(ROOM, **changes))[name]


def test_a_large_machine_seats_thirty():
    report = classroom.judge(30, [COST], replace(ROOM, cores=32, threads=math.inf))
    assert report.ok
    assert report.summary == "8 pass, 0 warn, 0 fail"
    assert classroom.verdict(30, report) == "30 seats fit here"
    few = classroom.judge(30, [COST], replace(ROOM, cores=2))
    assert classroom.verdict(30, few) == "30 seats fit here, and share few cores: see CPU cores"
    tight = classroom.judge(30, [COST], replace(ROOM, memory=GIB, shm=MIB))
    says = "30 seats do not fit here as things are: see Memory, /dev/shm"
    assert classroom.verdict(30, tight) == says
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
    # 8 GiB less a tenth: 100 MiB for all, and each seat takes 400
    seats = int((0.9 * 8192 - 100) // 400)
    found = row("Memory", memory=8 * GIB)
    assert f"About {seats} seats fit" in found.advice
    assert "400 MiB a seat at its peak, and 100 MiB that all share" in found.value
    assert row("Memory", seats=seats, memory=8 * GIB).status == "pass"
    assert row("Memory", seats=seats + 4, memory=8 * GIB).status == "fail"


def test_few_cores_make_everybody_wait_but_fail_nobody():
    found = row("CPU cores", cores=2)
    assert found.status == "warn"
    assert "up to 30 times as long" in found.advice
    # 30 seats x 60 s of work on 2 cores
    assert "the whole notebook takes them about 15 min" in found.value
    assert row("CPU cores", cores=30).status == "pass"
    four = replace(COST, held=replace(HELD, ranks=4))
    assert classroom.judge(25, [four], replace(ROOM, cores=32))["CPU cores"].status == "warn"


@pytest.mark.parametrize("seats", [0, -1, True, 2.5])
def test_seats_must_be_a_number(seats):
    with pytest.raises(ValueError, match="expected a whole number, at least 1"):
        classroom.check(seats)


def cell(source, *tags):
    return {"cell_type": "code", "metadata": {"tags": [*tags]}, "source": [source], "outputs": []}


HOLDS = """
import time, torch
from ddp_helpers import launch, process_group

def hold():
    with process_group("gloo"):
        kept = torch.ones({megabytes} * 2**18)
        time.sleep(1.5)

launch(hold, 3, echo=False)
"""


@pytest.mark.usefixtures("no_process_left")
def test_a_lesson_is_really_run_and_its_ranks_are_counted(tmp_path, monkeypatch, capsys):
    lesson = tmp_path / "17_heavy.ipynb"
    cells = [
        cell("1 / 0", "raises-exception"),
        cell(HOLDS.format(megabytes=80)),
        cell("missing"),
        {"cell_type": "markdown", "metadata": {}, "source": ["the end"]},
    ]
    lesson.write_text(json.dumps({"cells": cells}))
    cost = measure(lesson)
    assert cost.lesson == "17"
    assert cost.held.ranks == 3
    # a kernel and its fork server with torch, too; what three ranks share with it is counted once
    assert 3 * 80 * MIB < cost.held.memory < 3 * 80 * MIB + 700 * MIB
    assert 30 * MIB < cost.held.files_mapped < 800 * MIB
    assert cost.held.processes >= 5
    assert cost.held.threads >= cost.held.processes
    assert cost.held.sockets >= 3
    assert cost.held.files > cost.held.most_files > 10
    assert 1 < cost.held.cpu_seconds < 60
    assert cost.problem == "cell 2 of 17: NameError: name 'missing' is not defined"
    assert classroom.judge(1, [cost], ROOM)["Notebook 17"].status == "fail"

    monkeypatch.setattr(classroom, "measure", {lesson: cost}.get)  # once is enough
    words = ["--seats", "2", "--notebook", "17", "--from", str(tmp_path)]
    assert cli.main(["classroom", "check", *words]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith("running 17_heavy.ipynb in a kernel: ")
    assert "2 seats do not fit here as things are: see Notebook 17" in printed
    assert "Notebook 17 run here alone: " in printed
    assert "at most 3 ranks" in printed
    assert "NameError: name 'missing'" in printed
    for row in ("Namespaces", "py-spy", "2 at once need", "CPU cores"):
        assert row in printed


def test_of_two_lessons_the_heavier_counts_in_each_regard():
    other = SeatCost("03", 20.0, replace(HELD, memory=GIB, ranks=1), problem="cell 3")
    both = COST.or_more(other)
    assert (both.lesson, both.seconds, both.problem) == ("06, 03", 45.0, "cell 3")
    assert (both.held.memory, both.held.ranks) == (GIB, 2)
    assert both.memory_of(8) == 8 * GIB + 100 * MIB
    report = classroom.judge(8, [COST, other], ROOM)
    assert "8 at once need 3.2 GiB of memory" in report["Notebook 06"].value
    assert "8 at once need 8.1 GiB of memory" in report["Notebook 03"].value
    assert report["Memory"].value.startswith("8.1 GiB needed")


def test_a_lesson_that_is_not_there(tmp_path, capsys):
    assert cli.main(["classroom", "check", "--notebook", "17"]) == 2
    assert "no notebook 17 in" in capsys.readouterr().err


# ------------------------------------------------------------------ rights and limits


def test_a_control_group_far_above_limits_the_tasks(tmp_path, monkeypatch):
    for name in ("PROC", "CGROUP"):
        monkeypatch.setattr(facts, name, tmp_path / name)
    monkeypatch.setattr(facts, "tasks", lambda: (math.inf, 0))
    pods = tmp_path / "CGROUP/pods"
    (pods / "hub/seat").mkdir(parents=True)
    (tmp_path / "PROC/self").mkdir(parents=True)
    (tmp_path / "PROC/self/cgroup").write_text("0::/pods/hub/seat\n")
    assert rights.tasks_left() == math.inf
    for folder, most, now in (("hub/seat", "max", 3), ("hub", "500", 100), ("", "350", 120)):
        (pods / folder / "pids.max").write_text(most)
        (pods / folder / "pids.current").write_text(f"{now}\n")
    assert rights.tasks_left() == 230
    (tmp_path / "PROC/sys/kernel").mkdir(parents=True)
    (tmp_path / "PROC/sys/kernel/threads-max").write_text("70")
    for thread in (1, 2):
        (tmp_path / f"PROC/10/task/{thread}").mkdir(parents=True)
    assert rights.tasks_left() == 68


def test_no_namespaces_is_a_warning_with_its_reason(monkeypatch):
    monkeypatch.setattr(namespaces, "PATH", "/nowhere")
    found = rights.namespaces()
    assert found.status == "warn"
    assert "not allowed" in found.value
    assert "on loopback" in found.advice


@pytest.mark.usefixtures("no_process_left")
def test_py_spy_is_tried(monkeypatch, tmp_path):
    found = rights.py_spy()
    assert found.value in ("may look into a process", "not installed") or found.advice
    # one that may not look
    (tmp_path / "python").symlink_to(sys.executable)
    (tmp_path / "py-spy").write_text("#!/bin/sh\necho 'Error: Permission Denied' >&2; exit 1\n")
    (tmp_path / "py-spy").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    found = rights.py_spy()
    assert (found.status, found.value) == ("warn", "Error: Permission Denied")
    assert "ptrace_scope" in found.advice
    (tmp_path / "py-spy").unlink()
    assert rights.py_spy().value == "not installed"


def test_the_room_is_looked_at():
    room = classroom.look()
    assert room.cores >= 1
    assert room.memory > 0
    assert room.ports > 1000
