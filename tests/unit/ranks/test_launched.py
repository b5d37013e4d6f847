"""What a launcher makes of a rank's output, words and end; with small processes."""

import contextlib
import os
import pickle
import signal
import socket
import time

import pytest
from small_ranks import Child, memory_file

from ddp_helpers.evidence.records import Finding, Frame, LastCall, RankError
from ddp_helpers.ranks import launched, wire
from ddp_helpers.ranks.launched import Events, LaunchedRank
from ddp_helpers.ranks.messages import Outcome, Report
from ddp_helpers.ranks.view import Silenceable


class Recorder:
    """A view that keeps what it is told."""

    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.told.append((name, args, kwargs))

    def outputs(self):
        return [args for name, args, _ in self.told if name == "output"]


class Pair:
    """A rank that has called, and what it holds: its pipe, its socket and its files."""

    def __init__(self, main=lambda: 0):
        self.view = Recorder()
        self.events = Events()
        self.child = Child(lambda: (os.setsid(), main())[1])
        self.rank = LaunchedRank(1, self.child, self.events, Silenceable(self.view), 100.0)
        self.events.on(self.child.sentinel, self.rank.has_ended)
        output, self.output = os.pipe()
        self.files = wire.RankFiles(output, -1, -1, memory_file(), memory_file(), memory_file())
        self.link, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.open = [output, self.output, *self.files_in_memory()]

    def files_in_memory(self):
        return [self.files.outcome, self.files.stacks, self.files.last_call]

    def listens(self):
        while os.getpgid(self.child.pid) != self.child.pid:  # it makes its group before it calls
            time.sleep(0.001)
        self.rank.listen(self.link, self.files)
        return self

    def prints(self, data):
        os.write(self.output, data)
        self.events.pump(1)

    def hangs_up(self):
        self.open.remove(self.output)
        os.close(self.output)

    def leaves(self, value=b"", **outcome):
        whole = {"error": None, "exit_code": 0, "seconds": 1.5} | outcome
        wire.leave_outcome(Outcome(value or None, **whole), self.files.outcome, self.theirs)

    def until_ended(self):
        limit = time.monotonic() + 10
        while not self.rank.ended:
            assert time.monotonic() < limit
            self.events.pump(1)
        return self.rank.result(False)

    def close(self):
        self.events.close()
        self.child.end()
        self.link.close()
        self.theirs.close()
        for file in self.open:
            os.close(file)


@pytest.fixture
def make():
    pairs = []

    def make_one(*args):
        pairs.append(Pair(*args))
        return pairs[-1]

    yield make_one
    for pair in pairs:
        pair.close()


def sleeps():
    time.sleep(60)


# ---- what to wait for


def test_events_call_for_what_can_be_read():
    events, calls = Events(), []
    one, other = os.pipe(), os.pipe()
    events.on(one[0], lambda: calls.append("one"))
    events.on(other[0], lambda: calls.append("other"))
    assert one[0] in events
    events.pump(0)
    assert calls == []
    os.write(other[1], b"x")
    events.pump(-1)  # a limit that has passed means: do not wait
    assert calls == ["other"]
    events.off(other[0])
    assert other[0] not in events
    events.pump(0)
    assert calls == ["other"]
    events.close()
    for file in (*one, *other):
        os.close(file)


def test_one_event_may_end_another():
    events, calls = Events(), []
    pipes = [os.pipe(), os.pipe()]

    def first(me, other):
        calls.append(me)
        events.off(other)

    for (me, write), (other, _) in (pipes, pipes[::-1]):
        events.on(me, lambda me=me, other=other: first(me, other))
        os.write(write, b"x")
    events.pump(1)
    assert len(calls) == 1
    events.close()
    for file in (*pipes[0], *pipes[1]):
        os.close(file)


def test_events_wait_as_long_as_they_are_told():
    events = Events()
    started = time.monotonic()
    events.pump(0.03)
    assert 0.02 < time.monotonic() - started < 5
    events.close()


def test_a_view_is_silent_for_a_while_only():
    view = Silenceable("a view")
    with contextlib.suppress(ZeroDivisionError), view.silenced():
        assert (view.shown, view.given) == (None, "a view")
        raise ZeroDivisionError
    assert view.shown == "a view"


# ---- what it prints


def test_whole_lines_are_passed_on_as_they_come(make):
    pair = make(sleeps).listens()
    pair.prints(b"one\ntw")
    assert pair.view.told == [("output", (1, ["one"]), {})]
    pair.prints(b"o\r\nthree\n\xff\n")
    assert pair.view.outputs()[1:] == [(1, ["two", "three", "\ufffd"])]
    assert "".join(pair.rank.text) == "one\ntwo\nthree\n\ufffd\n"
    pair.prints(b"no end yet")
    assert len(pair.view.told) == 2


