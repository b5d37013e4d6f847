"""Where ranks stand, read from what faulthandler writes."""

import faulthandler
import json
import os
import signal
import time

import pytest
from small_ranks import Child, memory_file

from ddp_helpers.evidence.frames import make_frame
from ddp_helpers.ranks import stacks, stay, travel, wire, worker
from ddp_helpers.ranks.launched import Events, LaunchedRank
from ddp_helpers.ranks.messages import Job, Outcome
from ddp_helpers.ranks.stacks import StrandedLook, parse_stack, take_stacks
from ddp_helpers.ranks.view import Silenceable

JOB = Job(b"", 2, {}, "/", [], 1, {"/tmp/c.py": "a\n  work()\n"}, {"/tmp/c.py": "cell In[4]"})
NO_FILE = -1


def text(*lines):
    """Innermost first, as faulthandler writes it."""
    return "Stack (most recent call first):\n" + "".join(
        f'  File "{file}", line {line} in {function}\n' for file, line, function in lines
    )


# ---- the text


def test_frames_are_named_as_the_reader_knows_them():
    stack = parse_stack(text(("/tmp/c.py", 2, "train"), (worker.__file__, 90, "_run")), JOB)
    (frame,) = stack
    assert (frame.filename, frame.line, frame.function) == ("cell In[4]", 2, "train")
    assert (frame.source, frame.is_user) == ("work()", True)


def test_what_runs_before_the_function_is_left_out():
    stack = parse_stack(
        text(
            ("/usr/x.py", 3, "inner"),
            ("/tmp/c.py", 2, "outer"),
            (travel.__file__, 80, "load_function"),
            ("<frozen importlib>", 5, "exec"),
            (worker.__file__, 90, "_run"),
            ("/usr/lib/spawn.py", 1, "main"),
        ),
        JOB,
    )
    assert [frame.function for frame in stack] == ["outer", "inner"]


def test_a_rank_that_is_still_in_the_launchers_code():
    stack = parse_stack(text((worker.__file__, 90, "_run"), ("/usr/x.py", 1, "main")), JOB)
    assert [frame.function for frame in stack] == ["_run"]


IN_LIBRARIES = [(json.decoder.__file__, 3, "inner"), (json.__file__, 2, "outer")]


@pytest.mark.parametrize(
    "ours",
    [
        (travel.__file__, 80, "describe"),  # it has failed, and puts its error into words
        (worker.__file__, 80, "_settle_in"),
        (travel.__file__, 80, "unpack"),
    ],
)
def test_what_the_launcher_itself_uses_is_no_place_of_the_readers(ours):
    (frame,) = parse_stack(text(*IN_LIBRARIES, ours, (worker.__file__, 90, "_run")), JOB)
    assert (frame.function, frame.is_launcher) == (ours[2], True)


@pytest.mark.parametrize("way", [worker._run, stay._obey, stay._run_cell])
def test_a_function_of_a_library_is_a_place_of_the_readers(way):
    called_by = (way.__code__.co_filename, 80, way.__name__)
    stack = parse_stack(text(*IN_LIBRARIES, called_by), JOB)
    assert [frame.function for frame in stack] == ["outer", "inner"]


def test_a_rank_that_has_not_come_so_far_shows_all():
    stack = parse_stack(text(("/a.py", 2, "inner"), ("/a.py", 1, "outer")), JOB)
    assert [frame.function for frame in stack] == ["outer", "inner"]
    assert parse_stack("", JOB) == ()
    assert parse_stack("no stack here\n", JOB) == ()


@pytest.mark.parametrize(("line", "source"), [(1, "first"), (2, "second"), (3, ""), (0, "")])
def test_the_line_is_quoted_from_its_file(tmp_path, line, source):
    file = tmp_path / "a.py"
    file.write_bytes(b"first\n    second \xff\n".replace(b" \xff", b""))
    (frame,) = parse_stack(text((file, line, "f")), JOB)
    assert frame.source == source


def test_a_file_in_another_encoding_is_quoted_all_the_same(tmp_path):
    file = tmp_path / "a.py"
    file.write_bytes(b"x = '\xff'\n")
    (frame,) = parse_stack(text((file, 1, "f")), JOB)
    assert frame.source == "x = '\ufffd'"


