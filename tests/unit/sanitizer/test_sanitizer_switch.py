"""Switching the sanitizer on and off in one process, for a block, a group and a whole script."""

import os
import sys
from datetime import timedelta

import pytest
import torch.distributed as dist
from one_process import DictStore

from ddp_helpers.evidence.records import Finding
from ddp_helpers.sanitizer import FAILED, Options, install, sanitize, uninstall
from ddp_helpers.sanitizer.script import watch_script
from ddp_helpers.sanitizer.talk.channel import Channel
from ddp_helpers.sanitizer.talk.session import DEFAULT_TIMEOUT, SanitizerError

SERIOUS = Finding("kind", "the cause", "the advice")


@pytest.fixture(autouse=True)
def untold(monkeypatch):
    """No launcher has started this process."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_NTASKS", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def group():
    """Start a process group of one rank; ended after the test."""

    def start(**options):
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1, **options)

    yield start
    if dist.is_initialized():
        dist.destroy_process_group()


def connect(session):
    """Let a session take its world for one of two ranks."""
    session.world_size, session.channel = 2, Channel(DictStore(), 0, 2)


def test_it_is_on_once_and_off_again():
    before = dist.init_process_group, dist.all_reduce, dist.ProcessGroup.allreduce
    session = install(Options(4), {"x.py": "cell In[1]"})
    try:
        assert session.options.every == 4
        assert session.names == {"x.py": "cell In[1]"}
        assert dist.init_process_group is not before[0]
        with pytest.raises(RuntimeError, match="already watches this process: switch it on once"):
            install()
    finally:
        uninstall(session)
    assert (dist.init_process_group, dist.all_reduce, dist.ProcessGroup.allreduce) == before
    uninstall(install())  # it can be switched on again


def test_a_group_that_runs_already(group):
    group()
    session = install()
    try:
        assert (session.rank, session.world_size, session.channel) == (0, 1, None)
        assert session.timeout == DEFAULT_TIMEOUT
    finally:
        uninstall(session)


def test_the_life_of_a_group(group):
    session = install()
    told = []
    session.on_group.append(lambda: told.append(session.timeout))
    session.at_end.append(lambda: told.append("end"))
    try:
        group(timeout=timedelta(seconds=7))
        assert told == [7.0]
        connect(session)
        dist.destroy_process_group()
        assert told == [7.0, "end"]
        assert session.channel is None
        assert not dist.is_initialized()
    finally:
        uninstall(session)


def test_a_group_that_is_destroyed_after_an_error(group):
    session = install()
    told = []
    session.at_end.append(lambda: told.append("end"))
    try:
        group()
        connect(session)
        line = session.line
        try:
            raise KeyError("the program's own")
        except KeyError:
            dist.destroy_process_group()
        assert told == []
        assert line.read("end", [0], str) == {0: FAILED}
    finally:
        uninstall(session)


def test_a_block_that_is_watched():
    with sanitize(every=3) as session:
        assert session.options.every == 3
        with sanitize() as inner:  # switched on from outside, too
            assert inner is session
        assert session.patches is inner.patches
        original = dist.init_process_group
    assert dist.init_process_group is not original


def test_what_is_found_at_the_end_of_a_block(capsys):
    def run():
        with sanitize() as session:
            connect(session)
            session.at_last.append(lambda: session.found(SERIOUS))
            session.findings.append(Finding("slow", "a note", "mend it", serious=False))

    with pytest.raises(SanitizerError, match="the cause"):
        run()
    told = capsys.readouterr().err
    assert "sanitizer, a note: a note" in told
    assert "the cause" not in told  # it is raised
    with sanitize():  # it is off again
        pass


def test_an_error_in_a_block():
    told, lines = [], []

    def run():
        with sanitize() as session:
            connect(session)
            lines.append(session.line)
            session.at_end.append(lambda: told.append("end"))
            raise KeyError("the program's own")

    with pytest.raises(KeyError):
        run()
    assert told == []
    assert lines[0].read("end", [0], str) == {0: FAILED}
    with sanitize():
        pass


@pytest.fixture
def script(monkeypatch):
    """Watch a script; returns its session, what to call at its end, and how it ended."""
    registered, codes = [], []
    monkeypatch.setattr("atexit.register", lambda *call: registered.append(call))
    monkeypatch.setattr(os, "_exit", codes.append)
    monkeypatch.setattr(sys, "excepthook", lambda *error: None)
    session = watch_script(every=2)
    (call,) = registered
    yield session, lambda: call[0](*call[1:]), codes
    session.patches.undo()


def test_a_script_that_is_right(script):
    session, end, codes = script
    assert session.options.every == 2
    end()
    assert codes == []


def test_a_script_in_which_something_is_found_only_at_its_end(script, capsys):
    session, end, codes = script
    connect(session)
    session.at_last.append(lambda: session.found(SERIOUS))
    end()
    assert codes == [1]
    assert "sanitizer: the cause" in capsys.readouterr().err


def test_a_script_with_a_note_ends_as_it_would(script, capsys):
    session, end, codes = script
    session.findings.append(Finding("slow", "a note", "mend it", serious=False))
    end()
    assert codes == []
    assert "a note" in capsys.readouterr().err


@pytest.mark.parametrize(("others", "expected"), [([], []), ([Finding("b", "b", "c")], [1])])
def test_a_script_that_ended_by_a_finding(script, capsys, others, expected):
    session, end, codes = script
    connect(session)
    line = session.line
    error = SanitizerError(SERIOUS)
    session.findings += [SERIOUS, *others]
    sys.excepthook(SanitizerError, error, None)
    end()
    assert codes == expected  # Python itself makes it fail
    assert "the cause" not in capsys.readouterr().err
    assert line.read("end", [0], str) == {0: FAILED}


def test_a_fork_of_a_script(script, monkeypatch):
    session, end, codes = script
    session.findings.append(SERIOUS)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    end()
    assert codes == []
    monkeypatch.undo()
    uninstall(session)