def test_a_very_long_line_is_passed_on_in_parts(make, monkeypatch):
    monkeypatch.setattr(launched, "LONGEST_LINE", 5)
    pair = make(sleeps).listens()
    pair.prints(b"12345")
    assert pair.view.told == []
    pair.prints(b"6")
    pair.prints(b"\nrest")
    assert pair.view.outputs() == [(1, ["123456"]), (1, [""])]
    assert pair.rank.partial == b"rest"


def test_the_end_of_the_output_is_noted_once(make):
    pair = make(sleeps).listens()
    pair.hangs_up()
    pair.events.pump(1)
    assert pair.files.output not in pair.events
    assert pair.view.told == []


def test_a_pipe_that_is_empty_after_all_is_not_waited_for(make):
    pair = make().listens()
    assert not os.get_blocking(pair.files.output)
    result = pair.until_ended()  # the pipe is open, and nothing is in it
    assert result.output == ""


def test_what_is_printed_while_the_view_is_silent_is_kept(make):
    pair = make(sleeps).listens()
    with pair.rank.view.silenced():
        pair.prints(b"in silence\n")
        wire.send_report(pair.theirs, Report(1))
        pair.events.pump(1)
    assert pair.view.told == []
    assert pair.rank.text == ["in silence\n"]


# ---- what it says


def test_reports_go_to_the_view(make):
    pair = make(sleeps).listens()
    wire.send_report(pair.theirs, Report(3, 10, 0.5))
    pair.events.pump(1)
    assert pair.view.told == [("report", (1,), {"step": 3, "total": 10, "loss": 0.5})]
    assert pair.rank.outcome is None


@pytest.mark.parametrize("code", [0, 3])
def test_an_outcome_is_read_when_it_is_announced(make, code):
    pair = make(sleeps).listens()
    before = time.monotonic()
    pair.leaves(pickle.dumps("value"), exit_code=code)
    pair.events.pump(1)
    assert pair.rank.outcome.exit_code == code
    assert before < pair.rank.finished_at < time.monotonic()
    assert pair.rank.failed_at == (pair.rank.finished_at if code else None)


def test_a_rank_that_hangs_up_is_not_asked_again(make):
    pair = make(sleeps).listens()
    pair.theirs.close()
    pair.events.pump(1)
    assert pair.link not in pair.events
    assert not pair.rank.ended  # only its process tells that


# ---- its end


def test_a_normal_end(make):
    pair = make().listens()
    finding = Finding("kind", "cause", "advice")
    pair.leaves(pickle.dumps({"a": 1}), findings=(finding,))
    os.write(pair.output, b"last words")
    result = pair.until_ended()
    assert (result.rank, result.value, result.output) == (1, {"a": 1}, "last words\n")
    assert (result.exit_code, result.error, result.seconds) == (0, None, 1.5)
    assert (result.findings, result.returned, result.ok) == ((finding,), True, True)
    assert not result.out_of_memory
    assert not result.stopped
    assert pair.child.sentinel not in pair.events
    assert pair.view.told[-1] == ("end", (1, "done"), {})
    assert ("output", (1, ["last words"]), {}) in pair.view.told
    assert pair.rank.failed_at is None


def test_an_end_without_a_word_is_a_failure(make):
    pair = make(lambda: 7)
    before = time.monotonic()
    result = pair.until_ended()
    assert (result.exit_code, result.value, result.returned, result.ok) == (7, None, False, False)
    assert before <= pair.rank.failed_at <= time.monotonic()
    assert before <= pair.rank.finished_at <= time.monotonic()
    assert result.seconds == pair.rank.finished_at - 100.0
    assert result.findings == ()
    assert pair.view.told == [("end", (1, "failed"), {})]


def test_an_error_comes_with_its_code(make):
    pair = make(lambda: 1).listens()
    error = RankError("ValueError", "bad", "trace")
    pair.leaves(error=error, exit_code=1)
    result = pair.until_ended()
    assert (result.error, result.exit_code, result.returned) == (error, 1, True)
    assert pair.view.told[-1] == ("end", (1, "failed"), {})


def test_a_value_that_cannot_be_read_here_is_an_error_although_the_rank_ended_well(make):
    pair = make().listens()
    pair.leaves(b"no pickle")
    result = pair.until_ended()
    assert (result.exit_code, result.error.type_name) == (1, "UnpicklingError")
    assert result.value is None