def test_a_file_that_is_gone_has_no_line():
    (frame,) = parse_stack(text(("/gone/a.py", 1, "f")), JOB)
    assert frame.source == ""


# ---- the ranks


class Standing:
    """A rank that stands somewhere, or is not there yet."""

    def __init__(self, main, number=0, called=True):
        self.stacks, self.last_call = memory_file(), memory_file()
        self.ready = os.pipe()
        self.child = Child(lambda: main(self))
        self.rank = LaunchedRank(number, self.child, EVENTS[0], Silenceable(None), 0.0)
        if called:
            self.rank.link = object()
            self.rank.files = wire.RankFiles(
                NO_FILE, NO_FILE, NO_FILE, NO_FILE, self.stacks, self.last_call
            )
            os.read(self.ready[0], 1)

    def close(self):
        self.child.end()
        for file in (self.stacks, self.last_call, *self.ready):
            os.close(file)


EVENTS = [None]


@pytest.fixture
def standing():
    EVENTS[0] = Events()
    made = []

    def make(*args, **kwargs):
        made.append(Standing(*args, **kwargs))
        return made[-1]

    yield make
    EVENTS[0].close()
    for one in made:
        one.close()


def sits(me):
    """Answers when it is asked."""
    faulthandler.register(wire.STACK_SIGNAL, file=me.stacks, all_threads=False)
    os.write(me.ready[1], b"x")
    while True:
        time.sleep(1)


def deaf(me):
    signal.signal(wire.STACK_SIGNAL, signal.SIG_IGN)
    os.write(me.ready[1], b"x")
    time.sleep(60)


def test_a_rank_says_where_it_stands(standing):
    rank = standing(sits)
    started = time.monotonic()
    take_stacks([rank.rank], JOB, EVENTS[0])
    assert time.monotonic() - started < 5
    assert rank.rank.stack[-1].function == "sits"
    assert not rank.rank.stopped


def test_the_second_look_reads_the_second_stack_only(standing, monkeypatch):
    texts = []
    monkeypatch.setattr(stacks, "parse_stack", lambda text, job: texts.append(text) or ())
    rank = standing(sits)
    for _ in range(2):
        take_stacks([rank.rank], JOB, EVENTS[0])
    assert [text.count("most recent call first") for text in texts] == [1, 1]
    assert all(text.startswith("Stack") for text in texts)


def test_one_that_does_not_answer_is_not_waited_for_long(standing, monkeypatch):
    monkeypatch.setattr(stacks, "STACK_WAIT", 0.05)
    rank = standing(deaf)
    started = time.monotonic()
    take_stacks([rank.rank], JOB, EVENTS[0])
    assert 0.04 < time.monotonic() - started < 5
    assert rank.rank.stack == ()
    assert rank.rank.last_call is None


def test_a_paused_one_is_known_as_such(standing, monkeypatch):
    monkeypatch.setattr(stacks, "STACK_WAIT", 0.05)
    rank = standing(sits)
    os.kill(rank.child.pid, signal.SIGSTOP)
    os.waitid(os.P_PID, rank.child.pid, os.WSTOPPED | os.WNOWAIT)
    take_stacks([rank.rank], JOB, EVENTS[0])
    assert rank.rank.stopped
    assert rank.rank.stack == ()


