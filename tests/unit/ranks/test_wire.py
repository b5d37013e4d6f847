"""Launcher and rank speak over real sockets, and hand over real files."""

import json
import os
import re
import signal
import socket
import time
from dataclasses import astuple

import pytest
from small_ranks import Child, memory_file

from ddp_helpers.evidence.records import Finding, RankError
from ddp_helpers.ranks import wire
from ddp_helpers.ranks.messages import Job, Outcome, Report

FILES = 6


@pytest.fixture
def link():
    """A launcher's and a rank's end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def called():
    """A launcher that rank 11 has called: the launcher's end and the rank's."""
    listener, address = wire.listen(2)
    with listener, wire.call(address, 11) as theirs, listener.accept()[0] as ours:
        yield ours, theirs


def test_a_rank_that_calls_says_its_number(called):
    assert wire.number_of(called[0]) == 11
    assert called[0].gettimeout() == wire.HAND_OVER_LIMIT == 5.0


def test_nobody_else_knows_the_name():
    names = set()
    for _ in range(2):
        listener, address = wire.listen(1)
        with listener:
            assert re.fullmatch(rf"ddp_helpers-{os.getpid()}-[0-9a-f]{{32}}", address)
            assert listener.getsockname() == b"\0" + address.encode()  # abstract: no file
            assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_SEQPACKET
        names.add(address)
    assert len(names) == 2


def test_another_users_process_is_not_served(called, monkeypatch):
    stranger = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: stranger)
    assert wire.number_of(called[0]) is None


def test_a_rank_that_is_gone_has_no_number(link):
    ours, theirs = link
    theirs.close()
    assert wire.number_of(ours) is None


def test_a_rank_that_says_nothing_is_not_waited_for(link, monkeypatch):
    monkeypatch.setattr(wire, "HAND_OVER_LIMIT", 0.01)
    assert wire.number_of(link[0]) is None


def test_the_kernel_says_who_called(link):
    assert wire.peer_of(link[0]) == (os.getpid(), os.getuid(), os.getgid())


def test_six_files_arrive_in_their_order_and_no_child_has_them(called):
    ours, theirs = called
    files = wire.RankFiles(*(memory_file() for _ in range(FILES)))
    wire.send_files(ours, files, 3)
    number, got = wire.receive_files(theirs)
    assert number == 3
    assert [os.fstat(f).st_ino for f in astuple(got)] == [
        os.fstat(f).st_ino for f in astuple(files)
    ]
    assert not any(map(os.get_inheritable, astuple(got)))
    for file in (*astuple(files), *astuple(got)):
        os.close(file)


def test_files_for_a_rank_that_is_gone(link):
    ours, theirs = link
    theirs.close()
    file = memory_file()
    with pytest.raises(OSError, match="Broken pipe"):
        wire.send_files(ours, wire.RankFiles(*[file] * FILES))
    os.close(file)


def test_a_launcher_that_hangs_up(link):
    ours, theirs = link
    ours.close()
    with pytest.raises(ConnectionError, match="^the launcher hung up$"):
        wire.receive_files(theirs)


def test_a_rank_that_stands_by_hears_the_first_word(link):
    ours, theirs = link
    assert not wire.is_here(ours)  # it has not said so yet
    theirs.send(wire.HERE)
    assert wire.is_here(ours)
    assert not wire.wait_for_word(theirs, 0.01)
    ours.send(b"0")
    assert wire.wait_for_word(theirs, 30)
    theirs.close()
    assert not wire.is_here(ours)


@pytest.mark.parametrize("reaped", [False, True])
def test_a_rank_that_stands_by_sees_its_launchers_end_though_a_child_keeps_the_socket(reaped):
    reader, writer = os.pipe()

    def launcher():
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if os.fork() == 0:  # this one holds the other end, too
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        socket.send_fds(back, [b"x"], [pair[1].fileno()])  # last: now it may be killed
        time.sleep(60)

    front, back = socket.socketpair(socket.AF_UNIX)
    child = Child(launcher)
    _, (file,), *_ = socket.recv_fds(front, 1, 1)
    theirs = socket.socket(fileno=file)
    assert not wire.wait_for_word(theirs, 0.05)
    os.kill(child.pid, signal.SIGKILL)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    if reaped:
        child.end()
    started = time.monotonic()
    assert not wire.wait_for_word(theirs, 60)
    assert time.monotonic() - started < 30
    os.close(writer)  # its child ends
    os.close(reader)
    child.end()
    for each in (front, back, theirs):
        each.close()


def test_a_job_arrives_as_it_was():
    job = Job(b"call", 2, {"A": "b"}, "/", ["x"], threads=3, sources={"c": "d"}, sanitize=4)
    file = memory_file()
    import pickle

    wire.write_whole(file, pickle.dumps(job))
    assert wire.read_job(file) == job
    os.close(file)


def test_what_a_job_is_without_more():
    job = Job(b"", 1, {}, "/", [], 1)
    assert (job.sources, job.names, job.temporary) == ({}, {}, "")
    assert not job.own_temporary
    assert job.sanitize == 0


@pytest.mark.parametrize(("own", "folder"), [(True, "/tmp/pymp-x3"), (False, "/tmp/pymp-x")])
def test_a_spawned_rank_has_a_folder_of_its_own(own, folder):
    job = Job(b"", 4, {}, "/", [], 1, temporary="/tmp/pymp-x", own_temporary=own)
    assert job.temporary_folder(3) == folder


def test_an_outcome_is_there_before_the_word_that_says_so(link):
    ours, theirs = link
    theirs.setblocking(False)
    finding = Finding("kind", "cause", "advice")
    outcome = Outcome(b"v" * 100_000, RankError("E", "m", "t"), 3, 1.5, (finding,))
    file = memory_file()
    wire.leave_outcome(outcome, file, theirs)
    assert theirs.getblocking()  # it must not be lost because the launcher is busy
    assert wire.read_message(ours.recv(wire.LONGEST_MESSAGE)) is None
    assert wire.read_outcome(file) == outcome
    os.close(file)


@pytest.mark.parametrize("loss", [0.25, "nan", None])
def test_a_report_is_one_json_text(link, loss):
    ours, theirs = link
    wire.send_report(theirs, Report(3, 10, loss))
    message = ours.recv(wire.LONGEST_MESSAGE)
    assert json.loads(message) == {"step": 3, "total": 10, "loss": loss}
    assert wire.read_message(message) == Report(3, 10, loss)


def test_a_report_does_not_wait_for_a_busy_launcher(link):
    def send_for_ever():
        while True:
            wire.send_report(link[1], Report(1))

    with pytest.raises(BlockingIOError):
        send_for_ever()


def test_a_file_is_read_whole_wherever_others_stand_in_it():
    file = memory_file()
    wire.write_whole(file, b"one")
    wire.write_whole(file, b"two")
    assert wire.read_whole(file) == b"onetwo"
    os.lseek(file, 4, os.SEEK_SET)
    assert wire.read_whole(file) == b"onetwo"
    os.close(file)


def test_one_call_may_read_or_write_less(monkeypatch):
    write, read = os.write, os.pread
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:2]))
    monkeypatch.setattr(os, "pread", lambda file, size, at: read(file, min(size, 3), at))
    file = os.memfd_create("test")
    wire.write_whole(file, b"abcdefg")
    assert wire.read_whole(file) == b"abcdefg"
    os.close(file)


def test_a_file_that_shrinks_meanwhile_is_no_endless_loop(monkeypatch):
    file = memory_file(b"abc")
    monkeypatch.setattr(os, "pread", lambda *_: b"")
    assert wire.read_whole(file) == b""
    os.close(file)


def test_the_signal_is_one_that_others_do_not_use():
    assert signal.SIGRTMIN < wire.STACK_SIGNAL < signal.SIGRTMAX