def test_words_that_were_under_way_when_it_ended_are_read(make):
    pair = make().listens()
    pair.events.off(pair.link)  # as if its end had been seen first
    wire.send_report(pair.theirs, Report(9))
    pair.leaves(exit_code=4)
    result = pair.until_ended()
    assert result.exit_code == 4  # what the function did, not how the process ended
    assert [name for name, *_ in pair.view.told] == ["report", "end"]
    assert pair.rank.failed_at is not None


def test_an_end_while_the_link_stays_silent(make):
    pair = make().listens()
    pair.link.settimeout(30)
    started = time.monotonic()
    assert not pair.until_ended().returned
    assert time.monotonic() - started < 20


def test_the_outcomes_time_stands(make):
    pair = make().listens()
    pair.leaves()
    pair.events.pump(1)
    told_at = pair.rank.finished_at = pair.rank.finished_at or 5.0
    pair.until_ended()
    assert pair.rank.finished_at == told_at


@pytest.mark.parametrize("memory_kills", [True, False])
def test_a_killed_rank_may_have_run_out_of_memory(make, memory_kills):
    pair = make(lambda: os.kill(os.getpid(), signal.SIGKILL))
    pair.until_ended()
    result = pair.rank.result(memory_kills)
    assert (result.exit_code, result.out_of_memory) == (-signal.SIGKILL, memory_kills)


def test_another_end_has_nothing_to_do_with_memory(make):
    pair = make(lambda: 9)
    pair.until_ended()
    assert not pair.rank.result(True).out_of_memory


def test_one_that_the_launcher_killed_has_no_exit_code_and_no_fault(make):
    pair = make(sleeps).listens()
    pair.rank.ended_by_us = True
    pair.rank.kill()
    result = pair.until_ended()
    assert (result.exit_code, result.returned) == (None, False)
    assert pair.rank.exit_code == -signal.SIGKILL
    assert pair.rank.failed_at is None
    assert pair.view.told[-1] == ("end", (1, "ended"), {})


def test_what_was_seen_of_it_is_in_its_result(make):
    pair = make()
    frame = Frame("a.py", 1, "f")
    pair.rank.stack, pair.rank.last_call = (frame,), LastCall(1, "barrier", frame)
    pair.rank.stopped = True
    result = pair.until_ended()
    assert (result.stack, result.last_call.name, result.stopped) == ((frame,), "barrier", True)


def has_a_child(pids, own_group=False):
    """A rank that leaves a process behind, which holds its pipe."""

    def main():
        reader, writer = os.pipe()
        if os.fork() == 0:
            if own_group:
                os.setsid()
            os.write(pids, b"%d\n" % os.getpid())
            os.write(writer, b"x")
            time.sleep(60)
            os._exit(0)
        os.read(reader, 1)  # only then: it has said who it is

    return main


@pytest.fixture
def pids():
    file = memory_file()
    yield file
    for pid in wire.read_whole(file).split():
        try:
            os.kill(int(pid), signal.SIGKILL)
        except ProcessLookupError:
            continue
    os.close(file)


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_children_that_it_leaves_are_ended(make, pids):
    pair = make(has_a_child(pids)).listens()
    os.write(pair.output, b"first\nlast")
    result = pair.until_ended()
    assert result.output == "first\nlast\n"
    child = int(wire.read_whole(pids))
    limit = time.monotonic() + 5
    while is_alive(child):
        assert time.monotonic() < limit
        time.sleep(0.001)


def test_before_it_has_called_only_itself_is_killed(make, pids):
    pair = make(has_a_child(pids))  # its group may still be the launcher's
    pair.until_ended()
    assert is_alive(int(wire.read_whole(pids)))


def test_killing_one_that_is_gone_is_no_error(make):
    pair = make().listens()
    pair.child.join()
    pair.rank.kill()
    pair.rank.link = None
    pair.rank.kill()


def test_a_child_that_goes_on_printing_does_not_hold_the_launcher(make, monkeypatch):
    monkeypatch.setattr(launched, "LONGEST_DRAIN", 0.05)
    pair = make().listens()
    reads = os.read

    def endless(file, size):
        return b"more\n" if file == pair.files.output else reads(file, size)

    monkeypatch.setattr(os, "read", endless)
    started = time.monotonic()
    pair.rank.has_ended()
    assert 0.04 < time.monotonic() - started < 10
    assert len(pair.rank.text) > 1


def test_all_that_is_left_in_the_pipe_is_read(make, monkeypatch):
    monkeypatch.setattr(launched, "READ_AT_ONCE", 2)
    pair = make().listens()
    pair.events.off(pair.files.output)
    pair.events.on(pair.files.output, lambda: None)  # nobody reads before its end
    os.write(pair.output, b"abcdefgh\nij")
    pair.hangs_up()
    assert pair.until_ended().output == "abcdefgh\nij\n"
    assert pair.rank.partial == b""