def test_who_has_not_called_or_has_returned_is_left_alone(standing):
    def dies_of_it(me):
        os.write(me.ready[1], b"x")
        time.sleep(60)

    early, late = standing(dies_of_it, called=False), standing(dies_of_it)
    late.rank.outcome = Outcome(None, None, 0, 1.0)
    started = time.monotonic()
    take_stacks([early.rank, late.rank], JOB, EVENTS[0])
    assert time.monotonic() - started < 0.15
    assert os.waitid(os.P_PID, early.child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    assert os.waitid(os.P_PID, late.child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None


def test_one_that_ends_meanwhile_is_not_waited_for(standing, monkeypatch):
    monkeypatch.setattr(stacks, "STACK_WAIT", 30.0)

    def dies_of_it(me):
        os.write(me.ready[1], b"x")
        time.sleep(60)

    rank = standing(dies_of_it)
    ended = []

    def note():
        EVENTS[0].off(rank.child.sentinel)
        rank.rank.ended = True
        ended.append(True)

    EVENTS[0].on(rank.child.sentinel, note)
    started = time.monotonic()
    take_stacks([rank.rank], JOB, EVENTS[0])
    assert ended
    assert time.monotonic() - started < 20


def test_one_that_is_gone_is_no_error(standing):
    rank = standing(sits)
    os.kill(rank.child.pid, signal.SIGKILL)
    rank.child.join()
    rank.rank.ended = True
    take_stacks([rank.rank], JOB, EVENTS[0])
    assert rank.rank.stack == ()


def test_all_of_them_are_waited_for(standing):
    def slowly(me):
        def answer(*_):
            time.sleep(0.05)
            os.write(me.stacks, b"\xff\n" + text(("/a.py", 7, "slow")).encode())

        signal.signal(wire.STACK_SIGNAL, answer)
        os.write(me.ready[1], b"x")
        while True:
            time.sleep(1)

    ranks = [standing(sits, 0), standing(slowly, 1)]
    take_stacks([one.rank for one in ranks], JOB, EVENTS[0])
    assert [frame.function for frame in ranks[1].rank.stack] == ["slow"]
    assert ranks[0].rank.stack


# ---- stranded


class Asked:
    """Ranks whose stacks are what a test says, one after the other."""

    def __init__(self, monkeypatch, *answers):
        self.answers = list(answers)
        self.times = 0
        monkeypatch.setattr(stacks, "take_stacks", self.take)

    def take(self, ranks, job, events):
        self.times += 1
        assert (job, events) == (JOB, "events")
        for rank in ranks:
            rank.stack = self.answers[min(self.times, len(self.answers)) - 1]


WAITS = (make_frame("/x/torch/distributed/c10d.py", 9, "all_reduce", {}),)
ELSEWHERE = (make_frame("/x/torch/distributed/c10d.py", 12, "all_reduce", {}),)
WORKS = (make_frame("/x/train.py", 1, "work", {}),)


def ranks(*ended, seconds_ago=9.0):
    made = []
    for number, is_over in enumerate(ended):
        rank = LaunchedRank(number, None, None, Silenceable(None), 0.0)
        rank.link = object()
        rank.ended = is_over
        rank.finished_at = time.monotonic() - seconds_ago if is_over else 0.0
        made.append(rank)
    return made


def looks(those, times=3):
    look = StrandedLook()
    look.BETWEEN = 0.0
    return [look.is_so(those, JOB, "events") for _ in range(times)]


def test_two_looks_that_find_them_waiting(monkeypatch):
    asked = Asked(monkeypatch, WAITS)
    assert looks(ranks(True, False, False)) == [False, True, True]
    assert asked.times == 3


def test_one_that_moves_or_works_is_not_stranded(monkeypatch):
    Asked(monkeypatch, WAITS, ELSEWHERE, WAITS)
    assert looks(ranks(True, False)) == [False, False, False]
    Asked(monkeypatch, WORKS)
    assert looks(ranks(True, False)) == [False, False, False]


def test_nobody_is_asked_while_all_run_or_one_is_about_to_end(monkeypatch):
    asked = Asked(monkeypatch, WAITS)
    assert looks(ranks(False, False)) == [False] * 3
    leaves = ranks(True, False, False)
    leaves[1].outcome = Outcome(None, None, 0, 1.0)
    assert looks(leaves) == [False] * 3
    starts = ranks(True, False, False)
    starts[2].link = None
    assert looks(starts) == [False] * 3
    assert asked.times == 0


def test_it_is_asked_seldom(monkeypatch):
    asked = Asked(monkeypatch, WAITS)
    look = StrandedLook()
    those = ranks(True, False)
    assert [look.is_so(those, JOB, "events") for _ in range(50)] == [False] * 50
    assert asked.times == 1  # the second look comes half a second later
    fresh = StrandedLook()
    just_ended = ranks(True, False, seconds_ago=0.2)
    fresh.is_so([*ranks(True, seconds_ago=9), *just_ended], JOB, "events")
    assert asked.times == 1  # the last end counts
